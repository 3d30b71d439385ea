"""One vector a row: the first, last, mean or largest of its real places, and the small head that reads it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.components._rows import Rows

__all__ = ["POOLS", "PooledHead", "pooled"]


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return _at(hidden, mask.int().argmax(-1))


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return _at(hidden, mask.shape[-1] - 1 - mask.flip(-1).int().argmax(-1))


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    real = mask.unsqueeze(-1)
    return hidden.where(real, 0).sum(1) / real.sum(1).clamp(min=1)


def _largest(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(~mask.unsqueeze(-1), torch.finfo(hidden.dtype).min).amax(1)


def _at(hidden: Tensor, place: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), place]


POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "first": _first, "last": _last, "mean": _mean, "max": _largest,
}  # fmt: skip


def pooled(hidden: Tensor, rows: Rows, how: str) -> Tensor:
    """(B, T, D) -> (B, D), from real places only, wherever the padding lies.

    >>> rows = Rows.read({"ids": torch.zeros(1, 3), "mask": torch.tensor([[False, True, True]])})
    >>> pooled(torch.tensor([[[9.0], [1.0], [3.0]]]), rows, "mean")
    tensor([[2.]])
    """
    return POOLS[how](hidden, rows.mask)


class PooledHead(nn.Module):
    """pool -> [tanh(Linear)] -> dropout -> Linear: what a target of whole rows reads its answer from.

    Args:
        width: D.
        outputs: numbers a row.
        pool: first, last, mean or max of the real places.
        transform: the tanh layer in between, as in BERT's pooler (arXiv:1810.04805); GPT-2's heads have none.
        bias: of the last layer.
        dropout: before the last layer.

    Raises:
        ValueError: no such pool, or no outputs.
    """

    def __init__(self, width: int, outputs: int, pool: str, transform: bool, bias: bool, dropout: float):
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}; it is one of {', '.join(POOLS)}")
        if outputs < 1:
            raise ValueError(f"a head needs at least 1 output, got {outputs}")
        self.how = pool
        self.pool = nn.Linear(width, width) if transform else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, outputs, bias=bias)

    def predict(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, T, D) -> (B, outputs)."""
        x = pooled(hidden, rows, self.how)
        return self.head(self.dropout(x if self.pool is None else self.pool(x).tanh()))
