"""Lists of items against what was taken: metrics of each request, and what they come to; ids are people's own.

A request is a row with a `truth`, a list of item ids. Whoever made the lists, and from whatever vocabulary, is judged
in the same way, so a registered version of last month and a candidate of today can be compared.
"""

import polars as pl
import torch

from models.recommend._ranking import Ranked, judged
from models.recommend._summary import summary
from models.recommend.retrieval._log import Log

__all__ = ["judge_lists", "popular"]


def judge_lists(
    lists: pl.DataFrame, requests: pl.DataFrame, log: pl.DataFrame, at: tuple[int, ...]
) -> tuple[pl.DataFrame, dict[str, float]]:
    """Judge one list a request.

    Args:
        lists: `items`, ids, best first.
        requests: `truth`, ids; as many rows.
        log: training pairs `user`, `item`: what is cold, popular or new is counted there.
        at: cut-offs; the summary's slices are cut at the one nearest to 20.

    Returns:
        a column for each metric, one row a request; and the flat summary.

    Raises:
        ValueError: other rows, or a request without truth.
    """
    if len(lists) != len(requests):
        raise ValueError(f"{len(lists)} lists for {len(requests)} requests; there must be one for each")
    if empty := requests.filter(pl.col("truth").list.len() == 0).height:
        raise ValueError(f"{empty} of {len(requests)} requests have nothing to be found; leave them out")
    found, truth = lists["items"].explode(empty_as_null=False), requests["truth"].explode()
    items = pl.concat([log["item"], truth, found.cast(truth.dtype)]).drop_nulls().unique().sort()
    number = lambda values: torch.from_numpy(items.search_sorted(values).to_numpy().astype("int64"))
    rows = torch.arange(len(requests))
    wanted = Log.of(rows.repeat_interleave(_lengths(requests["truth"])), number(truth), len(rows), len(items))
    users = log["user"].unique().sort()
    known = torch.from_numpy(users.search_sorted(log["user"]).to_numpy().astype("int64"))
    trained = Log.of(known, number(log["item"]), len(users), len(items))
    ranked = _ranked(rows, number(found.cast(truth.dtype)), _lengths(lists["items"]), max(at), wanted, at)
    per_request = pl.DataFrame({name: value.numpy() for name, value in ranked.metrics.items()})
    return per_request, summary(ranked, trained, wanted, min(at, key=lambda k: abs(k - 20)))


def popular(requests: pl.DataFrame, log: pl.DataFrame, k: int, repeats: bool) -> pl.DataFrame:
    """The floor: the log's most popular items; those of a request's own history are left out unless they may repeat."""
    longest = 0 if repeats else int(requests["history"].list.len().max() or 0)
    order = log.group_by("item").len().sort(["len", "item"], descending=[True, False])["item"].head(k + longest)
    if repeats:
        return pl.DataFrame({"items": pl.Series([order.head(k)] * len(requests))})
    seen = [set(history) for history in requests["history"].to_list()]
    ranked = order.to_list()
    lists = []
    for own in seen:
        left = ranked[: k + len(own)]
        lists.append([item for item in left if item not in own][:k])
    return pl.DataFrame({"items": pl.Series(lists, dtype=pl.List(order.dtype))})


def _lengths(lists: pl.Series) -> torch.Tensor:
    return torch.from_numpy(lists.list.len().cast(pl.Int64).to_numpy().copy())


def _ranked(rows, flat, length, k: int, truth: Log, at: tuple[int, ...]) -> Ranked:
    row = rows.repeat_interleave(length)
    place = torch.arange(len(flat)) - (length.cumsum(0) - length)[row]
    items = torch.full((len(rows), k), -1)
    kept = place < k
    items[row[kept], place[kept]] = flat[kept]
    return judged(items, rows, truth, at)
