"""NFM: the summed products of all pairs of fields go through a perceptron.

    z = sum_(i<j) v_i * v_j,  logit = w_0 + sum_f w_f[x_f] + perceptron(dropout(norm(z)))

Source: He and Chua, 2017, arXiv:1708.05027, with its sizes: one hidden layer as wide as the vectors.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.recommend._layers import Experts, Norm, Towers
from models.recommend.ctr._ctr import Click, Fields, FirstOrder, bi_interaction

__all__ = ["NFM"]


class NFM(Click):
    """First order, and a perceptron of the pooled pairs.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        embedding: width d of a field's vector v.
        deep: hidden widths.
        dropout: of the pooled pairs.
        norm: batch normalisation of the pooled pairs and of each hidden layer.

    Raises:
        ValueError: fewer than two fields.
    """

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        embedding: int = 64,
        deep: Sequence[int] = (64,),
        dropout: float = 0.5,
        norm: bool = True,
    ):
        super().__init__()
        self.fields = Fields(sizes, dense, embedding, least=2)
        self.first_order = FirstOrder(sizes, dense)
        self.norm = Norm(1, embedding) if norm else None
        self.dropout = nn.Dropout(dropout)
        self.first = nn.Linear(embedding, deep[0])
        self.hidden = Experts(1, deep, 0.0, norm)
        self.out = Towers(1, deep[-1], ())

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        z_Bd = bi_interaction(self.fields(categorical, numerical))
        if self.norm is not None:
            z_Bd = self.norm(z_Bd[:, None]).squeeze(1)
        deep = self.out(self.hidden([self.first(self.dropout(z_Bd))])).squeeze(-1)
        return self.first_order(categorical, numerical) + deep
