"""MMR: the next item is relevant and unlike what is already shown.

    next = argmax_{i not in R} lambda s_i - (1 - lambda) max_{j in R} cos(f_i, f_j)

The nearest chosen item of each candidate is kept and compared with the newest only, so a list costs N K D.

Source: Carbonell and Goldstein, 1998, doi:10.1145/290941.291025.
"""

import torch
from torch import Tensor

from models.recommend.rerank._rerank import Rerank, check, unit

__all__ = ["MMR"]


class MMR(Rerank):
    """Maximal marginal relevance.

    Args:
        trade: lambda in [0, 1]; 1 is the order of relevance.
        scaled: relevance is first stretched to [0, 1] within each request; without, `trade` only means something for
            relevance in the range of a cosine.

    Raises:
        ValueError: `trade` lies outside [0, 1].
    """

    def __init__(self, trade: float = 0.5, scaled: bool = False):
        super().__init__()
        if not 0 <= trade <= 1:
            raise ValueError(f"trade, MMR's lambda, lies between 0 (unlike only) and 1 (relevant only), got {trade}")
        self.trade, self.scaled = trade, scaled

    @torch.no_grad()
    def order(self, relevance: Tensor, vectors: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
        mask = check(relevance, vectors, count, mask)
        directions, worth = unit(vectors), self._worth(relevance, mask)
        row = torch.arange(len(relevance), device=relevance.device)
        left, nearest, chosen = mask.clone(), torch.zeros_like(worth), []
        for place in range(count):
            marginal = self.trade * worth - (1 - self.trade) * nearest
            newest = marginal.masked_fill(~left, -torch.inf).argmax(-1)
            chosen.append(torch.where(left.any(-1), newest, -1))
            left[row, newest] = False
            likeness = torch.einsum("rnd,rd->rn", directions, directions[row, newest]).to(worth.dtype)
            nearest = likeness if place == 0 else torch.maximum(nearest, likeness)
        return torch.stack(chosen, 1)

    def _worth(self, relevance: Tensor, mask: Tensor) -> Tensor:
        if not self.scaled:
            return relevance
        low = relevance.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
        high = relevance.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
        return (relevance - low) / (high - low).clamp(min=torch.finfo(relevance.dtype).tiny)
