"""DeepFM: a factorisation machine and a perceptron read the same embeddings.

    logit = w_0 + sum_f w_f[x_f] + sum_(i<j) <v_i, v_j> + deep(e)

Source: Guo et al., 2017, arXiv:1703.04247, with its sizes.
"""

from collections.abc import Sequence

from torch import Tensor

from models.recommend.ctr._ctr import Click, Deep, Fields, FirstOrder, bi_interaction

__all__ = ["DeepFM"]


class DeepFM(Click):
    """First order, pairs and a perceptron, added.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        embedding: width d of a field's vector v.
        deep: hidden widths.
        dropout: after each hidden layer.
        norm: batch normalisation before each ReLU.
    """

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        embedding: int = 10,
        deep: Sequence[int] = (400, 400, 400),
        dropout: float = 0.5,
        norm: bool = False,
    ):
        super().__init__()
        self.fields = Fields(sizes, dense, embedding)
        self.first_order = FirstOrder(sizes, dense)
        self.deep = Deep(self.fields.inputs, deep, dropout, norm)

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        pairs = bi_interaction(self.fields(categorical, numerical)).sum(-1)
        return self.first_order(categorical, numerical) + pairs + self.deep(self.fields.inputs, categorical, numerical)
