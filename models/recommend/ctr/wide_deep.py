"""Wide & Deep: a linear model of ids and crossed ids remembers, a perceptron of embeddings generalises.

    logit = w_0 + sum_f w_f[x_f] + sum_(i,j) w_ij[x_i, x_j] + deep(e)

Crossed ids are hashed into a table of `buckets` rows for each pair. Source: Cheng et al., 2016, arXiv:1606.07792, with
its sizes; both parts have one optimizer here, the paper's wide part FTRL.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.recommend._inputs import Inputs
from models.recommend.ctr._ctr import Click, Deep, Fields, FirstOrder

__all__ = ["WideDeep"]

FACTOR = 0x9E3779B1  # odd: multiplication by it scatters ids over the buckets


class WideDeep(Click):
    """A wide and a deep logit, added.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        embedding: width of a field's embedding.
        deep: hidden widths.
        crosses: pairs of fields whose ids the wide part crosses.
        buckets: rows of a cross's table.
        dropout: after each hidden layer.
        norm: batch normalisation before each ReLU.
    """

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        embedding: int = 32,
        deep: Sequence[int] = (1024, 512, 256),
        crosses: Sequence[Sequence[int]] = (),
        buckets: int = 100_000,
        dropout: float = 0.0,
        norm: bool = False,
    ):
        super().__init__()
        if wrong := [pair for pair in crosses if len(pair) != 2 or not all(0 <= f < len(sizes) for f in pair)]:
            raise ValueError(f"crosses are pairs of fields 0..{len(sizes) - 1}; got {wrong}")
        self.crosses, self.buckets = [tuple(pair) for pair in crosses], buckets
        self.fields = Fields(sizes, dense, embedding)
        self.wide = FirstOrder(sizes, dense)
        self.crossed = Inputs([buckets] * len(crosses), 0, 1) if crosses else None
        if self.crossed:
            torch.nn.init.zeros_(self.crossed.table)
        self.deep = Deep(self.fields.inputs, deep, dropout, norm)

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        logit = self.wide(categorical, numerical) + self.deep(self.fields.inputs, categorical, numerical)
        if self.crossed is None:
            return logit
        return logit + self.crossed(self.hashed(categorical), numerical[:, :0]).sum(-1)

    def hashed(self, categorical: Tensor) -> Tensor:
        """The bucket of each cross: (B, crosses) int64; the same on every machine."""
        x = categorical.long()
        word = torch.stack([(x[:, i] * FACTOR + x[:, j]) * FACTOR for i, j in self.crosses], 1)
        return (word >> 20) % 2**31 % self.buckets  # the middle bits: the low ones know little of the ids
