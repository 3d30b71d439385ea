"""What a report shows of the models at work: items for a few users, with their titles, and texts that were written."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import polars as pl

from tasks.files import read_json
from tasks.page import table

__all__ = ["recommendations", "texts"]

MODELS = 6  # of a kind
USERS, ITEMS = 3, 5  # shown, of each model
WORDS = 320  # characters of a text
PROMPTS = 4
TITLES = ("name", "title", "product_name")
LONG = 90  # characters of a title


def recommendations(chosen: Mapping, recommenders: Mapping, artifacts: Path) -> str:
    """Lists of a few users: of each task on the test days' items, and of each recommender from the whole catalogue.

    Args:
        chosen: the `recommend` part of params.yaml.
        recommenders: the `recommenders.models` part.
    """
    tasks = [name for name in chosen.get("tasks") or {} if (artifacts / "prompt" / name / "test.parquet").is_file()]
    lists = {name: entry for name, entry in (recommenders or {}).items()
             if (artifacts / "recommender" / name / "packed/example.parquet").is_file()}  # fmt: skip
    parts = [_of_task(name, artifacts) for name in tasks[:MODELS]]
    parts += [_of_lists(name, entry, artifacts) for name, entry in list(lists.items())[:MODELS]]
    left = max(len(tasks) - MODELS, 0) + max(len(lists) - MODELS, 0)
    parts.append(f"<p class=dim>{left} more models are not shown.</p>" if left else "")
    return "".join(parts) or "<p class=dim>No model that recommends was trained here.</p>"


def _of_task(name: str, artifacts: Path) -> str:
    """The likeliest of each user's viewed items, with what happened; the users with most of them."""
    predictions, rows = artifacts / "prompt" / name / "test.parquet", artifacts / "features/rows/test.parquet"
    scan = pl.scan_parquet(rows)
    columns = scan.collect_schema().names()
    title = next((column for column in TITLES if column in columns), "item_id")
    price = ["price"] if "price" in columns else []
    shown = [title, *price] if title != "item_id" else price
    scored = pl.read_parquet(predictions).filter(pl.col("label") >= 0)
    joined = scored.join(scan.select("row", "user_id", "item_id", *{*shown}).collect(), on="row", how="inner")
    best = joined.group_by("user_id", "item_id").agg(
        pl.col("probability", "label").max(), pl.col(shown).first() if shown else []
    )
    users = best.group_by("user_id").len().sort(["len", "user_id"], descending=[True, False])["user_id"].head(USERS)
    cells = []
    for user in users.to_list():
        mine = best.filter(pl.col("user_id") == user)
        listed = mine.sort(["probability", "item_id"], descending=[True, False]).head(ITEMS)
        cells += [[f"<div class=text>{escape(str(row[title])[:LONG])}</div>", f"{row['probability']:.4f}",
                   "<span class=good>yes</span>" if row["label"] else "no",
                   *(f"{row[column]:.2f}" if row[column] is not None else "-" for column in price), escape(str(user))]
                  for row in listed.iter_rows(named=True)]  # fmt: skip
    head = ["item", "predicted", "happened", *price, "user"]
    return (f"<h3>{escape(name)}</h3><p class=dim>The {ITEMS} likeliest of the items that each user viewed on the test "
            f"days; the {USERS} users with most of them.</p>" + table(head, cells))  # fmt: skip


def _of_lists(name: str, entry: Mapping, artifacts: Path) -> str:
    """The first places of a recommender's lists for the example requests that travel with it."""
    packed = artifacts / "recommender" / name / "packed"
    from tasks.recommender import load

    requests = pl.read_parquet(packed / "example.parquet").head(USERS)
    lists = load(packed).lists(requests, ITEMS)
    histories = requests["history"].to_list() if "history" in requests.columns else [None] * len(requests)
    asked = [item for row in (*lists["items"].to_list(), *histories) for item in row or ()]
    said = _titles(entry, artifacts, asked)
    line = lambda items: "<br>".join(escape(str(said.get(item, item))[:LONG]) for item in items) or "-"
    rows = [
        [escape(str("-" if user is None else user)), line(list(history or ())[-ITEMS:]), line(items), escape(how)]
        for user, history, items, how in zip(requests["user"], histories, lists["items"], lists["known"], strict=True)
    ]
    head = ["user", "viewed last", f"recommended, the first {ITEMS}", "answered by"]
    return f"<h3>{escape(name)}: {escape(str(entry['method']))}</h3>" + table(head, rows)


def _titles(entry: Mapping, artifacts: Path, items: list) -> dict:
    """Item -> a title from the log, where it has titles."""
    unit = (entry.get("pairs") or {}).get("item") or (entry.get("sequences") or {}).get("unit") or "item_id"
    events = pl.scan_parquet(artifacts / "ingest" / str(entry["data"]) / "events/**/*.parquet", hive_partitioning=False)
    columns = events.collect_schema().names()
    title = next((column for column in TITLES if column in columns), None)
    if title is None or unit not in columns:
        return {}
    wanted = events.filter(pl.col(unit).is_in(items)).group_by(unit).agg(pl.col(title).min()).collect()
    return dict(wanted.iter_rows())


def texts(artifacts: Path) -> str:
    """What each model that writes said to the first of its sample prompts, beside its champion; and generated texts."""
    parts = []
    for path in sorted(artifacts.glob("pages/*/samples/samples.json"))[:MODELS]:
        told = read_json(path)
        sides = ["candidate"] + ["champion"] * bool(told["champion"])
        rows = [[_plain(prompt["prompt"]), escape(way), *(_plain("\n".join(said.get(who) or ()) or "nothing")
                                                          for who in sides)]
                for prompt in told["prompts"][:PROMPTS] for way, said in prompt["texts"].items()]  # fmt: skip
        parts.append(f"<h3>{escape(path.parents[1].name)}</h3>" + table(["prompt", "decoding", *sides], rows))
    for path in sorted(artifacts.glob("generated/*/texts.parquet"))[:MODELS]:
        kept = pl.read_parquet(path).filter("kept").head(PROMPTS)
        rows = [[escape(str(row["id"])), _plain(row["text"])] for row in kept.iter_rows(named=True)]
        parts.append(f"<h3>generated: {escape(path.parent.name)}</h3>" + table(["prompt", "text"], rows))
    return "".join(parts) or "<p class=dim>No model that writes was made here.</p>"


def _plain(text: str) -> str:
    short = text if len(text) <= WORDS else text[:WORDS] + " ..."
    return f"<div class=text>{escape(short).replace(chr(10), '<br>')}</div>"
