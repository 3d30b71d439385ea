"""Raw files -> one clean event log: duplicates removed, ids numbered, sessions cut, split by time; or nothing.

    survey      count rows per user and per minute in one scan: the split's borders and the buckets follow from it
    spill       one scan moves every row to its bucket, a range of users with about equally many rows
    number      each bucket lists its items; the lists are merged range by range, and items numbered in the order of ids
    arrange     bucket by bucket: sort, drop duplicates, number sessions, mark the split, write Parquet

Scans stream and a bucket fits in memory, so the peak hardly grows with the log (up to 128 buckets: about 100 million
rows of ten numbers and three strings; beyond, buckets grow). Nothing depends on the order of rows, nor on how they are
cut into files: the same rows give the same bytes. Sort keys are two small integers in one word; strings are compared
only between rows that are equal in them.
"""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tasks import interactions
from tasks.command import run
from tasks.fetch import dataset
from tasks.files import digest, new_folder, on_disk, write_json
from tasks.ingest_text import HELDOUT, ingest_text
from tasks.progress import progress
from tasks.settings import SettingsError, read

__all__ = ["EmptySplit", "RawUnreadable", "in_period", "ingest"]

REQUIRED = ("user_id", "stime", "event_id", "item_id")
ADDED = ("user", "item", "session", "split")
SPLITS = ("train", "val", "test")
KEY = ("session_id", "sequence_id")  # with user, item, event and time: equal rows are one event logged twice
BUCKET_BYTES = 160_000_000  # of a bucket in memory; sorting and writing it take about three times as much
BUCKETS = 128  # files that Polars keeps open at once
SPILL_ROWS = 16_384  # per row group of a spilled bucket: all buckets' open groups are in memory together
GROUP_ROWS = 262_144  # fixed, or the same rows would not give the same bytes
BATCH_ROWS = 1_000_000  # counted at once
RANGE_IDS = 4_000_000  # ids merged at once
REAL_DAY = 0.1  # of the median day's rows. MerRec's last day, cut off by its time zone, has 0.002 % (ours)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = 60_000_000  # microseconds
DAY = 1440  # minutes


class EmptySplit(ValueError):
    """The borders leave train, val or test without rows."""


class RawUnreadable(ValueError):
    """A raw file is missing, truncated, or not what the dataset's read() expects."""


@dataclass(frozen=True)
class Survey:
    """What one scan over the raw rows tells, duplicates included."""

    users: pl.DataFrame  # user_id (ascending), len (rows), first (time of the first row, microseconds since 1970)
    minutes: pl.DataFrame  # minute (since 1970, ascending), len (rows)

    @property
    def rows(self) -> int:
        return self.users["len"].sum()


def ingest(events: pl.LazyFrame, out: str | Path, split: Mapping[str, float], idle_minutes: float = 30) -> dict:
    """Write the event log of a dataset to the folder `out`, whole or not at all.

    Args:
        events: the event schema, see `tasks/datasets/_schema.py`; a dataset's own columns are kept as they are.
        out: takes `events/bucket=<k>/part.parquet` (the columns of `events`, then user, item, session: UInt32 from 1,
            and split: Enum; sorted by user, stime, item, event_id, also from one bucket to the next), `users.parquet`
            (user, user_id) and `items.parquet` (item, item_id) in the order of ids, and `manifest.json`.
        split: `{val_days, test_days}`, whole UTC days counted back from the last day with a real share of the rows; or
            `{val, test}`, fractions of the rows in time order, where rows of one time stay together in the later split.
        idle_minutes: a user's rows without session_id form one session until a longer pause than this.

    Returns:
        The manifest.

    Raises:
        EmptySplit: a split would have no rows.
        RawUnreadable: a raw file cannot be read to its end.
        DiskFull: says where, and how full.
        ValueError: a required column is missing or has nulls, a column has a name that ingestion gives, no rows at all.
        SettingsError: `split` has neither form.
    """
    # Row groups that a scan decodes ahead. More brings no speed, only memory: 388 MB against 156 MB for a bare scan.
    os.environ.setdefault("POLARS_ROW_GROUP_PREFETCH_SIZE", "1")
    with new_folder(out) as folder:
        spill = folder / ".spill"
        with _reading(), on_disk(out):  # a full disk is no fault of what is read
            _check_columns(events.collect_schema())
            seen = _survey(events)
            borders = _borders(events, seen, split)
            users = _buckets(seen, events.collect_schema(), borders["val"])
            _spill(events, users, spill)
        items = _number_items(spill, folder / "items.parquet")
        _write(users.select("user", "user_id"), folder / "users.parquet")
        counts = _arrange(spill, users, items, folder / "events", borders, idle_minutes)
        shutil.rmtree(spill)
        manifest = {
            "rows_in": seen.rows,
            "duplicates_removed": seen.rows - counts["rows"],
            "users": users.height,
            "items": items,
            "borders": {name: _moment(border) for name, border in borders.items()},
            "settings": {"split": dict(split), "idle_minutes": idle_minutes},
            **counts,
            "digest": digest(folder),
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, FileNotFoundError) as error:
        raise RawUnreadable(f"the raw events cannot be read; nothing was written, fetch them again\n{error}") from None


