"""Contrast: an anchor finds its partner among all partners of the batch (SimCSE, dual retrieval).

    u = f(anchor) / |f|, v = f(partner) / |f|,   L = -sum_i log softmax_j(u_i . v_j / temperature)[i]

symmetric: the mean of that and of the same with anchors and partners exchanged. Hard negatives are more columns. SimCSE
without labels takes the same sentence twice: only dropout tells its two passes apart. Source: Gao et al., 2021,
arXiv:2104.08821 (temperature 0.05; the tanh layer over the first place in training, none after it); in-batch negatives
of two towers: Karpukhin et al., 2020, arXiv:2004.04906; symmetric form: Radford et al., 2021, arXiv:2103.00020.

The negatives are those of one micro-batch: unlike other targets' losses, this one depends on how a batch is cut.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components._pool import POOLS, pooled
from models.components._rows import Rows

__all__ = ["Contrast"]


class Contrast(nn.Module):
    """One stream with views (N,) int64: 0 anchor, 1 partner, 2 hard negative, the n-th of each belonging together; or
    the two streams of `dual`, row i with row i.

    Args:
        width: D.
        pool: first, last, mean or max of the real places.
        temperature: divides the cosines.
        symmetric: partners look for their anchors as well.
        transform: a tanh layer after the pool, in training only; one stream only.

    Raises:
        ValueError: no such pool, a temperature that is not above 0, as many anchors as partners are not there.
    """

    label = None

    def __init__(
        self, width: int, pool: str = "first", temperature: float = 0.05, symmetric: bool = False,
        transform: bool = False,
    ):  # fmt: skip
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}; it is one of {', '.join(POOLS)}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.how, self.temperature, self.symmetric = pool, temperature, symmetric
        self.pool = nn.Linear(width, width) if transform else None

    def count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Anchors."""
        if "views" in batch:
            return (batch["views"] == 0).sum().float()
        ids = batch["first_ids"]
        return torch.tensor(float(len(ids)), device=ids.device)

    def forward(self, hidden, rows, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(hidden, Tensor):
            vectors = self._unit(hidden, rows, training=True)
            anchor, partner, hard = (vectors[batch["views"] == view] for view in range(3))
        else:
            anchor, partner = (self._unit(*stream, training=True) for stream in zip(hidden, rows, strict=True))
            hard = partner[:0]
        if len(anchor) != len(partner):
            raise ValueError(f"{len(anchor)} anchors and {len(partner)} partners: each anchor needs one")
        cosine = anchor @ torch.cat([partner, hard]).mT / self.temperature
        target = torch.arange(len(anchor), device=cosine.device)
        loss = F.cross_entropy(cosine, target, reduction="sum")
        if self.symmetric:
            loss = (loss + F.cross_entropy(cosine[:, : len(anchor)].mT, target, reduction="sum")) / 2
        return loss, {"correct": (cosine.argmax(-1) == target).sum()}

    def predict(self, hidden, rows):
        """Unit vectors (B, D); a pair of them for two streams."""
        if isinstance(hidden, Tensor):
            return self._unit(hidden, rows, training=False)
        return tuple(self._unit(*stream, training=False) for stream in zip(hidden, rows, strict=True))

    def _unit(self, hidden: Tensor, rows: Rows, training: bool) -> Tensor:
        x = pooled(hidden, rows, self.how)
        return F.normalize((self.pool(x).tanh() if training and self.pool is not None else x).float(), dim=-1)
