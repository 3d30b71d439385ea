"""A clean event log -> sequences of items: sessions by user and session, in time order, ids of the training split.

    train   every sequence's part in the training split, cut into windows: each step from item to item is in one of them
    val     the last event of each sequence that has one in val, after the events before it; test likewise

Ids: 0 is padding, 1 an item that training does not know, 2 and up the training items in the order of their values. A
session's id is unique only together with its user's, so a key without the user is refused. The protocol is ours: the
benchmark's published code cuts by place in the sequence, not by time, and samples without a seed (arXiv:2402.14230).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

__all__ = [
    "Cases",
    "Intents",
    "SequenceError",
    "Sequences",
    "Vocabulary",
    "clicks",
    "intents",
    "read_log",
    "sequences",
]

PADDING, UNKNOWN, FIRST = 0, 1, 2
SPLITS = ("train", "val", "test")
KEY = ("user", "session")


class SequenceError(ValueError):
    """A log from which no sequences can be made as asked."""


@dataclass(frozen=True)
class Vocabulary:
    """Values of a column and their ids."""

    values: pl.Series  # ascending; value i has the id i + FIRST

    @classmethod
    def of(cls, values: pl.Series, least: int = 1) -> "Vocabulary":
        """The values seen at least so often, nulls left out."""
        counts = values.drop_nulls().value_counts(name="rows")
        return cls(counts.filter(pl.col("rows") >= least)[values.name].sort())

    @property
    def items(self) -> int:
        """I: the largest id, so a model for it has I items, the unknown one among them."""
        return len(self.values) + UNKNOWN

    def encode(self, values: pl.Series) -> np.ndarray:
        """Ids of these values, int32; what is not in the vocabulary, or null, is 1."""
        if not len(self.values):
            return np.full(len(values), UNKNOWN, np.int32)
        ids = pl.DataFrame({"value": self.values, "id": np.arange(FIRST, FIRST + len(self.values), dtype=np.int32)})
        found = pl.DataFrame({"value": values}).join(ids, on="value", how="left", maintain_order="left")
        return found["id"].fill_null(UNKNOWN).to_numpy()


@dataclass(frozen=True)
class Cases:
    """What is asked of a model on one split."""

    items: np.ndarray  # (N, T) int32, padding in front
    targets: np.ndarray  # (N, K) int32, what followed, in order; 1 for an item that training does not know
    user: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Sequences:
    """Rows of ids by split."""

    vocabulary: Vocabulary
    train: np.ndarray  # (N, length + 1) int32 windows, padding in front; with steps: Cases
    val: Cases
    test: Cases
    steps: Cases | None  # training cases with `steps` targets each; None for next-item training
    length: int


@dataclass(frozen=True)
class Intents:
    """Sessions up to some moment, and whether a purchase follows; see `intents`."""

    items: np.ndarray  # (N, T) int32, padding in front
    events: np.ndarray  # (N, T) int32, 1 for the first name of the dataset's events
    gaps: np.ndarray  # (N, T) float32, seconds since the event before
    label: np.ndarray  # (N,) float32
    user: np.ndarray  # (N,) int64

    def arrays(self) -> dict[str, np.ndarray]:
        """What a model's forward takes."""
        return {"items": self.items, "events": self.events, "gaps": self.gaps, "label": self.label}


