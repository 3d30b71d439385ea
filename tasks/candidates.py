"""A served recommender's lists as tensors that can be reordered: scores, vectors and categories of the candidates."""

from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from tasks.settings import SettingsError

__all__ = ["Candidates", "candidates", "categories_of", "lists_of", "vectors_of"]


@dataclass(frozen=True)
class Candidates:
    """R requests with at most N candidates each, best first."""

    relevance: Tensor  # (R, N) float32, a request's own scores stretched to [0, 1]
    item: Tensor  # (R, N) int64 rows of the recommender's vocabulary; 0 where there is no candidate
    mask: Tensor  # (R, N) bool

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, rows: Tensor) -> "Candidates":
        return Candidates(self.relevance[rows], self.item[rows], self.mask[rows])


def candidates(served, requests: pl.DataFrame, count: int) -> Candidates:
    """The `count` best items of each request, as a served recommender (tasks/serve_lists.py) gives them."""
    lists = served.lists(requests, count)
    length = torch.from_numpy(lists["items"].list.len().cast(pl.Int64).to_numpy().copy())
    row = torch.arange(len(length)).repeat_interleave(length)
    place = torch.arange(len(row)) - (length.cumsum(0) - length)[row]
    flat = lists.select("items").explode("items", empty_as_null=False).drop_nulls()
    number = flat.join(served.number, left_on="items", right_on="item", how="left", maintain_order="left")["index"]
    item = torch.zeros(len(lists), count, dtype=torch.int64)
    item[row, place] = torch.from_numpy(number.to_numpy().copy())
    mask = torch.arange(count) < length[:, None]
    score = torch.zeros(len(lists), count, dtype=torch.float64)
    score[row, place] = torch.from_numpy(lists["scores"].explode(empty_as_null=False).drop_nulls().to_numpy().copy())
    low = score.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    high = score.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    return Candidates(torch.where(mask, (score - low) / span, 0).float(), item, mask)


def vectors_of(served, name: str) -> Tensor:
    """What tells a recommender's items apart: (I, D), of which directions count.

    Raises:
        SettingsError: it has none.
    """
    inner = served.model
    if hasattr(inner, "vectors"):  # towers
        return inner.vectors.float()
    model = inner.model
    if not getattr(model, "product", False):
        raise SettingsError(f"{name} is {type(model).__name__}, whose items have no vectors that tell how alike two of "
                            f"them are; reorder a recommender of retrieval/ that has, or of towers/")  # fmt: skip
    with torch.inference_mode():
        return model.item_space().float().clone()


def categories_of(log: pl.LazyFrame, unit: str, column: str, items: pl.Series, place: str) -> Tensor:
    """Number of each item's category, by its first event: (I,) int64; an item without one is a category of its own.

    Raises:
        SettingsError: the log has no such column.
    """
    if column not in (there := log.collect_schema().names()):
        raise SettingsError(f"{place}.category: the log has no column {column!r}; it has {', '.join(there)}")
    own = log.select(item=unit, category=column, stime="stime").drop_nulls().sort("stime", maintain_order=True)
    first = own.unique("item", keep="first", maintain_order=True).select("item", "category").collect()
    found = items.to_frame("item").join(first, on="item", how="left", maintain_order="left")["category"]
    number = found.rank("dense").cast(pl.Int64)
    alone = pl.int_range(len(items), eager=True) + (number.max() or 0) + 1
    return torch.from_numpy(number.zip_with(number.is_not_null(), alone).to_numpy().copy())


def lists_of(served, there: Candidates, lists: Tensor) -> pl.DataFrame:
    """`items` of each request, ids, from numbers (R, K) of its candidates; -1 is none."""
    shown = lists >= 0
    flat = there.item.gather(1, lists.clamp(min=0))[shown]
    ids = served.items["item"].gather(flat)
    rows = pl.DataFrame({"row": shown.nonzero()[:, 0].numpy(), "items": ids})
    found = rows.group_by("row", maintain_order=True).agg("items")
    whole = pl.DataFrame({"row": range(len(lists))}).join(found, on="row", how="left", maintain_order="left")
    return whole.select(pl.col("items").fill_null([]))
