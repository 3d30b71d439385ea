"""GRU4Rec: a recurrent network reads the session item by item.

    h_t = GRU(E[x_t], h_(t-1)),  score of item i = <W h_t, E_i> + b_i

Items' vectors are those of the input (constrained embeddings); W is there where the network is wider than they are.
Source: Hidasi et al., 2015, arXiv:1511.06939; losses: Hidasi and Karatzoglou, 2018, arXiv:1706.03847. The default loss
is the full softmax of MerRec's benchmark (arXiv:2402.14230).
"""

from torch import Tensor, nn

from models.recommend.session._session import Session

__all__ = ["GRU4Rec"]


class GRU4Rec(Session):
    """Gated recurrent units over a session.

    Args:
        items: I.
        width: of the item vectors.
        units: of each recurrent layer; None for `width`.
        layers: recurrent layers.
        dropout: of the item vectors, between the layers and after them.
        loss: "full", "sampled", "bce" or "bpr_max".
        negatives: drawn items a step, for sampled and bpr_max.
        seed: of the drawn items.
    """

    def __init__(
        self,
        items: int,
        width: int = 100,
        units: int | None = None,
        layers: int = 1,
        dropout: float = 0.0,
        loss: str = "full",
        negatives: int = 0,
        seed: int = 0,
    ):
        super().__init__(items, width, loss, negatives, seed)
        units = units or width
        self.dropout = nn.Dropout(dropout)
        self.network = nn.GRU(width, units, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.out = nn.Linear(units, width) if units != width else nn.Identity()

    def hidden(self, items: Tensor, length: Tensor) -> Tensor:
        return self.out(self.dropout(self.network(self.dropout(self.item(items)))[0]))
