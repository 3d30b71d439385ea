"""Purchases split by the day of an item's release, and negatives among what was out when a purchase was made.

    train        purchases of items released before the validation window
    validation   purchases of the items released in it, by customers of the training
    test         purchases of all later releases, by customers of the training

The split is by release, as in arXiv:1803.00202: an old item's purchase belongs to the training whenever it was made.
"""

from dataclasses import dataclass
from datetime import date

import numpy as np
import polars as pl
import torch
from torch import Tensor

from models.recommend.retrieval._log import Log

__all__ = ["Available", "SplitEmpty", "Window", "Windows", "windows"]


class SplitEmpty(ValueError):
    """A window has no items, or nobody who bought them."""


@dataclass(frozen=True)
class Window:
    """The items of a window, in the order of their release, and who bought them."""

    items: pl.DataFrame  # item_id, name, overview, release_date; the row is the item's number
    log: Log  # customers x these items
    day: Tensor  # (E,) int64, days since 1970 of each of the log's pairs
    strangers: int  # purchases by nobody of the training, left out


@dataclass(frozen=True)
class Windows:
    """All three, over one numbering of the customers."""

    users: list  # user_id of each customer
    train: Window
    validation: Window
    test: Window


def windows(events: pl.DataFrame, validation: date, test: date) -> Windows:
    """Cut purchases at two days of release.

    Args:
        events: user_id, item_id, stime, name, overview, release_date; of several purchases of an item by one customer
            the first counts.
        validation: first day of the validation window.
        test: first day after it.

    Raises:
        SplitEmpty: a window without items or purchases; says which and what the days span.
    """
    if not validation < test:
        raise SplitEmpty(f"the validation window ends before it begins: validation {validation}, test {test}")
    borders = {
        "train": pl.col("release_date") < validation,
        "validation": (pl.col("release_date") >= validation) & (pl.col("release_date") < test),
        "test": pl.col("release_date") >= test,
    }
    parts = {name: events.filter(inside) for name, inside in borders.items()}
    users = parts["train"]["user_id"].unique().sort()
    number = {user: row for row, user in enumerate(users)}
    made = {name: _window(part, number) for name, part in parts.items()}
    if empty := [name for name, window in made.items() if window is None]:
        span = f"{events['release_date'].min()} to {events['release_date'].max()}"
        raise SplitEmpty(f"{' and '.join(empty)} has no purchases by customers of the training; releases run from "
                         f"{span}, the borders are {validation} and {test}")  # fmt: skip
    return Windows(list(users), **made)


def _window(part: pl.DataFrame, number: dict) -> Window | None:
    known = part.filter(pl.col("user_id").is_in(list(number)))
    if not len(known):
        return None
    items = part.unique("item_id").sort("release_date", "item_id").select("item_id", "name", "overview", "release_date")
    row = {item: place for place, item in enumerate(items["item_id"])}
    first = known.group_by("user_id", "item_id").agg(pl.col("stime").min())
    user = torch.tensor([number[u] for u in first["user_id"]])
    item = torch.tensor([row[i] for i in first["item_id"]])
    log = Log.of(user, item, len(number), len(items))
    day = torch.from_numpy(first["stime"].dt.epoch("d").to_numpy().astype(np.int64))
    return Window(items, log, day[(user * len(items) + item).argsort()], len(part) - len(known))


class Available:
    """Draws items that were out on the day of a purchase and that the customer has not bought, all alike.

    Items are numbered by release, so those that are out on a day are the first so many; among them an item is found as
    in models/recommend/retrieval/_sampling.py, by one search and without rejection.
    """

    def __init__(self, window: Window):
        log = window.log
        self.log, self.day, self.span = log, window.day, log.items + 1
        released = torch.from_numpy(window.items["release_date"].cast(pl.Int32).to_numpy().astype(np.int64))
        # At least those up to the bought item: some are bought at festivals, before their day.
        self.out = torch.maximum(torch.searchsorted(released, window.day, right=True), log.item + 1)
        seen = torch.searchsorted(log.key, log.user * log.items + self.out) - log.starts[log.user]
        self.left = self.out - seen
        self.usable = (self.left > 0).nonzero().squeeze(1)  # pairs whose customer had not bought everything
        self.before = log.user * self.span + log.item - (torch.arange(len(log)) - log.starts[log.user])

    def draw(self, pair: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """(B, count) items for the log's pairs (B,), all of them usable."""
        share = torch.rand(len(pair), count, generator=generator, dtype=torch.float64)
        place = (share * self.left[pair, None]).long()
        user = self.log.user[pair, None]
        return place + torch.searchsorted(self.before, user * self.span + place, right=True) - self.log.starts[user]
