"""AFM: attention says how much each pair of fields counts.

    a_ij = softmax_(i<j)( h^T relu(W (v_i * v_j) + b) )
    logit = w_0 + sum_f w_f[x_f] + p^T dropout(sum_(i<j) a_ij (v_i * v_j))

Source: Xiao et al., 2017, arXiv:1708.04617; the widths are ours, for tables of some twenty fields.
"""

import torch
from torch import Tensor, nn

from models.recommend.ctr._ctr import Click, Fields, FirstOrder

__all__ = ["AFM"]


class AFM(Click):
    """First order, and the attended pairs.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        embedding: width d of a field's vector v.
        attention: width of the attention's hidden layer.
        dropout: of the attended sum.

    Raises:
        ValueError: fewer than two fields.
    """

    def __init__(self, sizes: list[int], dense: int, embedding: int = 16, attention: int = 16, dropout: float = 0.2):
        super().__init__()
        self.fields = Fields(sizes, dense, embedding, least=2)
        self.first_order = FirstOrder(sizes, dense)
        self.attention = nn.Linear(embedding, attention)
        self.h = nn.Linear(attention, 1, bias=False)
        self.p = nn.Linear(embedding, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        pairs = torch.triu_indices(self.fields.count, self.fields.count, 1)
        self.register_buffer("pairs", pairs, persistent=False)

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        product_BPd, share_BP = self.attend(categorical, numerical)
        attended_Bd = (share_BP[..., None] * product_BPd).sum(1)
        return self.first_order(categorical, numerical) + self.p(self.dropout(attended_Bd)).squeeze(-1)

    def attend(self, categorical: Tensor, numerical: Tensor) -> tuple[Tensor, Tensor]:
        """Products (B, P, d) of the P pairs of fields, and what each counts, (B, P), rows sum to 1."""
        v_BFd = self.fields(categorical, numerical)
        product_BPd = v_BFd.index_select(1, self.pairs[0]) * v_BFd.index_select(1, self.pairs[1])
        return product_BPd, self.h(self.attention(product_BPd).relu()).squeeze(-1).softmax(-1)