def read_log(ingest: str | Path, columns: Sequence[str] = ()) -> pl.DataFrame:
    """The ingested events, their numbers and times, and further columns where the log has them.

    Raises:
        FileNotFoundError: no ingested events there.
    """
    files = sorted(Path(ingest).glob("events/bucket=*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{ingest}/events holds no bucket=<k>/*.parquet; run its ingest stage first")
    log = pl.scan_parquet(files, hive_partitioning=False)
    there = log.collect_schema().names()
    wanted = ["user", "session", "item", "stime", "event_id", "split", *columns]
    return log.select(name for name in dict.fromkeys(wanted) if name in there).collect()


def sequences(
    log: pl.DataFrame,
    key: Sequence[str] = KEY,
    unit: str = "item",
    length: int = 20,
    least: int = 2,
    min_count: int = 1,
    collapse: bool = True,
    steps: int = 0,
    whole: bool = False,
) -> Sequences:
    """Sequences of all splits.

    Args:
        log: rows with the key's columns, `stime`, `split` (train, val, test, in this order in time) and the unit.
        key: columns that make a sequence; must hold the user, unless a log has none.
        unit: column whose values are the items.
        length: items of a history at most.
        least: events of a sequence, shorter ones are left out; 2 or more, and more than `steps`.
        min_count: items seen less often in training share the unknown id.
        collapse: of an item several times in a row (viewed, then liked) one event is kept.
        steps: targets of each case; 0 for next-item windows and one target.
        whole: ids for all items of the log, not the training's alone: for models that know items by their content.

    Raises:
        SequenceError: a column is missing, a key without the user, a setting outside its range, a split without rows.
    """
    _check(log, [*key, unit, "stime", "split"], key, length, least, steps)
    log = log.sort(*key, "stime", maintain_order=True)
    log = log.with_columns(group=pl.struct(key).rle_id())
    if collapse:
        same = (pl.col(unit) == pl.col(unit).shift()) & (pl.col("group") == pl.col("group").shift())
        log = log.filter(~same.fill_null(False))
    log = log.filter(pl.len().over("group") >= least)
    train = log if whole else log.filter(pl.col("split") == "train")
    if not len(train):
        raise SequenceError(
            f"no sequence of {least} events or more lies in train; lower `least`, or bring a longer log"
        )
    vocabulary = Vocabulary.of(train[unit], min_count)
    flat = _Flat.of(log, vocabulary.encode(log[unit]))
    horizon = max(steps, 1)
    cases = {split: flat.cases(split, length, horizon, every=split == "train") for split in SPLITS}
    windows = flat.windows(length)
    empty = [
        name for name, rows in {"train": windows, "val": cases["val"], "test": cases["test"]}.items() if not len(rows)
    ]
    if empty:
        raise SequenceError(f"no sequence with more than {horizon} events ends in {', '.join(empty)}; widen the split, "
                            f"or bring a longer log")  # fmt: skip
    return Sequences(vocabulary, windows, cases["val"], cases["test"], cases["train"] if steps else None, length)


@dataclass(frozen=True)
class _Flat:
    """All sequences one after another."""

    ids: np.ndarray  # (E,)
    user: np.ndarray  # (E,)
    start: np.ndarray  # (S,) first event of each sequence
    ends: dict[str, np.ndarray]  # of each split, (S,): one past its last event there, or past those before it

    @classmethod
    def of(cls, log: pl.DataFrame, ids: np.ndarray) -> "_Flat":
        _, start = np.unique(log["group"].to_numpy(), return_index=True)
        code = log["split"].cast(pl.String).replace_strict({name: i for i, name in enumerate(SPLITS)}).to_numpy()
        size = np.diff(np.append(start, len(log)))
        sequence = np.repeat(np.arange(len(start)), size)
        ends = {}
        for number, name in enumerate(SPLITS):
            ends[name] = start + np.bincount(sequence, weights=code <= number, minlength=len(start)).astype(np.int64)
        user = log["user"].to_numpy() if "user" in log.columns else sequence
        return cls(ids, user.astype(np.int64), start, ends)

    def windows(self, length: int) -> np.ndarray:
        """Windows of length + 1 events of the training parts, from their ends backwards, one event in common."""
        size = self.ends["train"] - self.start
        count = np.maximum(-(-(size - 1) // length), 0)
        row = np.repeat(np.arange(len(size)), count)
        number = np.arange(len(row)) - np.repeat(count.cumsum() - count, count)
        return self._take(self.ends["train"][row] - number * length, self.start[row], length + 1)

    def cases(self, split: str, length: int, steps: int, every: bool) -> Cases:
        """The last `steps` events of a sequence, all in this split, after one or more; `every`: also those before."""
        end = self.ends[split]
        before = self.start if split == "train" else self.ends[SPLITS[SPLITS.index(split) - 1]]
        there = end - before >= steps  # all targets are of this split
        room = end - self.start - 1  # events that may be targets
        count = np.where(there, room // steps if every else np.minimum(room // steps, 1), 0)
        row = np.repeat(np.arange(len(end)), count)
        number = np.arange(len(row)) - np.repeat(count.cumsum() - count, count)
        stop = end[row] - number * steps
        targets = self.ids[stop[:, None] - np.arange(steps, 0, -1)]
        return Cases(self._take(stop - steps, self.start[row], length), targets, self.user[self.start[row]])

    def _take(self, end: np.ndarray, start: np.ndarray, places: int) -> np.ndarray:
        """The ids before each end, from its start on, in rows with padding in front: (N, places)."""
        index = end[:, None] - np.arange(places, 0, -1)
        return np.where(index >= start[:, None], self.ids[np.maximum(index, 0)], PADDING)


def intents(
    log: pl.DataFrame,
    events: Sequence[str],
    buys: Sequence[str] = ("buy_start", "buy_comp"),
    key: Sequence[str] = KEY,
    unit: str = "item",
    length: int = 20,
    min_count: int = 2,
    seed: int = 7,
) -> tuple[dict[str, Intents], Vocabulary]:
    """One case for each session: a moment drawn evenly from those before its first purchase, or from all where none is.

    A session without an event before its purchase has no such moment; one that lies in two splits belongs to neither.

    Args:
        log: as of `sequences`, with event_id.
        events: names of event_id, numbered from 1.
        buys: those that are a purchase; one of them is enough.
        length: last events that the model sees.
        seed: of the moments.

    Returns:
        cases by split, and the items' ids.

    Raises:
        SequenceError: as `sequences`; no such event; a split in which no session, or each, ends in a purchase.
    """
    _check(log, [*key, unit, "stime", "split", "event_id"], key, length, 2, 0)
    if unknown := [name for name in buys if name not in events]:
        raise SequenceError(
            f"{', '.join(unknown) or 'no event'} is no event of this dataset, which has {', '.join(events)}"
        )
    log = log.sort(*key, "stime", maintain_order=True).with_columns(group=pl.struct(key).rle_id())
    log = log.filter(pl.col("split").n_unique().over("group") == 1)
    log = log.with_columns(
        buy=pl.col("event_id").is_in(list(buys)),
        gap=pl.col("stime").diff().over("group").dt.total_microseconds().fill_null(0).cast(pl.Float64) / 1e6,
    )
    log = log.with_columns(label=pl.col("buy").any().over("group"))
    log = log.filter(~pl.col("buy").cum_max().over("group"))  # up to the first purchase
    if not len(log):
        raise SequenceError("no session has an event before its purchase")
    vocabulary = Vocabulary.of(log.filter(pl.col("split") == "train")[unit], min_count)
    kinds = log["event_id"].replace_strict({name: i + 1 for i, name in enumerate(events)}).to_numpy()
    flat = _Flat.of(log, vocabulary.encode(log[unit]))
    end = flat.start + np.diff(np.append(flat.start, len(log)))
    moment = flat.start + 1 + (np.random.default_rng(seed).random(len(end)) * (end - flat.start)).astype(np.int64)
    split, label = log["split"].cast(pl.String).to_numpy()[flat.start], log["label"].to_numpy()[flat.start]
    found = {}
    for name in SPLITS:
        here = split == name
        take = lambda ids, here=here: _Flat(ids, flat.user, flat.start, {})._take(
            moment[here], flat.start[here], length
        )
        items = take(flat.ids)
        wanted = label[here].astype(np.float32)
        if not 0 < wanted.sum() < len(wanted):
            raise SequenceError(f"{int(wanted.sum())} of {len(wanted)} sessions in {name} end in a purchase; a model "
                                f"needs both kinds: take other `buys`, or a longer log")  # fmt: skip
        gaps = take(log["gap"].to_numpy()).astype(np.float32)
        found[name] = Intents(items, take(kinds).astype(np.int32), gaps, wanted, flat.user[flat.start[here]])
    return found, vocabulary


def _check(log: pl.DataFrame, columns: Sequence[str], key: Sequence[str], length: int, least: int, steps: int) -> None:
    if missing := [name for name in dict.fromkeys(columns) if name not in log.columns]:
        raise SequenceError(f"the log has no column {', '.join(missing)}; it has {', '.join(log.columns)}")
    if "user" in log.columns and "user" not in key:
        raise SequenceError(f"key is {', '.join(key)}: sessions of different users share ids; add user")
    if length < 1 or least < 2 or steps < 0 or least <= steps:
        raise SequenceError(f"length must be 1 or more, least 2 or more and above steps; got length {length}, least "
                            f"{least}, steps {steps}")  # fmt: skip


def clicks(train: pl.DataFrame, test: pl.DataFrame, names: Mapping[str, str], val: float = 0.1) -> pl.DataFrame:
    """Two tables of anonymous sessions (such as Yoochoose's) -> a log for `sequences` with the key `session`.

    Args:
        names: the tables' columns for session, item and stime (seconds since 1970, or a time).
        val: share of the training sessions, the last to start, that are val.
    """
    both = pl.concat([part.select(pl.col(old).alias(new) for new, old in names.items()).with_columns(split=pl.lit(name))
                      for name, part in (("train", train), ("test", test))])  # fmt: skip
    started = (
        both.filter(pl.col("split") == "train").group_by("session").agg(pl.col("stime").min()).sort("stime", "session")
    )
    late = started["session"].tail(int(len(started) * val))
    held = (pl.col("split") == "train") & pl.col("session").is_in(late.implode())
    return both.with_columns(split=pl.when(held).then(pl.lit("val")).otherwise("split"))
