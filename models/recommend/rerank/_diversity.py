"""How repetitive a list is: by distances of its items, and by their categories.

Distances by the vectors that a method optimises say little about what people see: report categories too.
"""

import torch
from torch import Tensor

from models.recommend.rerank._rerank import unit

__all__ = ["alpha_ndcg", "category_coverage", "category_entropy", "list_distances"]


def list_distances(lists: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """ILAD and ILMD: mean and smallest 1 - cosine over the pairs of each list; NaN for lists of less than two.

    Args:
        lists: (R, K) int64 numbers of candidates, -1 for none.
        vectors: (R, N, D).
    """
    there = lists >= 0
    index = lists.clamp(min=0)[:, :, None].expand(-1, -1, vectors.shape[-1])
    shown = unit(vectors.gather(1, index).double())
    distance = 1 - shown @ shown.transpose(1, 2)
    pair = torch.triu(there[:, :, None] & there[:, None, :], diagonal=1)
    mean = distance.masked_fill(~pair, 0).sum((1, 2)) / pair.sum((1, 2))
    least = distance.masked_fill(~pair, torch.inf).amin((1, 2))
    return mean, torch.where(pair.any(2).any(1), least, torch.nan)


def category_coverage(lists: Tensor, categories: Tensor) -> Tensor:
    """How many different categories each list shows: (R,).

    Args:
        categories: (R, N) int64 of the candidates.
    """
    found = categories.gather(1, lists.clamp(min=0)).masked_fill(lists < 0, -1).sort(1).values
    fresh = torch.nn.functional.pad(found[:, 1:] != found[:, :-1], (1, 0), value=True)
    return (fresh & (found >= 0)).sum(1)


def category_entropy(lists: Tensor, categories: Tensor) -> Tensor:
    """Entropy in nats of the categories of each list: (R,); 0 when all are one."""
    found, there = categories.gather(1, lists.clamp(min=0)), lists >= 0
    same = (found[:, :, None] == found[:, None, :]) & there[:, None, :]
    share = same.sum(2).double() / there.sum(1, keepdim=True).clamp(min=1)
    # Each place carries the logarithm of its category's share, so summing over places weighs categories by their size.
    return -(share.clamp(min=1e-12).log() * there).sum(1) / there.sum(1).clamp(min=1)


def alpha_ndcg(lists: Tensor, categories: Tensor, relevant: Tensor, alpha: float = 0.5) -> Tensor:
    """alpha-nDCG of each list with one category an item: repeated categories count (1 - alpha) less each time; (R,).

    The ideal is the best greedy list of as many places. Source: Clarke et al., 2008, doi:10.1145/1390334.1390446.

    Args:
        relevant: (R, N) bool.
    """
    gains = _gains(lists, categories, relevant, alpha)
    ideal = torch.stack([_ideal(c, r, lists.shape[1], alpha) for c, r in zip(categories, relevant, strict=True)])
    discount = 1 / torch.log2(torch.arange(lists.shape[1], device=lists.device).double() + 2)
    return (gains * discount).sum(1) / (ideal * discount).sum(1)


def _gains(lists: Tensor, categories: Tensor, relevant: Tensor, alpha: float) -> Tensor:
    found = categories.gather(1, lists.clamp(min=0))
    hit = relevant.gather(1, lists.clamp(min=0)) & (lists >= 0)
    before = torch.tril((found[:, :, None] == found[:, None, :]) & hit[:, None, :], diagonal=-1).sum(2)
    return hit * (1 - alpha) ** before.double()


def _ideal(categories: Tensor, relevant: Tensor, count: int, alpha: float) -> Tensor:
    """With one category an item the best order takes each category's k-th item before any one's (k+1)-th."""
    own = categories[relevant]
    turn = torch.tril(own[:, None] == own[None, :], diagonal=-1).sum(1)
    gains = ((1 - alpha) ** turn.double()).sort(descending=True).values[:count]
    return torch.nn.functional.pad(gains, (0, count - len(gains)))
