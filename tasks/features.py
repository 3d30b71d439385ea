"""Ingested events -> the rows that tasks ask about, their features, and these encoded for a model.

A row is the first event of its kind for a (user, session, item), or an item sampled beside a view (`tasks.negatives`).
A sampled row has the user, session and time of its view, the sampled item's own columns as they were at that item's
first event, event_id null and `sampled` naming its kind. Whether a column that the event schema does not know describes
the item is read off the data, see `own_item_columns`; what does not stays the view's. Context features (see
`tasks.context`) are computed for every row, sampled ones with their own item.
Buckets of users are read one at a time. The encoder sees training rows only.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from tasks.command import run
from tasks.context import SIMPLE, History, Popularity, add_context, context_type
from tasks.datasets._schema import COLUMNS
from tasks.encoder import Encoder, unfit
from tasks.files import digest, new_folder, write_json, write_text
from tasks.ingest import ADDED, EmptySplit
from tasks.negatives import KINDS, Sampler
from tasks.progress import progress
from tasks.settings import SettingsError, read

__all__ = ["Declared", "FeatureError", "make_features"]

VIEW = "item_view"
SPLITS = ("train", "val", "test")
CHUNK = 250_000  # rows in memory at a time, and in a Parquet row group
ROW_KEY = ["user", "session", "item", "event_id"]
ITEM = ("item_id", "product_id", "name", "price", "color")  # with the ids and names of ITEM_PREFIXES: an item's columns
ITEM_PREFIXES = ("c0_", "c1_", "c2_", "brand_", "item_condition_", "size_", "shipper_")
NO_FEATURES = {
    "event_id": "it is what the labels are made of",
    "sampled": "it tells negatives from views",
    "split": "it tells the time",
    "row": "it is a number of this run",
    "user": "it is a number of this ingestion; use user_id",
    "item": "it is a number of this ingestion; use item_id",
    "session": "it is a number of this ingestion",
    "cold_item": "it is false in all of train",
    "cold_user": "it is false in all of train",
    "sequence_length": "it counts later events too",
}
SLICES = {"cold_item": pl.Boolean, "cold_user": pl.Boolean}


class FeatureError(ValueError):
    """A declared feature cannot be one; nothing was computed."""


@dataclass(frozen=True)
class Declared:
    """The features to compute, every name checked."""

    categorical: list[str]
    numerical: list[str]
    context: dict[str, pl.DataType]  # those that are computed, not read
    min_count: int
    log1p: list[str] | None

    @classmethod
    def read(
        cls, settings: Mapping | None, defaults: Mapping, schema: Mapping[str, pl.DataType], events: Iterable[str]
    ) -> "Declared":
        """Check `recommend.features`; a key that it lacks is the dataset's own.

        Args:
            settings: categorical and numerical (lists of columns or context features), history (column -> how many
                earlier values), texts (column -> how many earlier values are written to the rows, but encoded by
                tasks/vectors.py only), min_count and log1p (see `Encoder.fit`).
            schema: columns of the events.

        Raises:
            FeatureError: names every unknown feature with the closest ones, and every one that would leak.
        """
        events, chosen = list(events), {**defaults, **(settings or {})}
        known = ("categorical", "numerical", "history", "texts", "min_count", "log1p")
        if unknown := [key for key in chosen if key not in known]:
            raise FeatureError(
                f"recommend.features has unknown keys: {', '.join(map(str, unknown))}; it has {', '.join(known)}"
            )
        for key in ("categorical", "numerical", "log1p"):
            if not isinstance(chosen.get(key) or [], list) or not all(
                isinstance(n, str) for n in chosen.get(key) or []
            ):
                raise FeatureError(f"recommend.features.{key} is {chosen[key]!r}; write a list of names")
        for key in ("history", "texts"):
            if not isinstance(chosen.get(key) or {}, Mapping):
                raise FeatureError(f"recommend.features.{key} is {chosen[key]!r}; write {{column: how many}}")
        categorical, numerical = list(chosen.get("categorical") or []), list(chosen.get("numerical") or [])
        min_count, log1p, texts = chosen.get("min_count", 1), chosen.get("log1p"), {}
        faults = (
            [] if type(min_count) is int and min_count >= 1 else [f"min_count is {min_count!r}; it must be 1 or more"]
        )
        past_of = [(key, *pair) for key in ("history", "texts") for pair in (chosen.get(key) or {}).items()]
        for key, column, depth in past_of:
            if column not in schema or type(depth) is not int or depth < 1:
                faults.append(f"{key}: {column}: {depth!r}; it needs a column of the events and how many, 1 or more"
                              + _closest(str(column), schema))  # fmt: skip
                continue
            if key == "texts":
                texts.update((f"hist_{column}_{k + 1}", schema[column]) for k in range(depth))
                continue
            (numerical if schema[column].is_float() else categorical).extend(
                f"hist_{column}_{k + 1}" for k in range(depth)
            )
        context = {}
        for name in [*categorical, *numerical]:
            past = re.sub(r"^hist_(.+)_\d+$", r"\1", name)
            if name in NO_FEATURES or past in NO_FEATURES and past != "event_id":  # what happened before may be told
                faults.append(f"{name} cannot be a feature: {NO_FEATURES[past]}")
            elif name not in schema:
                context[name] = context_type(name, schema, events)
                if context[name] is None:
                    faults.append(f"there is no feature {name}{_closest(name, _features(schema, events))}")
        if not [*categorical, *numerical]:
            faults.append("no feature is declared; name at least one under categorical or numerical")
        faults = faults or unfit({**schema, **context}, categorical, numerical)
        if faults:
            raise FeatureError(f"recommend.features: {'; '.join(faults)}")
        return cls(categorical, numerical, texts | context, min_count, log1p)


def make_features(settings: Mapping, ingest: Path, out: Path, defaults: Mapping, events: Iterable[str]) -> dict:
    """Write the folder `out`; see the module's first lines, and `manifest.json` for what was written.

    Args:
        settings: the `recommend` part of params.yaml: `features` and `negatives` are read.
        ingest: folder of the ingested dataset.
        defaults: the dataset's FEATURES.
        events: the dataset's EVENTS.

    Returns:
        The manifest.

    Raises:
        FeatureError, SettingsError, EmptySplit, EncodingError: see there; `out` stays as it was.
    """
    buckets = sorted((ingest / "events").glob("bucket=*/*.parquet"), key=lambda p: int(p.parent.name.split("=")[1]))
    if not buckets:
        raise FileNotFoundError(f"{ingest}/events holds no bucket=<k>/*.parquet; run its ingest stage first")
    log = pl.scan_parquet(buckets, hive_partitioning=False)
    schema, events = dict(log.collect_schema()), list(events)
    declared = Declared.read(settings.get("features"), defaults, schema, events)
    negatives = _negatives(settings.get("negatives"))
    counts = {kind: negatives[kind] for kind in KINDS} if VIEW in events else dict.fromkeys(KINDS, 0)
    shared = Shared.read(log, buckets, counts, "item_events_before" in declared.context)
    item_columns = [name for name in schema if shared.items is not None and name in shared.items.columns]
    with new_folder(out) as folder:
        written = Written()
        with progress(len(buckets), "features", "bucket") as bar:
            for number, bucket in enumerate(buckets):
                frame = pl.read_parquet(bucket, hive_partitioning=False)
                rng = np.random.default_rng([negatives["seed"], number])
                written.add(_rows(frame, shared, declared, rng, written.drawn), folder, number)
                bar.update()
        if empty := [split for split in SPLITS if not written.parts[split]]:
            listed = ", ".join(empty)
            raise EmptySplit(f"{ingest}: no rows in {listed}; widen datasets.<name>.split, or bring a longer log")
        del shared  # the encoder needs its memory
        _join(written.parts, folder)
        encoder = _encode(folder, declared)
        manifest = {
            "categorical": encoder.categorical,
            "sizes": encoder.sizes,
            "numerical": encoder.numerical,
            "log1p": [scale.name for scale in encoder.scales if scale.log1p],
            "added": {name: str(kind) for name, kind in _added(declared).items()},
            "event_names": events,
            "events": {
                split: {e: written.seen[split][e] for e in events if written.seen[split][e]} for split in SPLITS
            },
            "rows": {split: _counts(folder / f"rows/{split}.parquet") for split in SPLITS},
            "negatives": {k: {"asked": written.drawn["views"] * counts[k], "drawn": written.drawn[k]} for k in KINDS},
            "item_columns": item_columns,
            "encoder": digest(folder / "encoder.json"),
            "data": digest(ingest / "manifest.json"),  # which holds the digest of all of it
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


class Written:
    """What the buckets gave so far: files per split, rows per event and split, views and sampled rows per kind."""

    def __init__(self):
        self.parts: dict[str, list[Path]] = {split: [] for split in SPLITS}
        self.seen: dict[str, Counter] = {split: Counter() for split in SPLITS}
        self.drawn: Counter = Counter()

    def add(self, rows: pl.DataFrame, folder: Path, number: int) -> None:
        """Put the rows of bucket `number` aside, by split."""
        (folder / ".parts").mkdir(exist_ok=True)
        for split in SPLITS:
            chosen, path = rows.filter(pl.col("split") == split), folder / f".parts/{split}-{number}.parquet"
            if len(chosen):
                chosen.write_parquet(path, compression="lz4")
                self.parts[split].append(path)
                self.seen[split].update(dict(chosen["event_id"].drop_nulls().value_counts().rows()))


def _join(parts: Mapping[str, list[Path]], folder: Path) -> None:
    """One numbered row table per split, as a stream."""
    (folder / "rows").mkdir()
    for split in SPLITS:
        rows = pl.scan_parquet(parts[split]).with_row_index("row")
        rows.sink_parquet(folder / f"rows/{split}.parquet", row_group_size=CHUNK)
    shutil.rmtree(folder / ".parts")


@dataclass(frozen=True)
class Shared:
    """What the buckets have in common: facts about items, and which users and items training knows."""

    items: pl.DataFrame | None  # item, day of its first event, its columns then; sorted by item
    popularity: Popularity | None
    sampler: Sampler | None
    trained: Mapping[str, np.ndarray]  # "item", "user" -> bool by number

    @classmethod
    def read(cls, log: pl.LazyFrame, buckets: list[Path], counts: Mapping[str, int], popular: bool) -> "Shared":
        trained = {name: _trained(log, name) for name in ("item", "user")}
        if not (popular or any(counts.values())):
            return cls(None, None, None, trained)
        day = pl.col("stime").dt.epoch("d").alias("day")
        popularity = Popularity(log.group_by("item", day).agg(events=pl.len()).collect(engine="streaming"))
        if not any(counts.values()):
            return cls(None, popularity, None, trained)
        items = _first_listings(buckets)
        own = [name for name in items.columns if name not in COLUMNS and name not in ("item", "day")]
        items = items.drop(set(own) - own_item_columns(buckets, items, own))
        return cls(items, popularity, Sampler(items, popularity, counts), trained)


def _first_listings(buckets: list[Path]) -> pl.DataFrame:
    """One row per item: its columns at its first event in time, of the user with the lowest number at a tie."""
    first = None
    for number, bucket in enumerate(buckets):
        here = pl.read_parquet(bucket, columns=["item", "stime"], hive_partitioning=False).with_row_index("place")
        here = here.sort("stime", maintain_order=True).unique("item", keep="first", maintain_order=True)
        here = here.with_columns(bucket=pl.lit(number, pl.UInt32))
        first = here if first is None else pl.concat([first, here])
        first = first.sort("stime", maintain_order=True).unique("item", keep="first", maintain_order=True)
    found = []
    for number, bucket in enumerate(buckets):
        places = first.filter(pl.col("bucket") == number)["place"].sort()
        if len(places):
            frame = pl.read_parquet(bucket, hive_partitioning=False)
            found.append(frame.select("item", "stime", *filter(_may_be_of_item, frame.columns))[places])
    return pl.concat(found).sort("item").with_columns(day=pl.col("stime").dt.epoch("d")).drop("stime")


def own_item_columns(buckets: list[Path], items: pl.DataFrame, own: list[str]) -> set[str]:
    """Which of a dataset's own columns describe the item, rather than the user or the moment.

    Those that repeat the value of the item's first event in nine of ten events, and at least as often as that of the
    user's first event. With an item's column left at the view's value, a sampled row could be told by its
    contradictions: a category not its own. The rule is ours.
    """
    by_item, by_user, events = Counter(), Counter(), 0
    for bucket in buckets if own else []:
        frame = pl.read_parquet(bucket, columns=["user", "item", *own], hive_partitioning=False)
        events += len(frame)
        of_item = items[np.searchsorted(items["item"].to_numpy(), frame["item"].to_numpy())]
        for name in own:
            of_user = frame.select(pl.col(name).first().over("user")).to_series()
            by_item[name] += frame[name].eq_missing(of_item[name]).sum()
            by_user[name] += frame[name].eq_missing(of_user).sum()
    return {name for name in own if by_item[name] >= max(by_user[name], 0.9 * events)}


def _rows(
    frame: pl.DataFrame, shared: Shared, declared: Declared, rng: np.random.Generator, drawn: Counter
) -> pl.DataFrame:
    """All rows of one bucket, a view followed by what was sampled beside it."""
    events = frame.with_columns(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("at"), pl.lit(None, pl.String).alias("sampled")
    )
    real = events.unique(ROW_KEY, keep="first", maintain_order=True)
    blocks = [real]
    if shared.sampler:
        views = real.filter(pl.col("event_id") == VIEW)
        drawn["views"] += len(views)
        for kind, item in shared.sampler.draw(views, _touched(frame), rng):
            some = np.flatnonzero(item)
            drawn[kind] += len(some)
            blocks.append(_sampled(views[some], item[some], kind, shared.items))
    rows = pl.concat(blocks).sort("at", maintain_order=True)
    rows = add_context(rows, declared.context, History(frame), shared.popularity)
    cold = [pl.Series(f"cold_{name}", ~shared.trained[name][rows[name].to_numpy()]) for name in ("item", "user")]
    first = ["user", "item", "session", "split", "user_id", "item_id", "stime", "event_id", "sampled"]
    return rows.with_columns(cold).select(*first, pl.exclude(*first, "at"))


def _sampled(views: pl.DataFrame, item: np.ndarray, kind: str, items: pl.DataFrame) -> pl.DataFrame:
    """The views' users, sessions and times with other items."""
    place = np.searchsorted(items["item"].to_numpy(), item)
    listing = items.drop("day")[place]
    return views.with_columns(
        *listing.get_columns(),
        pl.lit(None, views.schema["event_id"]).alias("event_id"),
        pl.lit(kind).alias("sampled"),
    )


