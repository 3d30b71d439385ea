"""Items that a user did not open: the sampled rows beside each view, without which a log of views has no negatives.

`category` draws items of the view's own category, evenly among those that had an event on the view's day; `popularity`
draws among all items of that day with weight (events that day)^0.75 (word2vec's exponent, arXiv:1310.4546, section
2.2). Drawing from the same day is ours: a third of a marketplace's items are new and each sells once, so items drawn
from all of the log would be older than those viewed, and their age alone would tell the label.
Where that yields nothing, the draw goes on among all items first seen by that day: of the same category, then of the
next coarser one, at last of any. No item is drawn on a day before its first event, none that the user touched in the
session, none twice for one view.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from tasks.context import DAY, Popularity

__all__ = ["KINDS", "Sampler"]

KINDS = ("category", "popularity")
LEVELS = ("c2_id", "c1_id", "c0_id")  # finest first
TRIES = 8  # draws from one pool before the next one


class Pool:
    """Items in order of (category, day), to draw from one day or from all days up to it."""

    def __init__(
        self, item: np.ndarray, code: np.ndarray, day: np.ndarray, span: int, weight: np.ndarray | None = None
    ):
        known = np.flatnonzero(code >= 0)
        order = known[np.lexsort((item[known], day[known], code[known]))]
        self.item, self.span, self.key = item[order], span, code[order] * span + day[order]
        weight = np.ones(len(order), dtype=np.int64) if weight is None else weight[order]
        self.total = np.concatenate([[0], np.cumsum(weight)])

    def draw(self, code: np.ndarray, day: np.ndarray, since: np.ndarray | int, rng: np.random.Generator) -> np.ndarray:
        """One item of category `code` with a day in [since, day], for each of N views: (N,), 0 where there is none."""
        start = np.searchsorted(self.key, code * self.span + since)
        end = np.searchsorted(self.key, code * self.span + day, side="right")
        found, some = np.zeros(len(code), dtype=np.int64), end > start
        drawn = rng.integers(self.total[start[some]], self.total[end[some]])
        found[some] = self.item[np.searchsorted(self.total, drawn, side="right") - 1]
        return found


class Sampler:
    """Draws items for views; the same seed and views give the same items.

    Args:
        items: one row per item: item, day (of its first event, days since 1970), and the category columns there are.
        popularity: events per item and day.
        counts: how many of each of KINDS to draw per view.
    """

    def __init__(self, items: pl.DataFrame, popularity: Popularity, counts: Mapping[str, int]):
        self.counts, self.first = {kind: counts.get(kind, 0) for kind in KINDS}, popularity.first
        self.levels = [name for name in LEVELS if name in items.columns]
        item, born = (items[name].to_numpy().astype(np.int64) for name in ("item", "day"))
        span, today = popularity.span, popularity.day - popularity.first
        self.values = {name: items[name].drop_nulls().unique().sort() for name in self.levels}
        codes = {name: self._codes(items[name], name) for name in self.levels} | {"any": np.zeros(len(items), np.int64)}
        # Square roots are exact in IEEE 754, a power is not: the weights are the same on every machine.
        weight = np.rint(1000 * np.sqrt(popularity.events) * np.sqrt(np.sqrt(popularity.events))).astype(np.int64)
        of_item = np.searchsorted(item, popularity.item)
        self.today = {"any": Pool(popularity.item, codes["any"][of_item], today, span, weight)}
        if self.levels and self.counts["category"]:
            self.today[self.levels[0]] = Pool(popularity.item, codes[self.levels[0]][of_item], today, span)
        self.until = {name: Pool(item, code, born - self.first, span) for name, code in codes.items()}

    def draw(self, views: pl.DataFrame, touched: np.ndarray, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
        """Items for N views.

        Args:
            views: session, item, stime and the category columns.
            touched: sorted uint64 `session << 32 | item` of everything the users did in these sessions.

        Returns:
            (kind, (N,) item numbers, 0 where no item was left to draw) as often as the counts say.
        """
        day = views["stime"].dt.epoch("us").to_numpy() // DAY - self.first
        session = views["session"].to_numpy().astype(np.uint64) << np.uint64(32)
        codes = {name: self._codes(views[name], name) for name in self.levels} | {"any": np.zeros(len(views), np.int64)}
        drawn: list[tuple[str, np.ndarray]] = []
        for kind in KINDS:
            for _ in range(self.counts[kind]):
                found = np.zeros(len(views), dtype=np.int64)
                for pool, code, since in self._order(kind, codes, day):
                    for _ in range(TRIES):
                        left = np.flatnonzero((found == 0) & (code >= 0))
                        if not len(left):
                            break
                        item = pool.draw(code[left], day[left], since[left], rng)
                        good = (item > 0) & ~_is_in(session[left] | item.astype(np.uint64), touched)
                        for _, other in drawn:
                            good &= item != other[left]
                        found[left[good]] = item[good]
                drawn.append((kind, found))
        return drawn

    def _order(self, kind: str, codes: dict[str, np.ndarray], day: np.ndarray):
        """Pools in the order of preference, with each view's category in it and the earliest day to draw from."""
        levels = self.levels if kind == "category" else []
        best = levels[0] if levels else "any"
        start = np.zeros_like(day)
        return [(self.today[best], codes[best], day)] + [(self.until[n], codes[n], start) for n in [*levels, "any"]]

    def _codes(self, column: pl.Series, level: str) -> np.ndarray:
        """Category numbers, -1 where there is none: (N,) int64."""
        known = self.values[level]
        if not len(known):
            return np.full(len(column), -1)
        numbers = pl.Series(np.arange(len(known)))
        return column.replace_strict(known, numbers, default=None, return_dtype=pl.Int64).fill_null(-1).to_numpy()


def _is_in(value: np.ndarray, known: np.ndarray) -> np.ndarray:
    place = np.searchsorted(known, value)
    return known[np.minimum(place, len(known) - 1)] == value
