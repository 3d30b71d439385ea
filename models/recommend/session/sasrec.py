"""SASRec: causal self-attention over the session.

    x = sqrt(D) E[items] + P,  x = x + attend(norm(x)),  x = x + feed(norm(x)),  score of i = <norm(x_t), E_i> + b_i

Source: Kang and McAuley, 2018, arXiv:1808.09781, with its sizes. The causal mask, which MerRec's published code lacks,
is what makes training on shifted rows honest. The default loss is the full softmax of MerRec's benchmark
(arXiv:2402.14230); the paper's own is "bce".
"""

from torch import Tensor, nn

from models.recommend.session._blocks import Places, attended
from models.recommend.session._session import Session

__all__ = ["SASRec"]


class SASRec(Session):
    """Causal Transformer layers.

    Args:
        items: I.
        width: D.
        length: positions: the longest row of inputs.
        layers: of attention.
        heads: a divisor of D.
        inner: width of the feed-forward layers; None for D.
        dropout: of inputs, attention and what each layer adds.
        loss: "full", "sampled", "bce" or "bpr_max".
        negatives: drawn items a step, for sampled and bpr_max.
        seed: of the drawn items.
    """

    def __init__(
        self,
        items: int,
        width: int = 50,
        length: int = 50,
        layers: int = 2,
        heads: int = 1,
        inner: int | None = None,
        dropout: float = 0.2,
        loss: str = "full",
        negatives: int = 0,
        seed: int = 0,
    ):
        super().__init__(items, width, loss, negatives, seed)
        self.keep = length
        self.places = Places(width, length, dropout)
        self.blocks = nn.Sequential(*attended(width, layers, heads, inner, dropout))
        self.norm = nn.LayerNorm(width, eps=1e-8)

    def hidden(self, items: Tensor, length: Tensor) -> Tensor:
        return self.norm(self.blocks(self.places(self.item(items))))