def _touched(frame: pl.DataFrame) -> np.ndarray:
    """Sorted `session << 32 | item` of all events."""
    session, item = (frame[name].to_numpy().astype(np.uint64) for name in ("session", "item"))
    return np.unique(session << np.uint64(32) | item)


def _encode(folder: Path, declared: Declared) -> Encoder:
    """Fit on the training rows, then encode every split in pieces."""
    train = pl.scan_parquet(folder / "rows/train.parquet")
    encoder = Encoder.fit(train, declared.categorical, declared.numerical, declared.min_count, declared.log1p)
    write_text(folder / "encoder.json", encoder.to_json())
    for kind in ("categorical", "numerical"):
        (folder / kind).mkdir()
    for split in SPLITS:
        rows = pl.scan_parquet(folder / f"rows/{split}.parquet").select(encoder.categorical + encoder.numerical)
        count = rows.select(pl.len()).collect().item()
        with (
            _table(folder / f"categorical/{split}.npy", np.int32, (count, len(encoder.categorical))) as ids,
            _table(folder / f"numerical/{split}.npy", np.float32, (count, len(encoder.numerical))) as values,
        ):
            for start in range(0, count, CHUNK):
                some_ids, some_values = encoder.transform(rows.slice(start, CHUNK).collect())
                ids.write(some_ids.data)
                values.write(some_values.data)
    return encoder


