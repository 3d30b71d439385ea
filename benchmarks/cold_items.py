"""What does reading the listings' titles do for items that training never saw? With and without, the same seeds.

    python benchmarks/cold_items.py --encoder NAME=FOLDER [...] [--data FOLDER] [--rows N] [--seeds 3] [--out FILE.md]

Each FOLDER is a model that transformers loads. `sample` is the made-up marketplace, its tasks and its default backbone.
`amazon_industrial` is real: DATA/recsys/amazon_industrial, where a fifth of the items is taken out of training; for
each purchase of such an item all of them are ranked, in the place and time of the purchase. Backbones differ in the
numbers of the titles alone: same rows, same seeds, same epochs. Scores are means over the seeds; intervals come from
resampling users.
"""

import argparse
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import build, metrics
from tasks.batches import load_split, text_names
from tasks.datasets import sample
from tasks.encoder import Encoder
from tasks.evaluate import predict
from tasks.features import make_features
from tasks.files import read_json, write_text
from tasks.ingest import ingest
from tasks.labels import read_tasks
from tasks.listing_encoder import listing_encoder
from tasks.texts import ListingText, text_of
from tasks.train import fit_backbone, labels_of
from tasks.training import Training, use_threads
from tasks.vectors import make_vectors

HELD_OUT = 0.2  # of the Amazon items
NEGATIVES = 4
HISTORY = 5  # earlier listings that a title is compared with
DRAWS, LEVEL = 400, 0.95
SPLITS = ("train", "val", "test")
INDUSTRIAL = {
    "categorical": ["user_id", "brand_name", "weekday"],
    "numerical": ["session_position", "same_brand_name_before", "seen_before"],
    "history": {"item_id": 3, "brand_name": 3},
    "texts": {"name": HISTORY},
}


def prepared(folder: Path, encoders: dict[str, str]) -> dict[str, Path | None]:
    """The vectors of each encoder for the features in `folder`; None for no text."""
    found: dict[str, Path | None] = {"no text": None}
    for name, address in encoders.items():
        listing_encoder(address, folder / f"encoder-{name}")
        make_vectors(folder / "features", folder / f"encoder-{name}", folder / f"vectors-{name}", folder / "memo")
        found[name] = folder / f"vectors-{name}"
    return found


def trained(folder: Path, vectors: Path | None, tasks: dict, settings: dict, limits: dict, seed: int):
    """A backbone on the features in `folder`, and the seconds it took."""
    manifest = read_json(folder / "features/manifest.json")
    read = read_tasks(tasks, folder / "ingest", manifest)
    rows = {split: load_split(folder / "features", split, vectors) for split in SPLITS}
    labels = {split: labels_of(read, split, folder / "ingest", folder / "features") for split in SPLITS}
    torch.manual_seed(seed)
    dense = len(manifest["numerical"]) + len(text_names(vectors))
    model = build("recommend", "mpt_rec", manifest["sizes"], dense, len(read), **settings)
    done = fit_backbone(model, [task.name for task in read], rows, labels, Training.read(limits | {"seed": seed}))
    return model.eval().requires_grad_(False), rows, labels, done.seconds


def on_sample(folder: Path, encoders: dict[str, str], rows: int, seeds: int) -> str:
    """The default backbone's tasks on the made-up marketplace: AUC on all test rows, and on those of cold items."""
    chosen = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())["recommend"]
    backbone = chosen["backbone"]
    (folder / "raw").mkdir()
    sample.fetch(folder / "raw", Path(), rows, 7)
    ingest(sample.read(folder / "raw"), folder / "ingest", {"val_days": 3, "test_days": 3})
    told = chosen | {"features": chosen["features"] | {"texts": {"name": HISTORY}}}
    make_features(told, folder / "ingest", folder / "features", sample.FEATURES, sample.EVENTS)
    table = pl.read_parquet(folder / "features/rows/test.parquet", columns=["user", "cold_item"])
    users, cold = (torch.from_numpy(table[name].to_numpy().astype(np.int64)) for name in ("user", "cold_item"))
    scores, seconds, vectors = {}, {}, prepared(folder, encoders)
    for way, place in vectors.items():
        runs = []
        for seed in range(1, seeds + 1):
            model, data, labels, spent = trained(
                folder, place, backbone["tasks"], backbone["settings"], backbone["training"], seed
            )
            runs.append(predict(model, *data["test"]))
            seconds[way] = seconds.get(way, 0) + spent / seeds
        scores[way] = torch.stack(runs).mean(0)
    known = labels["test"]
    share = float(cold.float().mean())
    lines = [f"### sample: {len(table):,} test rows, {share:.0%} of them of cold items; {seeds} seeds", "",
             "| task | rows | no text | " + " | ".join(f"{way}, minus no text" for way in encoders) + " |",
             "|---|---|---|" + "---|" * len(encoders)]  # fmt: skip
    for index, task in enumerate(backbone["tasks"]):
        for what, here in (("all", known[:, index] >= 0), ("cold items", (known[:, index] >= 0) & (cold == 1))):
            label = known[here, index]
            base = scores["no text"][here, index]
            cells = [difference(scores[way][here, index], base, label, users[here]) for way in encoders]
            auc = f"{float(metrics.auc(base, label)):.4f}"
            lines.append(f"| `{task}` | {what}: {int(here.sum()):,}, {int(label.sum()):,} positive | {auc} | "
                         + " | ".join(cells) + " |")  # fmt: skip
    return "\n".join([*lines, "", took(seconds)])


