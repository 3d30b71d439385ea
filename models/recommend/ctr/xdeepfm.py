"""xDeepFM: a compressed interaction network crosses whole vectors, once more with each layer.

    X^k_h = sum_i sum_j W^k_hij (X^(k-1)_i * X^0_j),  X^0 = the F field vectors, * elementwise
    logit = w_0 + sum_f w_f[x_f] + <w, sum-pooled X^1 ... X^K> + deep(e)

Layer k holds products of k + 1 fields. Source: Lian et al., 2018, arXiv:1803.05170: linear units in the network, its
best; 100 maps in each of three layers and 400 hidden units twice.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.recommend.ctr._ctr import Click, Deep, Fields, FirstOrder

__all__ = ["XDeepFM", "CIN"]


class CIN(nn.Module):
    """Compressed interaction network: (B, F, d) -> (B, sum of widths).

    Args:
        fields: F.
        widths: maps H_k of each layer.
    """

    def __init__(self, fields: int, widths: Sequence[int]):
        super().__init__()
        before = [fields, *widths[:-1]]
        self.weights = nn.ParameterList(
            torch.empty(fields, below, width).uniform_(-((below * fields) ** -0.5), (below * fields) ** -0.5)
            for width, below in zip(widths, before, strict=True)
        )  # W^k_hij at (j, i, h)

    def forward(self, x_BFd: Tensor) -> Tensor:
        x0_BdF = x_BFd.transpose(1, 2).contiguous()
        x_BdH, pooled = x0_BdF, []
        for weight_FGH in self.weights:
            # The sum over i first, as one matrix product: a third of the time of first forming all products i x j.
            mapped_BdFH = (x_BdH @ weight_FGH.transpose(0, 1).flatten(1)).unflatten(-1, weight_FGH.shape[::2])
            x_BdH = (x0_BdF.unsqueeze(-1) * mapped_BdFH).sum(-2)
            pooled.append(x_BdH.sum(1))
        return torch.cat(pooled, -1)


class XDeepFM(Click):
    """First order, the interaction network and a perceptron, added.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        embedding: width d of a field's vector.
        cin: maps of each layer of the interaction network.
        deep: hidden widths.
        dropout: after each hidden layer.
        norm: batch normalisation before each ReLU.
    """

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        embedding: int = 10,
        cin: Sequence[int] = (100, 100, 100),
        deep: Sequence[int] = (400, 400),
        dropout: float = 0.5,
        norm: bool = False,
    ):
        super().__init__()
        self.fields = Fields(sizes, dense, embedding)
        self.first_order = FirstOrder(sizes, dense)
        self.cin = CIN(self.fields.count, cin)
        self.crossed = nn.Linear(sum(cin), 1, bias=False)
        self.deep = Deep(self.fields.inputs, deep, dropout, norm)

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        crossed = self.crossed(self.cin(self.fields(categorical, numerical))).squeeze(-1)
        deep = self.deep(self.fields.inputs, categorical, numerical)
        return self.first_order(categorical, numerical) + crossed + deep
