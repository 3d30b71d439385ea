"""Skip-SASRec: SASRec whose attention blocks run only for the sessions that need them.

    g = policy(session),  x = g_l block_l(x) + (1 - g_l) x

Source: Chen et al., 2021, doi:10.1609/aaai.v35i5.16518; blocks as in SASRec (arXiv:1808.09781), eight of them as in
MerRec's benchmark (arXiv:2402.14230). The price of a block is ours.
"""

from torch import Tensor, nn

from models.recommend.session._blocks import Places, attended
from models.recommend.session._skip import SkipSession

__all__ = ["SkipSASRec"]


class SkipSASRec(SkipSession):
    """Causal Transformer layers, each behind a gate.

    Args:
        items: I.
        width: D.
        length: positions: the longest row of inputs.
        layers: of attention.
        heads: a divisor of D.
        inner: width of the feed-forward layers; None for D.
        dropout: of inputs, attention and what each layer adds.
        temperature: of the gates' gradient.
        price: nats that all blocks together cost.
        loss: "full", "sampled", "bce" or "bpr_max".
        negatives: drawn items a step, for sampled and bpr_max.
        seed: of drawn items and noise.
    """

    def __init__(
        self,
        items: int,
        width: int = 64,
        length: int = 50,
        layers: int = 8,
        heads: int = 2,
        inner: int | None = None,
        dropout: float = 0.2,
        temperature: float = 7.0,
        price: float = 0.1,
        loss: str = "full",
        negatives: int = 0,
        seed: int = 0,
    ):
        blocks = attended(width, layers, heads, inner, dropout)
        super().__init__(items, width, blocks, temperature, price, loss, negatives, seed)
        self.keep = length
        self.places = Places(width, length, dropout)
        self.norm = nn.LayerNorm(width, eps=1e-8)

    def embed(self, items: Tensor) -> Tensor:
        return self.places(self.item(items))

    def finish(self, x_BTD: Tensor) -> Tensor:
        return self.norm(x_BTD)