def difference(score: torch.Tensor, base: torch.Tensor, label: torch.Tensor, users: torch.Tensor) -> str:
    """AUC of `score`, and how much better than `base` it is, with its interval."""
    found = metrics.paired_bootstrap(score, base, label, "auc", users, DRAWS, LEVEL, 7)
    return f"{float(metrics.auc(score, label)):.4f}, {found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def took(seconds: dict[str, float]) -> str:
    told = ", ".join(f"{way} {value:.1f} s" for way, value in seconds.items())
    return f"Training a backbone took, mean of the seeds: {told}.\n"


def industrial(data: Path) -> tuple[pl.DataFrame, np.ndarray]:
    """Purchases in order, the last days being validation and test; and the ids of the items taken out of training."""
    items = pl.read_parquet(data / "items.parquet")
    valid, test = (pl.read_parquet(data / f"{name}.parquet") for name in ("valid", "test"))
    held = np.random.default_rng(7).choice(items["item"].to_numpy(), int(HELD_OUT * len(items)), replace=False)
    told = pl.concat([valid, test]).with_row_index("order")
    first = told.sort("order").unique("user_id", keep="first", maintain_order=True)
    start = datetime(2018, 1, 1, tzinfo=UTC)
    rows = []
    for user, history in first.select("user_id", "history").iter_rows():
        rows += [(user, item, start + timedelta(days=20 - len(history) + place)) for place, item in enumerate(history)]
    for day, frame in ((20, valid), (21, test)):
        rows += [(user, item, start + timedelta(days=day, seconds=place))
                 for place, (user, item) in enumerate(frame.select("user_id", "target").iter_rows())]  # fmt: skip
    log = pl.DataFrame(
        rows, schema={"user": pl.String, "item_id": pl.Int64, "stime": pl.Datetime("us", "UTC")}, orient="row"
    )
    log = log.filter((pl.col("stime") >= start + timedelta(days=21)) | ~pl.col("item_id").is_in(held.tolist()))
    names = items.select(pl.col("item").cast(pl.Int64).alias("item_id"), pl.col("title").alias("name"),
                         pl.col("brand").replace("", None).alias("brand_name"))  # fmt: skip
    log = log.join(names, on="item_id", how="left", maintain_order="left").select(
        pl.col("user").str.slice(1).cast(pl.Int64).alias("user_id"), "item_id", "stime", "name", "brand_name",
        event_id=pl.lit("item_view"), session_id=pl.lit(None, pl.String),
    )  # fmt: skip
    return log, held


