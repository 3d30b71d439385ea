"""DCN-V2: each cross layer multiplies the row's vector into a linear map of itself.

    full      x_(l+1) = x_0 * (W_l x_l + b_l) + x_l
    mixture   x_(l+1) = sum_i G_i(x_l) x_0 * (U_i g(C_i g(V_i^T x_l)) + b_l) + x_l,  G = softmax(gate x_l),  g = tanh

L layers hold products of up to L + 1 fields' entries. Source: Wang et al., 2020, arXiv:2008.13535. Widths of field
vectors and of the perceptron are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.recommend._layers import Experts, Towers
from models.recommend.ctr._ctr import Click, Deep, Fields

__all__ = ["DCNv2"]

STRUCTURES = ("stacked", "parallel")


class Cross(nn.Module):
    """A cross layer with a full matrix: x_0, x_l (B, D) -> x_(l+1) (B, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return x0 * self.map(x) + x


class Mixture(nn.Module):
    """A cross layer whose matrix is a gated mixture of `experts` products of rank `rank`."""

    def __init__(self, width: int, rank: int, experts: int):
        super().__init__()
        uniform = lambda *size, fan: nn.Parameter(torch.empty(size).uniform_(-(fan**-0.5), fan**-0.5))
        self.v_EDR = uniform(experts, width, rank, fan=width)
        self.c_ERR = uniform(experts, rank, rank, fan=rank)
        self.u_ERD = uniform(experts, rank, width, fan=rank)
        self.bias_D = nn.Parameter(torch.zeros(width))
        self.gate = nn.Linear(width, experts) if experts > 1 else None  # one expert's share is always 1

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        low_EBR = torch.tanh(torch.tanh(x @ self.v_EDR) @ self.c_ERR)
        if self.gate is None:
            return x0 * (low_EBR[0] @ self.u_ERD[0] + self.bias_D) + x
        share_EB1 = self.gate(x).float().softmax(-1).T[..., None].to(low_EBR.dtype)
        # The bias's shares sum to 1; each expert's share meets its narrow side.
        mixed_BD = torch.cat(list(share_EB1 * low_EBR), -1) @ self.u_ERD.flatten(0, 1)
        return x0 * (mixed_BD + self.bias_D) + x


class DCNv2(Click):
    """Cross layers and a perceptron, after or beside them.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        embedding: width of a field's vector.
        layers: cross layers L.
        rank: of the mixture's products; None for full matrices.
        experts: products in the mixture of each layer.
        deep: hidden widths.
        structure: "stacked", the perceptron reads x_L, or "parallel", it reads x_0.
        dropout: after each hidden layer.
        norm: batch normalisation before each ReLU.

    Raises:
        ValueError: an unknown structure, or less than one layer, rank or expert.
    """

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        embedding: int = 16,
        layers: int = 2,
        rank: int | None = None,
        experts: int = 4,
        deep: Sequence[int] = (400, 400),
        structure: str = "stacked",
        dropout: float = 0.0,
        norm: bool = False,
    ):
        super().__init__()
        if structure not in STRUCTURES or min(layers, experts, 1 if rank is None else rank) < 1:
            raise ValueError(f"structure is {' or '.join(STRUCTURES)}, layers, rank and experts are 1 or more; got "
                             f"{structure!r}, {layers}, {rank} and {experts}")  # fmt: skip
        self.fields = Fields(sizes, dense, embedding)
        width = self.fields.inputs.width
        cross = lambda: Cross(width) if rank is None else Mixture(width, rank, experts)
        self.cross = nn.ModuleList(cross() for _ in range(layers))
        self.stacked = structure == "stacked"
        if self.stacked:
            self.first = nn.Linear(width, deep[0])
            self.hidden = Experts(1, deep, dropout, norm)
            self.out = Towers(1, deep[-1], ())
        else:
            self.deep = Deep(self.fields.inputs, deep, dropout, norm, out=False)
            self.out = nn.Linear(width + deep[-1], 1)

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        x = x0 = self.fields.inputs(categorical, numerical)
        for layer in self.cross:
            x = layer(x0, x)
        if self.stacked:
            return self.out(self.hidden([self.first(x)])).squeeze(-1)
        deep_BH = self.deep(self.fields.inputs, categorical, numerical)
        return self.out(torch.cat([x, deep_BH], -1)).squeeze(-1)
