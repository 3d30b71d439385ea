"""Contrast of two streams: each text finds its image among those of all ranks, each image its text (CLIP).

    F0, F1 = unit rows of P0 pool(h0), P1 pool(h1),  S = exp(s) F0 F1^T,  L = 1/2 sum_i [CE(S_i, i) + CE(S^T_i, i)]

s is learned, begins at ln(1/0.07) and never exceeds ln 100. Source: Radford et al., 2021, arXiv:2103.00020, section 2.3
and figure 3. Each rank scores its own rows against the features of all; gathering passes gradients back to the rank
that made a feature, so that the sum over ranks is the gradient of the one big batch. A batch cut into micro-batches has
fewer wrong partners to tell apart: unlike other targets' losses, this one depends on the cut.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.components._pool import POOLS, pooled
from models.components._rows import Rows

__all__ = ["Clr", "gather"]


class Clr(nn.Module):
    """Two streams of rows that belong together pair by pair; needs no labels.

    Args:
        width: D of both streams, where `widths` does not say otherwise.
        widths: D of each stream.
        features: width of the space in which they meet; None: no projection, which needs equal widths.
        pools: which vector speaks for a row of each stream: first, last, mean or max of its real places.
        temperature: exp(-s) at the beginning.

    Raises:
        ValueError: no such pool, widths that cannot meet, or a temperature outside 0.01..1.
    """

    label = None

    def __init__(
        self,
        width: int,
        widths: Sequence[int] | None = None,
        features: int | None = None,
        pools: Sequence[str] = ("first", "first"),
        temperature: float = 0.07,
    ):
        super().__init__()
        widths = tuple(widths or (width, width))
        if len(widths) != 2 or len(pools) != 2:
            raise ValueError(f"clr reads two streams; got widths {list(widths)} and pools {list(pools)}")
        if unknown := [pool for pool in pools if pool not in POOLS]:
            raise ValueError(f"pools is {list(pools)}, without {unknown[0]!r}; each is one of {', '.join(POOLS)}")
        if features is None and widths[0] != widths[1]:
            raise ValueError(f"streams {widths[0]} and {widths[1]} wide have no common space; give `features`")
        if not 0.01 <= temperature <= 1:
            raise ValueError(f"temperature must be in 0.01..1, got {temperature}")
        self.pools = tuple(pools)
        made = [None if features is None else nn.Linear(each, features, bias=False) for each in widths]
        self.first, self.second = made
        self.initial = math.log(1 / temperature)
        self.scale = nn.Parameter(torch.tensor([self.initial]))  # of one number, as FSDP shards no scalars

    def initialise(self, std: float) -> None:
        """s as it begins, wherever its storage came from."""
        self.scale.fill_(self.initial)

    def count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Pairs."""
        field = next(value for name, value in batch.items() if name.startswith("first_"))
        return torch.tensor(float(len(field)), device=field.device)

    def forward(
        self, hidden: tuple[Tensor, Tensor], rows: tuple[Rows, Rows], batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over this rank's pairs in nats; how many found their partner, both ways averaged.

        In training on several ranks, partners are looked for among all of them, and each must have as many pairs.
        """
        own = self.predict(hidden, rows)
        everyone, start = own, 0
        if self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            everyone, start = gather(own), len(own[0]) * dist.get_rank()
        target = torch.arange(start, start + len(own[0]), device=own[0].device)
        scale = self.scale.float().clamp(max=math.log(100)).exp()
        logits = [scale * own[0] @ everyone[1].mT, scale * own[1] @ everyone[0].mT]
        loss = sum(F.cross_entropy(each, target, reduction="sum") for each in logits) / 2
        return loss, {"correct": sum((each.argmax(-1) == target).sum() for each in logits) / 2}

    def predict(self, hidden: tuple[Tensor, Tensor], rows: tuple[Rows, Rows]) -> tuple[Tensor, Tensor]:
        """Unit features (B, F) float32 of both streams."""
        vectors = [pooled(h, r, pool) for h, r, pool in zip(hidden, rows, self.pools, strict=True)]
        if self.first is not None:
            vectors = [self.first(vectors[0]), self.second(vectors[1])]
        return tuple(F.normalize(vector.float(), dim=-1) for vector in vectors)


def gather(features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Features (B, F) of all ranks in the order of ranks, (ranks x B, F); gradients find their way back.

    Raises:
        ValueError: ranks with different numbers of rows.
    """
    own = features[0]
    sizes = own.new_tensor([len(own)], dtype=torch.long).repeat(dist.get_world_size())
    dist.all_gather(list(sizes.split(1)), own.new_tensor([len(own)], dtype=torch.long))
    if len(set(sizes.tolist())) > 1:
        raise ValueError(f"ranks have {sizes.tolist()} pairs; clr needs the same number on each: drop the last batch")
    return tuple(_Gather.apply(each) for each in features)


class _Gather(torch.autograd.Function):
    """all_gather whose backward pass sums each rank's gradient of a feature at the rank that made it."""

    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        ctx.rows = len(own)
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.rows :][: ctx.rows]