def on_industrial(folder: Path, data: Path, encoders: dict[str, str], seeds: int) -> str:
    """Purchases of items that training never saw: where does the bought one rank among all such items?"""
    log, held = industrial(data)
    ingest(log.lazy(), folder / "ingest", {"val_days": 1, "test_days": 1})
    settings = {"negatives": {"popularity": NEGATIVES}, "features": {"min_count": 2}}
    make_features(settings, folder / "ingest", folder / "features", INDUSTRIAL, ("item_view",))
    task = {"view": {"given": "true", "positive": "event_id = 'item_view'", "within": "row"}}
    own = {"experts": [128, 64], "towers": [32, 32], "adversarial": 0.0}
    limits = {"epochs": 8, "batch": 512, "lr": 1.0e-3, "patience": 2}
    rows = pl.read_parquet(folder / "features/rows/test.parquet")
    bought = rows.filter(pl.col("sampled").is_null() & pl.col("item_id").is_in(held.tolist()))
    shelf = log.filter(pl.col("item_id").is_in(held.tolist())).unique("item_id", maintain_order=True)
    shelf = shelf.select("item_id", "name", "brand_name").sort("item_id")
    place = torch.from_numpy(np.searchsorted(shelf["item_id"].to_numpy(), bought["item_id"].to_numpy()))
    users = bought["user_id"].to_numpy()
    ranks, seconds, vectors = {}, {}, prepared(folder, encoders)
    for way, vector in vectors.items():
        runs = []
        text = reader(folder, vector) if vector else None
        for seed in range(1, seeds + 1):
            model, _, _, spent = trained(folder, vector, task, own, limits, seed)
            runs.append(_scores(model, folder, text, bought, shelf))
            seconds[way] = seconds.get(way, 0) + spent / seeds
        score = torch.stack(runs).mean(0)
        mine = score.gather(1, place[:, None])
        ranks[way] = ((score > mine).sum(1) + ((score == mine).sum(1) - 1) / 2).numpy()  # ties share their places
    most = len(shelf) - 1
    measures = {
        "AUC": lambda rank: 1 - rank / most,
        "recall@10": lambda rank: (rank < 10).astype(float),
        "recall@50": lambda rank: (rank < 50).astype(float),
    }
    counts = f"{len(bought):,} purchases of {len(shelf):,} items that training never saw; {seeds} seeds"
    lines = [f"### amazon_industrial: {counts}", "",
             "| measure | no text | " + " | ".join(f"{way}, minus no text" for way in encoders) + " |",
             "|---|---|" + "---|" * len(encoders)]  # fmt: skip
    for name, measure in measures.items():
        base = measure(ranks["no text"])
        cells = [gain(measure(ranks[way]), base, users) for way in encoders]
        lines.append(f"| {name} | {base.mean():.4f} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", took(seconds)])


def reader(folder: Path, vectors: Path) -> ListingText:
    """What serves the texts, which knows those of the test rows already."""
    text = ListingText(vectors / "text")
    _, joined = load_split(folder / "features", "test", vectors)
    rows = pl.read_parquet(folder / "features/rows/test.parquet", columns=text.columns)
    for columns, places in zip(text.texts, joined.index.T, strict=True):
        titles = rows.select(text_of(columns)).to_series()
        text.known |= {title: joined.table[place] for title, place in zip(titles, places, strict=True) if place}
    return text


def _scores(model, folder: Path, text: ListingText | None, bought: pl.DataFrame, shelf: pl.DataFrame) -> torch.Tensor:
    """(purchases, shelf) probabilities: each purchase's row with every item of the shelf in its place."""
    encoder = Encoder.from_json((folder / "features/encoder.json").read_text())
    found = []
    for row in range(len(bought)):
        frame = pl.concat([bought[row].drop("item_id", "name", "brand_name")] * len(shelf)).hstack(shelf)
        ids, numbers = encoder.transform(frame)
        if text:
            numbers = np.concatenate([numbers, text(frame)], axis=1)
        found.append(predict(model, ids, numbers)[:, 0])
    return torch.stack(found)


def gain(ours: np.ndarray, base: np.ndarray, users: np.ndarray) -> str:
    """Mean of `ours`, and how much more than `base` it is; users are drawn, Poisson(1) times each."""
    rng, group = np.random.default_rng(7), np.unique(users, return_inverse=True)[1]
    weights = rng.poisson(1, (DRAWS, group.max() + 1))[:, group]
    drawn = (weights * (ours - base)).sum(1) / weights.sum(1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return f"{ours.mean():.4f}, {(ours - base).mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=60000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    use_threads()
    encoders = dict(pair.split("=", 1) for pair in given.encoder)
    started, parts = time.monotonic(), []
    with TemporaryDirectory() as place:
        if given.data:
            (Path(place) / "industrial").mkdir()
            data = given.data / "recsys/amazon_industrial"
            parts.append(on_industrial(Path(place) / "industrial", data, encoders, given.seeds))
            print("\n" + parts[-1], flush=True)
        if given.rows:
            (Path(place) / "sample").mkdir()
            parts.append(on_sample(Path(place) / "sample", encoders, given.rows, given.seeds))
            print("\n" + parts[-1], flush=True)
    if given.out:
        write_text(given.out, "\n".join(parts))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
