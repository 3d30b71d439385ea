"""What was known before a row: context features of real and of sampled rows, from strictly earlier events alone.

Earlier means an earlier time: events at the row's own time count for nobody, so neither the row's own event nor the
order of ties can show through. A user's past is exact to the microsecond; an item's popularity is that of earlier UTC
days, which is also what a nightly table can serve. Counts are integers, so that no rounding depends on other users.

    hour, weekday             of the row's time, UTC; Monday is 1
    session_position          earlier events of the session
    seconds_since_previous    since the user's latest earlier event; null without one
    user_events_before        earlier events of the user; user_<event>_before counts one kind
    seen_before               earlier events of the user with the row's item
    same_<column>_before      earlier events of the user with the row's value of a column; 0 where it is null
    price_ratio               price over the mean of the user's earlier prices; null without one
    item_events_before        events of the item, of all users, on earlier days
    hist_<column>_<k>         a column's value at the user's k-th latest earlier event; null when there is none
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

__all__ = ["History", "Popularity", "add_context", "context_type"]

SIMPLE = {
    "hour": pl.Int64,
    "weekday": pl.Int64,
    "session_position": pl.Int64,
    "seconds_since_previous": pl.Float64,
    "user_events_before": pl.Int64,
    "seen_before": pl.Int64,
    "item_events_before": pl.Int64,
    "price_ratio": pl.Float64,
}
DAY = 86_400_000_000  # microseconds


def context_type(name: str, schema: Mapping[str, pl.DataType], events: Iterable[str]) -> pl.DataType | None:
    """The type of a context feature, or None when there is no such feature for these columns and event names."""
    if name == "price_ratio" and not ("price" in schema and schema["price"].is_numeric()):
        return None
    if name in SIMPLE:
        return SIMPLE[name]
    if (match := re.fullmatch(r"user_(.+)_before", name)) and match[1] in events:
        return pl.Int64
    if (match := re.fullmatch(r"same_(.+)_before", name)) and match[1] in schema:
        return pl.Int64
    if (match := re.fullmatch(r"hist_(.+)_([1-9]\d*)", name)) and match[1] in schema:
        return schema[match[1]]
    return None


class Popularity:
    """Events per item and day, of all users.

    Args:
        counts: columns item, day (days since 1970, integer), events; one row per item and day with any event.
    """

    def __init__(self, counts: pl.DataFrame):
        counts = counts.sort("item", "day")
        self.item, self.day, self.events = (
            counts[name].to_numpy().astype(np.int64) for name in ("item", "day", "events")
        )
        self.first, self.span = int(self.day.min()), int(np.ptp(self.day)) + 2
        self.key = self.item * self.span + self.day - self.first
        self.total = np.concatenate([[0], np.cumsum(self.events)])

    def before(self, item: np.ndarray, day: np.ndarray) -> np.ndarray:
        """Events of each item on days before the given one: (N,) int64."""
        item, day = item.astype(np.int64), np.clip(day - self.first, 0, self.span - 1)
        start, end = np.searchsorted(self.key, item * self.span), np.searchsorted(self.key, item * self.span + day)
        return self.total[end] - self.total[start]


class History:
    """The events of some users, sorted by user and time: the past of any row at the place of one of these events.

    Raises:
        ValueError: the events are not sorted; a past cut from them would hold future events.
    """

    def __init__(self, events: pl.DataFrame):
        self.events = events
        user, self.time = events["user"].to_numpy().astype(np.int64), events["stime"].dt.epoch("us").to_numpy()
        if (np.diff(user) < 0).any() or ((np.diff(user) == 0) & (np.diff(self.time) < 0)).any():
            raise ValueError("events are not sorted by user and time; run `dvc repro -f` on their ingest stage")
        place = np.arange(len(events))
        other_user = np.concatenate([[True], np.diff(user) != 0])
        other_time = other_user | np.concatenate([[True], np.diff(self.time) != 0])
        self.start = np.maximum.accumulate(np.where(other_user, place, 0))  # first event of the user
        self.end = np.maximum.accumulate(np.where(other_time, place, 0))  # first event at the same time: the past's end

    def count(self, rows: pl.DataFrame, column: str) -> np.ndarray:
        """Earlier events of each row's user that have the row's value of a column: (N,) int64, 0 where it is null."""
        both = pl.concat([self.events[column], rows[column]]).rank("dense").fill_null(0).to_numpy().astype(np.int64)
        value, wanted = both[: len(self.events)], both[len(self.events) :]
        size, at = len(self.events) + 1, rows["at"].to_numpy()
        known = np.sort(value * size + np.arange(len(value)))
        found = np.searchsorted(known, wanted * size + self.end[at]) - np.searchsorted(
            known, wanted * size + self.start[at]
        )
        return np.where(wanted == 0, 0, found)

    def total(self, at: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Sum over the past of an integer per event: (N,) int64."""
        running = np.concatenate([[0], np.cumsum(value, dtype=np.int64)])
        return running[self.end[at]] - running[self.start[at]]


def add_context(
    rows: pl.DataFrame, names: Iterable[str], history: History, popularity: Popularity | None = None
) -> pl.DataFrame:
    """Add the named context features.

    Args:
        rows: columns of the events, with the sampled item's own values in sampled rows, and `at`: the place in
            `history` of the event that gives the row its user and time.
        popularity: needed by item_events_before only.
    """
    return rows.with_columns(_one(name, rows, history, popularity).alias(name) for name in names)


def _one(name: str, rows: pl.DataFrame, history: History, popularity: Popularity | None) -> pl.Series:
    at = rows["at"].to_numpy()
    if name == "hour":
        return rows["stime"].dt.hour().cast(pl.Int64)
    if name == "weekday":
        return rows["stime"].dt.weekday().cast(pl.Int64)
    if name == "session_position":
        return pl.Series(history.count(rows, "session"))
    if name == "seconds_since_previous":
        end = history.end[at]
        seconds = (history.time[at] - history.time[end - 1]) / 1_000_000
        return pl.Series(np.where(end > history.start[at], seconds, np.nan)).fill_nan(None)
    if name == "user_events_before":
        return pl.Series(history.end[at] - history.start[at])
    if name == "seen_before":
        return pl.Series(history.count(rows, "item"))
    if name == "item_events_before":
        return pl.Series(popularity.before(rows["item"].to_numpy(), history.time[at] // DAY))
    if name == "price_ratio":
        return _price_ratio(rows, at, history)
    if match := re.fullmatch(r"hist_(.+)_(\d+)", name):
        place = history.end[at] - int(match[2])
        place = pl.Series(np.where(place >= history.start[at], place, -1))
        return history.events[match[1]].gather(place.replace(-1, None))
    if match := re.fullmatch(r"same_(.+)_before", name):
        return pl.Series(history.count(rows, match[1]))
    event = re.fullmatch(r"user_(.+)_before", name)[1]
    return pl.Series(history.total(at, (history.events["event_id"] == event).to_numpy()))


def _price_ratio(rows: pl.DataFrame, at: np.ndarray, history: History) -> pl.Series:
    """In cents, so that the sum is exact."""
    cents = (history.events["price"].cast(pl.Float64) * 100).round()
    cents = pl.select(pl.when(cents.is_finite()).then(cents)).to_series()
    count = history.total(at, cents.is_not_null().to_numpy())
    mean = history.total(at, cents.fill_null(0).to_numpy().astype(np.int64)) / np.maximum(count, 1) / 100
    past = pl.Series(np.where(mean > 0, mean, np.nan)).fill_nan(None)
    return rows["price"].cast(pl.Float64) / past
