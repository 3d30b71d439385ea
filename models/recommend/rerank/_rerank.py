"""What reordering shares: checked requests, and lists that end where the candidates do.

Sizes: R requests, N candidates of a request, D width of an item's vector, K places of the list.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Rerank", "check", "fill_up", "unit"]


class Rerank(nn.Module):
    """A rule or a model that puts candidates into an order.

    `order(relevance, vectors, count, mask)` -> (R, K) int64: numbers of candidates, the first shown first; -1 where a
    request has no candidate left. Ties go to the candidate that comes first.
    """

    def order(self, relevance: Tensor, vectors: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
        """The list of each request.

        Args:
            relevance: (R, N), the ranker's scores; larger is better.
            vectors: (R, N, D); only their directions count.
            count: K, the places; at most N are filled.
            mask: (R, N) bool, True at candidates; None for all.
        """
        raise NotImplementedError


def check(relevance: Tensor, vectors: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """The mask of a request (R, N).

    Raises:
        ValueError: shapes that do not fit, no place to fill, or a score of a candidate that is not a finite number.
    """
    if relevance.dim() != 2 or vectors.shape[:2] != relevance.shape or vectors.dim() != 3:
        raise ValueError(f"a request is relevance (R, N) with vectors (R, N, D); got {tuple(relevance.shape)} and "
                         f"{tuple(vectors.shape)}")  # fmt: skip
    if count < 1:
        raise ValueError(f"a list has at least one place, got {count}")
    mask = torch.ones_like(relevance, dtype=torch.bool) if mask is None else mask
    if mask.shape != relevance.shape:
        raise ValueError(f"the mask must be {tuple(relevance.shape)}, as relevance is; got {tuple(mask.shape)}")
    if bad := int((~torch.isfinite(relevance) & mask).sum()):
        raise ValueError(f"{bad} candidates have a relevance that is not a finite number; mask them out")
    return mask


def unit(vectors: Tensor) -> Tensor:
    """Directions of vectors (..., D); a vector of zeros stays one, similar to nothing."""
    return F.normalize(vectors, dim=-1, eps=1e-12)


def fill_up(chosen: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    """Places (R, K) that are -1 get the most relevant candidates that are left, as far as there are any."""
    taken = ~mask
    rows, places = (chosen >= 0).nonzero(as_tuple=True)
    taken[rows, chosen[rows, places]] = True
    left = torch.where(taken, -torch.inf, relevance)
    best = left.sort(dim=-1, descending=True, stable=True)
    rest = torch.where(best.values == -torch.inf, -1, best.indices)
    empty = chosen < 0
    # The k-th empty place of a request takes the k-th of what is left.
    turn = (empty.cumsum(-1) - 1).clamp(min=0)
    rest = torch.nn.functional.pad(rest, (0, max(0, chosen.shape[1] - rest.shape[1])), value=-1)
    return torch.where(empty, rest.gather(1, turn), chosen)
