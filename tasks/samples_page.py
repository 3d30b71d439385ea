"""What a language model writes, beside what its champion writes: one page and one JSON file a version.

    python -m tasks.samples_page MODEL PROMPTS.parquet params.yaml:language.samples OUT [CHAMPION]

Both get the same prompts, seeds and settings. CHAMPION is a folder, `models:/NAME@champion`, or a registered name; a
name without a champion yet leaves the model alone on its page.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from models.components._closest import refuse_unknown
from tasks import track
from tasks.causal import Opened, open_causal
from tasks.command import run
from tasks.files import digest, new_folder, write_json, write_text
from tasks.generate import Decoding, read_prompts, written
from tasks.page import STYLE, number, table
from tasks.settings import SettingsError, read
from tasks.slots import slot

__all__ = ["samples_page"]

KEYS = ("prompts", "decodings")
PROMPTS, SHOWN = 20, 5  # prompts on the page, texts of each
DECODINGS = {"greedy": {"decode": "greedy", "form": "lines"}}
METRICS = ("kept", "distinct_1", "distinct_2", "self_bleu", "generated_tokens_per_kept", "passes_per_kept")


def samples_page(
    model: str | Path, prompts: str | Path, chosen: Mapping, out: str | Path, champion: str | None = None
) -> dict:
    """Write the folder `out` whole or not at all.

    Args:
        model: a causal language model's folder with its tokenizer, or what a stage wrote it into.
        prompts: Parquet, see tasks.generate.read_prompts.
        chosen: {prompts (20): the first so many, decodings {name: settings of tasks.generate.Decoding}}; by default
            the most likely line.
        out: takes samples.json and page.html.
        champion: a folder, `models:/NAME@champion` or `models:/NAME/3`, a registered name, or None.

    Returns:
        {"candidate": {"content", "name", "metrics": {decoding: ...}}, "champion": the same or null, "prompts": [{"id",
        "prompt", "texts": {decoding: {"candidate": [...], "champion": [...]}}}], "file": SHA-256 of the prompts}.

    Raises:
        SettingsError: a setting that cannot be.
        RegistryError: no such version, or a registry that does not answer.
        PoisonedFolder, BrokenIdentity, TooLong, ValueError: see tasks/generate.py.
    """
    rows, ways = _read(chosen, prompts)
    found = {}
    with slot() as device:
        opened = open_causal(model, device)
        candidate = {"name": str(model), "content": opened.content}
        found["candidate"], candidate["metrics"] = _asked(opened, rows, ways)
        crowned = None
        with _champion(champion) as place:
            if place is not None:
                name, folder = place
                opened = open_causal(folder, device)
                crowned = {"name": name, "content": opened.content}
                same = opened.content == candidate["content"]
                texts, metrics = (found["candidate"], candidate["metrics"]) if same else _asked(opened, rows, ways)
                found["champion"], crowned["metrics"] = texts, metrics
    told = {
        "candidate": candidate, "champion": crowned, "file": digest(prompts),
        "prompts": [{"id": row["id"], "prompt": _plain(row["prompt"]),
                     "texts": {way: {who: texts[way][row["id"]] for who, texts in found.items()} for way in ways}}
                    for row in rows.iter_rows(named=True)],
    }  # fmt: skip
    with new_folder(out) as folder:
        write_json(folder / "samples.json", told)
        write_text(folder / "page.html", _page(told))
    beside = f"beside {crowned['name']}" if crowned else "no champion yet"
    print(f"{model}: {len(rows)} prompts, {', '.join(ways)}; {beside}")
    return told


def _read(chosen: Mapping, prompts: str | Path) -> tuple[pl.DataFrame, dict[str, Decoding]]:
    for key in chosen:
        refuse_unknown("samples", key, KEYS, SettingsError)
    limit = chosen.get("prompts", PROMPTS)
    if not isinstance(limit, int) or limit < 1:
        raise SettingsError(f"samples: prompts is how many are shown, at least 1; got {limit!r}")
    ways = {name: Decoding.read(way) for name, way in (chosen.get("decodings") or DECODINGS).items()}
    return read_prompts(prompts).head(limit), ways


def _asked(opened: Opened, rows: pl.DataFrame, ways: Mapping[str, Decoding]) -> tuple[dict, dict]:
    """Texts by decoding and prompt, the kept ones first seen; metrics by decoding."""
    texts, metrics = {}, {}
    for name, how in ways.items():
        frame, metrics[name] = written(opened, rows, how)
        kept = frame.filter("kept").group_by("id", maintain_order=True).agg(pl.col("text").head(SHOWN))
        texts[name] = dict.fromkeys(rows["id"], ()) | dict(kept.iter_rows())
    return texts, metrics


@contextmanager
def _champion(named: str | None) -> Iterator[tuple[str, Path] | None]:
    """A name to show and a folder to open."""
    if named is None:
        yield None
        return
    if Path(named).is_dir():
        yield named, Path(named)
        return
    version = track.resolve(named) if named.startswith("models:/") else track.by_alias(named, "champion")
    if version is None:
        yield None
        return
    with TemporaryDirectory() as place:
        yield version.uri, track.model_files(version, Path(place) / "version")


def _plain(prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{each['role']}: {each['content']}" for each in prompt)


def _page(told: Mapping) -> str:
    candidate, champion = told["candidate"], told["champion"]
    sides = ["candidate"] + ["champion"] * (champion is not None)
    title = f"What {candidate['name']} writes"
    beside = f"Beside <code>{escape(champion['name'])}</code>." if champion else "There is no champion yet."
    if champion and champion["content"] == candidate["content"]:
        beside = f"These files are <code>{escape(champion['name'])}</code>."
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>",
        f"<p>Files <code>{candidate['content'][:16]}</code>. {beside}</p>",
        table(["decoding", "model", *(name.replace("_", " ") for name in METRICS)],
              [[escape(way), who, *(number(told[who]["metrics"][way].get(name)) for name in METRICS)]
               for way in candidate["metrics"] for who in sides]),
    ]  # fmt: skip
    for prompt in told["prompts"]:
        parts.append(f"<h2>{escape(prompt['id'])}</h2><p class=dim>{_lines(prompt['prompt'])}</p>")
        rows = [[escape(way), *("<br>".join(_lines(text) for text in texts[who]) or "nothing" for who in sides)]
                for way, texts in prompt["texts"].items()]  # fmt: skip
        parts.append(table(["decoding", *sides], rows))
    return "\n".join(parts) + "\n"


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def main(model: str, prompts: str, address: str, out: str, champion: str | None = None) -> None:
    """python -m tasks.samples_page MODEL PROMPTS.parquet params.yaml:language.samples OUT [CHAMPION]"""
    samples_page(model, prompts, read(address) or {}, out, champion)


if __name__ == "__main__":
    run(main)