@contextmanager
def _table(path: Path, kind: type, shape: tuple[int, int]) -> Iterator[BinaryIO]:
    """A numpy file to which rows are appended; a mapped one would stay in memory until its last row."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _counts(path: Path) -> dict[str, int | float]:
    """Rows of a split: all, real, sampled of each kind, and the shares of real rows whose item or user is cold."""
    real = pl.col("sampled").is_null()
    found = pl.scan_parquet(path).select(
        pl.len().alias("all"),
        real.sum().alias("real"),
        *((pl.col("sampled") == kind).sum().alias(kind) for kind in KINDS),
        *(pl.col(name).filter(real).mean().alias(f"{name}_share") for name in SLICES),
    )
    return found.collect().row(0, named=True)


def _trained(log: pl.LazyFrame, name: str) -> np.ndarray:
    """Which numbers occur in train: bool by number."""
    known = np.zeros(log.select(pl.col(name).max()).collect(engine="streaming").item() + 1, dtype=bool)
    trained = log.filter(pl.col("split") == "train").select(pl.col(name).unique()).collect(engine="streaming")
    known[trained.to_series().to_numpy()] = True
    return known


def _negatives(settings: Mapping | None) -> dict[str, int]:
    chosen = {"category": 0, "popularity": 0, "seed": 0} | dict(settings or {})
    wrong = [f"{k}: {v!r}" for k, v in chosen.items() if k not in (*KINDS, "seed") or type(v) is not int or v < 0]
    if wrong:
        raise SettingsError(
            f"recommend.negatives: {', '.join(wrong)}; it takes category, popularity and seed, each 0 or more"
        )
    return chosen


def _may_be_of_item(column: str) -> bool:
    return column not in (*COLUMNS, *ADDED) or column in ITEM or column.startswith(ITEM_PREFIXES)


def _added(declared: Declared) -> dict[str, pl.DataType]:
    """Columns of the row table that the events do not have."""
    return {"row": pl.UInt32, "sampled": pl.String, **declared.context, **SLICES}


def _features(schema: Iterable[str], events: Iterable[str]) -> list[str]:
    """Every name that can be declared, the open-ended hist_<column>_<k> aside."""
    counted = [f"user_{event}_before" for event in events] + [f"same_{column}_before" for column in schema]
    return [name for name in [*schema, *SIMPLE, *counted] if name not in NO_FEATURES]


def _closest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return f" (closest: {', '.join(get_close_matches(str(name), known, cutoff=0.5) or known[:10])})"


def main(address: str, ingest: str, out: str) -> None:
    """python -m tasks.features params.yaml:recommend INGEST OUT"""
    from tasks.fetch import dataset

    settings = read(address)
    source = dataset(settings["data"])
    manifest = make_features(settings, Path(ingest), Path(out), source.FEATURES, source.EVENTS)
    rows = ", ".join(f"{split} {manifest['rows'][split]['all']:,}" for split in SPLITS)
    sampled = sum(kind["drawn"] for kind in manifest["negatives"].values())
    fields, numbers = len(manifest["categorical"]), len(manifest["numerical"])
    print(f"{out}: rows {rows}, of which {sampled:,} sampled; {fields} categorical fields, {numbers} numbers")


if __name__ == "__main__":
    run(main)