def _check_columns(schema: pl.Schema) -> None:
    if missing := [name for name in REQUIRED if name not in schema]:
        raise ValueError(f"the events lack {', '.join(missing)}; the dataset's read() must give all of {REQUIRED}")
    if taken := [name for name in ADDED if name in schema]:
        raise ValueError(f"the events have {', '.join(taken)}, which ingestion adds; rename it in the dataset's read()")


def _survey(events: pl.LazyFrame) -> Survey:
    """Count in batches: a streaming group-by keeps every partial group of a log in time order until the end."""
    time = pl.col("stime").to_physical()
    users, minutes, nulls = _Counts("user_id"), _Counts("minute"), Counter()
    batches = events.select(REQUIRED).collect_batches(chunk_size=BATCH_ROWS, maintain_order=False, engine="streaming")
    for batch in batches:
        users.add(batch.select("user_id", first=time))
        minutes.add(batch.select(minute=time // MINUTE, first=time))
        nulls.update(batch.null_count().row(0, named=True))
    if not any(part.height for part in users.parts):
        raise ValueError("the raw files hold no events; fetch them again")
    if faults := [f"{name} ({count} rows)" for name, count in nulls.items() if count]:
        raise ValueError(f"required columns with nulls: {', '.join(faults)}; mend the source, or drop them in read()")
    return Survey(users.total(), minutes.total())


class _Counts:
    """Rows and first time by key, in memory that follows the number of keys."""

    def __init__(self, key: str):
        self.key, self.parts = key, []

    def add(self, batch: pl.DataFrame) -> None:
        self.parts.append(batch.group_by(self.key).agg(pl.len().cast(pl.Int64), pl.col("first").min()))
        if sum(part.height for part in self.parts[1:]) > max(BATCH_ROWS, self.parts[0].height):
            self.parts = [self.total()]

    def total(self) -> pl.DataFrame:
        """All keys in ascending order."""
        sums = pl.concat(self.parts).group_by(self.key).agg(pl.col("len").sum(), pl.col("first").min())
        return sums.sort(self.key)


# Split by time


def _borders(events: pl.LazyFrame, seen: Survey, split: Mapping[str, float]) -> dict[str, int]:
    """First time of val and of test, microseconds since 1970."""
    if set(split) == {"val_days", "test_days"}:
        found = _borders_by_days(seen, split["val_days"], split["test_days"])
    elif set(split) == {"val", "test"}:
        found = _borders_by_shares(events, seen, split["val"], split["test"])
    else:
        raise SettingsError(f"split has {sorted(split)}; it takes val_days and test_days, or val and test (fractions)")
    (val, before_val), (test, before_test) = found
    sizes = {"train": before_val, "val": before_test - before_val, "test": seen.rows - before_test}
    if empty := [name for name, rows in sizes.items() if not rows]:
        first, last = (_moment(seen.minutes["minute"][end] * MINUTE) for end in (0, -1))
        raise EmptySplit(
            f"{' and '.join(empty)} would be empty (rows: {sizes}): val starts at {_moment(val)}, test at "
            f"{_moment(test)}, and the events reach from {first} to {last}; change the dataset's split"
        )
    return {"val": val, "test": test}


def _borders_by_days(seen: Survey, val_days: int, test_days: int) -> list[tuple[int, int]]:
    """Time of each border, and rows before it."""
    if not all(type(days) is int and days >= 1 for days in (val_days, test_days)):
        raise SettingsError(f"val_days and test_days are whole days from 1 on; got {val_days} and {test_days}")
    day = pl.col("minute") // DAY
    days = seen.minutes.group_by(day).agg(pl.col("len").sum())
    last = days.filter(pl.col("len") >= REAL_DAY * pl.col("len").median())["minute"].max()
    borders = last + 1 - test_days - val_days, last + 1 - test_days
    return [(border * DAY * MINUTE, seen.minutes.filter(day < border)["len"].sum()) for border in borders]


def _borders_by_shares(events: pl.LazyFrame, seen: Survey, val: float, test: float) -> list[tuple[int, int]]:
    """Time of each border, and rows before it."""
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise SettingsError(f"val and test are fractions above 0 that leave some rows to train; got {val} and {test}")
    tested = max(1, round(seen.rows * test))
    held = max(1, round(seen.rows * val)) + tested
    return [_time_of_row(events, seen.minutes, max(0, seen.rows - rows)) for rows in (held, tested)]


def _time_of_row(events: pl.LazyFrame, minutes: pl.DataFrame, position: int) -> tuple[int, int]:
    """Time of the row at a position in time order, and how many rows are earlier; sorts the rows of its minute only."""
    ends = minutes["len"].cum_sum()
    index = ends.search_sorted(position, side="right")
    before = ends[index] - minutes["len"][index]
    time = pl.col("stime").to_physical()
    times = events.filter(time // MINUTE == minutes["minute"][index]).select(time).collect(engine="streaming")["stime"]
    border = times.sort()[position - before]
    return border, before + (times < border).sum()


def _moment(microseconds: int) -> str:
    return (EPOCH + timedelta(microseconds=microseconds)).isoformat()


# Buckets of users


def _buckets(seen: Survey, schema: pl.Schema, val: int) -> pl.DataFrame:
    """Number the users in the order of ids, and cut them into ranges with about equally many rows.

    Returns:
        user (UInt32, from 1), user_id, bucket (UInt16, from 0), trained (Boolean: has a row in train).
    """
    row = sum(48 if kind == pl.String else 8 for kind in schema.dtypes())  # by type: the same for the same rows
    count = min(BUCKETS, -(-seen.rows * row // BUCKET_BYTES))
    before = pl.col("len").cum_sum() - pl.col("len")
    return seen.users.select(
        pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).alias("user"),
        "user_id",
        (before * count // seen.rows).rle_id().cast(pl.UInt16).alias("bucket"),  # no gap where one user fills several
        (pl.col("first") < val).alias("trained"),
    )


def _spill(events: pl.LazyFrame, users: pl.DataFrame, spill: Path) -> None:
    """Write spill/rows/<k>/: all columns of the rows of bucket k, in any order."""
    lowest = users.group_by("bucket").agg(pl.col("user_id").min()).sort("bucket")["user_id"][1:]
    bucket = pl.col("user_id").map_batches(
        lambda ids: lowest.search_sorted(ids, side="right").cast(pl.UInt16), return_dtype=pl.UInt16, is_elementwise=True
    )
    events.with_columns(bucket.alias(".bucket")).sink_parquet(
        pl.PartitionBy(
            spill / "rows",
            key=".bucket",
            include_key=False,
            approximate_bytes_per_file=None,
            file_path_provider=lambda part: f"{part.partition_keys.item():03d}/{part.index_in_partition}.parquet",
        ),
        compression="uncompressed",
        statistics=False,
        row_group_size=SPILL_ROWS,
        maintain_order=False,
        mkdir=True,
    )


# Numbers of items


def _number_items(spill: Path, out: Path) -> int:
    """Number the items in the order of ids, over all buckets; returns how many there are.

    Writes `out` (item, item_id) and, for each bucket, spill/items/<k>/: its items in the same form.
    """
    lists = []
    for bucket in sorted((spill / "rows").iterdir()):
        ids = pl.read_parquet(bucket / "*.parquet", columns=["item_id"])["item_id"]
        lists.append(spill / "lists" / f"{bucket.name}.parquet")
        _write(ids.unique().sort().to_frame(), lists[-1])
    count = 0
    for index, parts in enumerate(_ranges(lists)):
        ids = pl.concat(parts).unique().sort()
        numbers = pl.int_range(count + 1, count + 1 + ids.len(), dtype=pl.UInt32, eager=True).alias("item")
        count += ids.len()
        _write(pl.DataFrame([numbers, ids]), spill / "items" / f"{index:06d}.parquet")
        for part, listed in zip(parts, lists, strict=True):
            known = pl.DataFrame([numbers[ids.search_sorted(part)], part])
            _write(known, spill / "items" / listed.stem / f"{index:06d}.parquet")
    pl.scan_parquet(sorted((spill / "items").glob("*.parquet"))).sink_parquet(out, row_group_size=GROUP_ROWS)
    return count


def _ranges(lists: list[Path]) -> Iterator[list[pl.Series]]:
    """Cut files of one sorted column at common borders: yields each file's part, together about RANGE_IDS values."""
    sample = pl.concat([pl.read_parquet(path).to_series().gather_every(1000) for path in lists]).sort()
    rows = pl.scan_parquet(lists).select(pl.len()).collect().item()
    count = max(1, -(-rows // RANGE_IDS))
    borders = [sample[sample.len() * index // count] for index in range(1, count)]
    value = pl.col(sample.name)
    above = [pl.lit(True), *(value >= border for border in borders)]
    below = [*(value < border for border in borders), pl.lit(True)]
    for low, high in zip(above, below, strict=True):
        yield [pl.scan_parquet(path).filter(low & high).collect().to_series() for path in lists]


# Bucket by bucket


def _arrange(
    spill: Path, users: pl.DataFrame, items: int, out: Path, borders: Mapping[str, int], idle_minutes: float
) -> dict:
    """Write every bucket's part of the log; returns what the manifest says about rows, sessions and splits."""
    facts, sessions, idle = [], 0, 0
    trained = np.zeros(items + 1, bool)  # by item number: has a row in train
    with progress(users["bucket"].n_unique(), "ingest", "bucket") as bar:
        for (bucket,), known in users.group_by("bucket", maintain_order=True):
            name = f"{bucket:03d}"
            raw = pl.read_parquet(
                spill / "rows" / name / "*.parquet"
            ).rechunk()  # else a gather takes nine times as long
            numbers = pl.read_parquet(spill / "items" / name / "*.parquet")
            log = raw.hstack([*_look_up(raw["user_id"], known.drop("bucket")), *_look_up(raw["item_id"], numbers)])
            log = log[_order(log, raw.columns)]
            session, ids = _sessions(log, idle_minutes)
            log = log.with_columns(pl.Series("session", session + sessions, pl.UInt32), _split(borders))
            _write(log.select(*raw.columns, *ADDED), out / f"bucket={name}" / "part.parquet")
            trained[log.filter(pl.col("split") == "train")["item"].to_numpy()] = True
            held = log.filter(pl.col("split") != "train").select("split", "item", "trained")
            _write(held, spill / "held" / f"{name}.parquet")
            _write(ids.drop_nulls().hash().unique().sort().to_frame(), spill / "sessions" / f"{name}.parquet")
            facts.append(_facts(log))
            sessions, idle = sessions + ids.len(), idle + ids.null_count()
            bar.update()
    by_id = sum(pl.concat(parts).n_unique() for parts in _ranges(sorted((spill / "sessions").iterdir())))
    return {
        "buckets": len(facts),
        "columns": [*raw.columns, *ADDED],
        "sessions": sessions,
        "sessions_cut_by_idle_time": idle,
        "sessions_by_id_alone": by_id,
        **_summary(pl.concat(facts)),
        "cold": _cold(sorted((spill / "held").iterdir()), trained),
    }


def _look_up(ids: pl.Series, known: pl.DataFrame) -> list[pl.Series]:
    """What `known` says about each id, as columns beside it."""
    return ids.to_frame().join(known, on=ids.name, how="left", maintain_order="left").drop(ids.name).get_columns()


def _split(borders: Mapping[str, int]) -> pl.Expr:
    time = pl.col("stime").to_physical()
    name = pl.when(time < borders["val"]).then(pl.lit("train")).when(time < borders["test"]).then(pl.lit("val"))
    return name.otherwise(pl.lit("test")).cast(pl.Enum(SPLITS)).alias("split")


def _order(log: pl.DataFrame, columns: list[str]) -> np.ndarray:
    """Rows to keep, in the order to write: by user, time, item, event, session and sequence.

    Of rows equal in all of these, the one that is least in the remaining columns stays (nulls come first).
    """
    key = [name for name in KEY if name in columns]
    rest = [name for name in columns if name not in (*REQUIRED, *KEY)]
    moment = pl.col("stime").rank("dense").cast(pl.UInt64)  # both halves of the word are below 2^32, whatever the times
    word = log.select(pl.col("user").cast(pl.UInt64) * 2**32 + moment).to_series()
    order = word.arg_sort()
    word = word[order].to_numpy()
    order, fresh = order.to_numpy().copy(), np.ones(len(word), bool)
    fresh[1:] = word[1:] != word[:-1]
    _refine(log, order, fresh, ["item", "event_id"])
    _refine(log, order, fresh, key)
    kept = fresh.copy()
    _refine(log, order, fresh, rest)
    return order[kept]


def _refine(log: pl.DataFrame, order: np.ndarray, fresh: np.ndarray, columns: list[str]) -> None:
    """Sort the rows that are still equal by further columns, in place; `fresh`: differs from the row before."""
    equal = ~fresh
    equal[:-1] |= ~fresh[1:]
    at = np.flatnonzero(equal)
    if not len(at) or not columns:
        return
    rows = log.select(columns)[order[at]]
    rows.columns = [f"column_{index}" for index in range(len(columns))]
    compared = list(rows.columns)
    rows = rows.with_columns(group=np.cumsum(fresh)[at], row=order[at]).sort("group", *compared)
    order[at] = rows["row"].to_numpy()
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in compared)
    fresh[at] |= rows.select(differs).to_series().to_numpy()


def _sessions(log: pl.DataFrame, idle_minutes: float) -> tuple[np.ndarray, pl.Series]:
    """Number the sessions of sorted rows in the order of their first rows.

    Returns:
        (rows,) number from 1, and each session's session_id (null: cut by idle time).
    """
    ids = log["session_id"] if "session_id" in log.columns else pl.repeat(None, log.height, dtype=pl.String, eager=True)
    cut = np.zeros(log.height, np.uint32)
    if (lone := ids.is_null()).any():
        pause = pl.col("stime").diff() > pl.duration(microseconds=round(idle_minutes * MINUTE))
        begins = pause.fill_null(True) | (pl.col("user") != pl.col("user").shift())
        cut[lone.to_numpy()] = log.filter(lone).select(begins.fill_null(True).cum_sum()).to_series()
    rows = pl.DataFrame({"user": log["user"], "id": ids, "cut": cut})
    turn = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in rows.columns)
    turns = rows.select(turn).to_series().to_numpy()
    heads = rows.filter(turns)  # several of one session where it alternates with another; only these are grouped
    first = heads.with_row_index("at").select(pl.col("at").min().over("user", "id", "cut")).to_series().to_numpy()
    new = first == np.arange(len(first))
    return np.cumsum(new)[first][np.cumsum(turns) - 1], heads["id"].filter(new)


def _facts(log: pl.DataFrame) -> pl.DataFrame:
    time = pl.col("stime")
    return log.group_by("split", "event_id").agg(rows=pl.len(), first=time.min(), last=time.max())


def _summary(facts: pl.DataFrame) -> dict:
    """Rows, times and event mix of the whole log and of each split, from the facts of all buckets."""
    rows = facts["rows"].sum()
    splits = {}
    for name in SPLITS:
        part = facts.filter(pl.col("split") == name)
        splits[name] = {
            "rows": part["rows"].sum(),
            "share": part["rows"].sum() / rows,
            "first": part["first"].min().isoformat(),
            "last": part["last"].max().isoformat(),
            "events": _mix(part),
        }
    return {"rows": rows, "events": _mix(facts), "splits": splits}


def _mix(facts: pl.DataFrame) -> dict[str, dict[str, float]]:
    events = facts.group_by("event_id").agg(pl.col("rows").sum()).sort("event_id")
    rows = events["rows"].sum()
    return {name: {"rows": count, "share": count / rows} for name, count in events.iter_rows()}


def _cold(held: list[Path], trained: np.ndarray) -> dict[str, dict[str, float]]:
    """Shares of the rows of val and of test whose item, user, or both have no row in train."""
    counts = {name: Counter() for name in SPLITS[1:]}
    for path in held:
        for (name,), rows in pl.read_parquet(path).group_by("split"):
            item, user = ~trained[rows["item"].to_numpy()], ~rows["trained"].to_numpy()
            counts[name].update(
                rows=len(item), item=int(item.sum()), user=int(user.sum()), both=int((item & user).sum())
            )
    return {
        name: {f"{kind}_share": float(count[kind] / count["rows"]) for kind in ("item", "user", "both")}
        for name, count in counts.items()
    }


def _write(frame: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.rechunk().write_parquet(path, compression="zstd", compression_level=1, row_group_size=GROUP_ROWS)


def in_period(events: pl.LazyFrame, since: str | date | None = None, until: str | date | None = None) -> pl.LazyFrame:
    """The events of since <= stime < until, as if the log had been read at `until`; in UTC, None for no border.

    Raises:
        SettingsError: a border is no date or time, or no event lies between them; names the log's first and last.
    """
    borders = {name: _border(name, value) for name, value in {"since": since, "until": until}.items() if value}
    time, chosen = pl.col("stime"), events
    if "since" in borders:
        chosen = chosen.filter(time >= borders["since"])
    if "until" in borders:
        chosen = chosen.filter(time < borders["until"])
    if borders and not chosen.select(pl.len()).collect(engine="streaming").item():
        first, last = events.select(time.min(), time.max().alias("last")).collect(engine="streaming").row(0)
        raise SettingsError(f"no event from {since} until {until}: the log runs from {first} to {last}, UTC")
    return chosen


def _border(name: str, value: str | date) -> datetime:
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        raise SettingsError(f"{name} is {value!r}; write a date or time, 2023-05-01 or 2023-05-01T12:00") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _texts(name: str, settings: dict, raw: Path, out: str) -> None:
    """A dataset with a KIND holds texts, not events."""
    module = dataset(name)
    size = sum(file.stat().st_size for file in raw.rglob("*") if file.is_file())
    needs, filters = getattr(module, "NEEDS", None), settings.get("filters")
    manifest = ingest_text(
        module.KIND, module.read(raw), size, out, settings.get("heldout", HELDOUT), filters=filters, needs=needs
    )
    sizes = ", ".join(f"{split} {rows}" for split, rows in manifest["rows"].items())
    removed = manifest["duplicates_removed"] + manifest["overlaps_removed"]
    languages = ", ".join(manifest["languages"]) or "no language stated"
    print(f"{out}: {sum(manifest['rows'].values())} {module.KIND} ({sizes}), {removed} duplicates removed, {languages}")
    for reason, count in sorted(manifest.get("filters", {}).get("dropped", {}).items()):
        print(f"warning: {name}: dropped {count:,} texts ({reason})", file=sys.stderr)


def main(address: str, raw: str, out: str) -> None:
    """python -m tasks.ingest params.yaml:datasets.sample data/sample artifacts/ingest/sample"""
    name = address.rpartition(".")[2]
    settings = read(address)
    if getattr(dataset(name), "KIND", "") == interactions.KIND:
        interactions.main(address, raw, out)
        return
    if hasattr(dataset(name), "KIND"):
        _texts(name, settings, Path(raw), out)
        return
    if "split" not in settings:
        raise SettingsError(f"{address} has no split; give it {{val_days: 3, test_days: 3}} or {{val: 0.1, test: 0.1}}")
    with _reading():
        events = in_period(dataset(name).read(Path(raw)), settings.get("since"), settings.get("until"))
    manifest = ingest(events, out, settings["split"], settings.get("idle_minutes", 30))
    sizes = ", ".join(f"{split} {manifest['splits'][split]['rows']}" for split in SPLITS)
    print(
        f"{out}: {manifest['rows']} events ({sizes}), {manifest['duplicates_removed']} duplicates removed, "
        f"{manifest['users']} users, {manifest['items']} items, {manifest['sessions']} sessions"
    )


if __name__ == "__main__":
    run(main)
