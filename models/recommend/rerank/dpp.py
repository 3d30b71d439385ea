"""DPP: the list whose items span the largest volume, each stretched by its relevance, chosen greedily.

    L = diag(q) S diag(q),  q = exp(alpha s),  alpha = theta / (2 (1 - theta)),  S_ij = cos(f_i, f_j)
    log det L_R = 2 alpha sum_{i in R} s_i + log det S_R

Greedy choice by an incremental Cholesky factor: each candidate keeps its row c_i and what is left of it, d_i^2,

    e_i = (L_ji - <c_j, c_i>) / d_j,   c_i <- [c_i, e_i],   d_i^2 <- d_i^2 - e_i^2      for the newest item j

A window lets only the last w items repel; the factor forgets the oldest by plane rotations.

Source: Chen et al., 2018, arXiv:1709.05135. theta as in the paper's trade-off; what follows once the volume is
exhausted (rank of S reached) is filled by relevance, ours.
"""

import torch
from torch import Tensor

from models.recommend.rerank._rerank import Rerank, check, fill_up, unit

__all__ = ["DPP", "greedy"]

EXHAUSTED = 1e-10  # share of its own L_ii that a candidate must still add


class DPP(Rerank):
    """Greedy maximum a posteriori list of a determinantal point process.

    Args:
        theta: in [0, 1); 0 looks at the vectors alone, towards 1 relevance decides.
        window: w, how many of the last items repel; None for all.
        fill: places left when no candidate adds volume are filled by relevance; otherwise they stay -1.

    Raises:
        ValueError: `theta` or `window` lies outside its range.
    """

    def __init__(self, theta: float = 0.7, window: int | None = None, fill: bool = True):
        super().__init__()
        if not 0 <= theta < 1:
            raise ValueError(f"theta lies in [0, 1): 0 looks at the vectors alone; got {theta}")
        if window is not None and window < 1:
            raise ValueError(f"a window holds at least one item, got {window}; None is no window")
        self.theta, self.window, self.fill = theta, window, fill

    @torch.no_grad()
    def order(self, relevance: Tensor, vectors: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
        mask = check(relevance, vectors, count, mask)
        # In float64: after a hundred items float32 has lost what is left of a candidate. The largest score is taken off
        # all, which scales L as a whole: no order changes, and exp never overflows.
        worth = relevance.double()
        worth = worth - worth.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
        quality = torch.exp(self.theta / (2 * (1 - self.theta)) * worth).masked_fill(~mask, 0)
        chosen = greedy(quality, unit(vectors.double()), count, mask, self.window)
        return fill_up(chosen, relevance, mask) if self.fill else chosen


def greedy(quality: Tensor, directions: Tensor, count: int, mask: Tensor, window: int | None = None) -> Tensor:
    """Numbers of the items in the order of choice: (R, K), -1 once no item is left that adds volume.

    Args:
        quality: q (R, N), >= 0, float64.
        directions: (R, N, D) of length 1, float64.
        window: w; None for all.
    """
    window = min(window or count, count)
    rows = torch.arange(len(quality), device=quality.device)
    # S_ii is 1, or 0 for a vector of zeros; computed, it would be off by a rounding and decide between equals.
    whole = quality.square() * (directions.square().sum(-1) > 0.5)
    left = whole.clone()  # d^2
    factor = quality.new_zeros(*quality.shape, window + 1)  # c: one row a candidate
    chosen: list[Tensor] = []
    kept: list[Tensor] = []  # the items that the factor's columns stand for, the oldest first
    open_ = mask.clone()
    for _ in range(count):
        worth = left.masked_fill(~open_ | (left <= EXHAUSTED * whole), -torch.inf)
        newest = worth.argmax(-1)
        going = worth[rows, newest] > -torch.inf
        chosen.append(torch.where(going, newest, -1))
        length = torch.where(going, left[rows, newest], 1.0).sqrt()
        likeness = torch.einsum("rnd,rd->rn", directions, directions[rows, newest])
        column = quality * quality[rows, newest, None] * likeness
        column = (column - torch.einsum("rnw,rw->rn", factor, factor[rows, newest])) / length[:, None]
        # A request that is exhausted goes on with the others, but nothing of it changes any more.
        column = column * going[:, None]
        factor[:, :, len(kept)] = column
        left = (left - column.square()).clamp(min=0)
        open_[rows, newest] &= ~going
        kept.append(newest)
        if len(kept) > window:
            _forget(factor, left, kept, rows)
    return torch.stack(chosen, 1)


def _forget(factor: Tensor, left: Tensor, kept: list[Tensor], rows: Tensor) -> None:
    """Take the oldest item out of the factor, in place: rotate its column into the others, and give back what is left.

    Without the oldest row the chosen items' factor has one column too many. A rotation of columns 0 and k makes the
    k-th item's entry in column 0 vanish; after all of them column 0 is what the oldest item had repelled.
    """
    kept.pop(0)
    for place, item in enumerate(kept, start=1):
        aside, own = factor[rows, item, 0], factor[rows, item, place]
        length = torch.hypot(aside, own).clamp(min=torch.finfo(factor.dtype).tiny)
        cosine, sine = (own / length)[:, None], (aside / length)[:, None]
        first, other = factor[:, :, 0].clone(), factor[:, :, place].clone()
        factor[:, :, place] = cosine * other + sine * first
        factor[:, :, 0] = cosine * first - sine * other
    left += factor[:, :, 0].square()
    factor[:, :, :-1] = factor[:, :, 1:].clone()
    factor[:, :, -1] = 0
