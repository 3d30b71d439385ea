"""Full ranking: every item is ranked for every user, the seen ones are left out, metrics are kept per user."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.recommend._search import Search
from models.recommend._top import top
from models.recommend.retrieval._log import Log

__all__ = ["Ranked", "RankingError", "judged", "rank"]


class RankingError(ValueError):
    """A ranking that cannot be made."""


@dataclass(frozen=True)
class Ranked:
    """The best items of N users, and what they are worth."""

    users: Tensor  # (N,) int64
    items: Tensor  # (N, K) int64, best first, of equal scores the smaller id first; -1 where a user has no item left
    scores: Tensor  # (N, K) float32; -inf where a user has no item left
    hits: Tensor  # (N, K) bool: true items
    metrics: dict[str, Tensor]  # "recall@20", "ndcg@20" ...: (N,) float32; NaN for a user without true items


def rank(
    source: tuple[Tensor, Tensor] | Callable[[Tensor], Tensor],
    users: Tensor | None,
    seen: Log | None,
    truth: Log | None,
    at: Sequence[int] = (10, 20, 50),
    chunk: int = 128,
    rough: torch.dtype | None = None,
) -> Ranked:
    """Rank all items for each user.

    Args:
        source: vectors of all users (U, D) and of all items (I, D), whose product is the score; or a function of
            user ids (B,) that returns scores (B, I).
        users: (N,) int64, whom to rank for; None for every user with a true item.
        seen: pairs that are left out, such as those of the training; None leaves out nothing.
        truth: pairs to be found; None ranks without metrics.
        at: cut-offs; the largest, K, is how many items are kept. A cut-off above the number of items is allowed.
        chunk: users ranked at a time: memory is of the order of chunk x I numbers, whatever the number of users.
        rough: type of the product that finds candidates, of vectors only; None for the fastest. The result is the same.

    Raises:
        RankingError: no user, no cut-off, sizes that differ, a score that is NaN, or pairs that are both seen and true.
    """
    at = sorted({int(k) for k in at})
    users = _check(source, users, seen, truth, at, chunk)
    if callable(source):
        find = lambda part: _best(source(part), part, seen, at[-1])
    else:
        search = Search(*source, min(at[-1], len(source[1])), rough)
        find = lambda part: search.best(part, seen)
    scores, items = (torch.cat(found) for found in zip(*map(find, users.split(chunk)), strict=True))
    items = items.masked_fill_(scores == -torch.inf, -1)
    if truth is None:
        return Ranked(users, items, scores, torch.zeros_like(items, dtype=torch.bool), {})
    hits = _hits(items, users, truth, chunk)
    return Ranked(users, items, scores, hits, _metrics(hits, truth.user_degree[users], at))


def judged(items: Tensor, users: Tensor, truth: Log, at: Sequence[int], chunk: int = 128) -> Ranked:
    """Lists that somebody else made, with their metrics; their scores are unknown, and count as 0.

    Args:
        items: (N, K) int64, best first, -1 after a list's end.
        users: (N,) int64, whose lists they are.
        truth: pairs to be found.
        at: cut-offs.
    """
    hits = _hits(items, users, truth, chunk)
    metrics = _metrics(hits, truth.user_degree[users], sorted({int(k) for k in at}))
    return Ranked(users, items, torch.zeros(items.shape), hits, metrics)


def _check(source, users, seen, truth, at, chunk) -> Tensor:
    if not at or at[0] < 1 or chunk < 1:
        raise RankingError(f"cut-offs and chunk must be at least 1; got at={at}, chunk={chunk}")
    if users is None:
        if truth is None:
            raise RankingError("users is None, which means every user with a true item, but truth is None too")
        users = truth.user_degree.nonzero().flatten()
    if not len(users):
        raise RankingError("no user to rank for")
    if seen is not None and truth is not None:
        if (seen.users, seen.items) != (truth.users, truth.items):
            raise RankingError(f"seen pairs are of {seen.users} users and {seen.items} items, true ones of "
                               f"{truth.users} and {truth.items}; give both logs the same counts")  # fmt: skip
        if both := int(seen.has(truth.user, truth.item).sum()):
            raise RankingError(f"{both} of {len(truth)} true pairs are seen pairs, which are never recommended; drop "
                               f"them from the truth, or pass seen=None")  # fmt: skip
    if not callable(source):
        _check_vectors(source, seen if seen is not None else truth)
    return users


def _check_vectors(source: tuple[Tensor, Tensor], log: Log | None) -> None:
    shapes = [tuple(part.shape) for part in source]
    if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][1]:
        raise RankingError(f"vectors of users and items must be (U, D) and (I, D); got {shapes[0]} and {shapes[1]}")
    if log is not None and (shapes[0][0], shapes[1][0]) != (log.users, log.items):
        raise RankingError(f"vectors of {shapes[0][0]} users and {shapes[1][0]} items for a log of {log.users} users "
                           f"and {log.items} items")  # fmt: skip
    for name, part in zip(("users", "items"), source, strict=True):
        if broken := int((~part.isfinite().all(1)).sum()):
            raise RankingError(f"{broken} of {len(part)} vectors of {name} are not finite; the model has diverged")


def _best(score_BI: Tensor, users: Tensor, seen: Log | None, k: int) -> tuple[Tensor, Tensor]:
    """The k best of the scores (B, I) of these users, who see nothing twice."""
    if score_BI.dim() != 2 or len(score_BI) != len(users) or (seen is not None and score_BI.shape[1] != seen.items):
        raise RankingError(f"scores are {tuple(score_BI.shape)}; for {len(users)} users they must be "
                           f"({len(users)}, {'items' if seen is None else seen.items})")  # fmt: skip
    if seen is not None:
        row, item = seen.of_users(users)
        score_BI = score_BI.index_put((row, item), score_BI.new_tensor(-torch.inf))
    try:
        return top(score_BI.float(), min(k, score_BI.shape[1]))
    except ValueError as error:
        raise RankingError(f"{error}; the model has diverged") from None


def _hits(items: Tensor, users: Tensor, truth: Log, chunk: int) -> Tensor:
    """Whether each of the (N, K) items, -1 for none, is a true one: bool."""
    true_BI = torch.zeros(min(chunk, len(users)), truth.items, dtype=torch.bool, device=items.device)
    found = []
    for item_BK, part in zip(items.split(chunk), users.split(chunk), strict=True):
        pair = truth.of_users(part)
        true_BI[pair] = True
        found.append(true_BI[: len(part)].gather(1, item_BK.clamp(min=0)) & (item_BK >= 0))
        true_BI[pair] = False
    return torch.cat(found)


def _metrics(hit_NK: Tensor, true_N: Tensor, at: list[int]) -> dict[str, Tensor]:
    """Every metric at every cut-off, of lists of K and of users with so many true items."""
    place = torch.arange(1, hit_NK.shape[1] + 1, device=hit_NK.device)
    discount_K = 1 / (place + 1).log2()
    ideal = torch.cat([discount_K.new_zeros(1), discount_K.cumsum(0)])
    hits_NK, gain_NK = hit_NK.cumsum(1), (hit_NK * discount_K).cumsum(1)
    first_N = (hits_NK == 0).sum(1) + 1  # place of the first hit
    found = {}
    for k in at:
        last = min(k, len(place)) - 1
        hits = hits_NK[:, last]
        values = {
            "recall": hits / true_N,
            "ndcg": gain_NK[:, last] / ideal[true_N.clamp(max=last + 1)],
            "mrr": (hits > 0) / first_N,
            "hit": (hits > 0).float(),
            "precision": hits / k,
        }
        found |= {f"{name}@{k}": value.masked_fill(true_N == 0, torch.nan) for name, value in values.items()}
    return found
