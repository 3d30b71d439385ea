"""Skip-NextItNet: NextItNet whose convolution blocks run only for the sessions that need them.

    g = policy(session),  x = g_l block_l(x) + (1 - g_l) x

Source: Chen et al., 2021, doi:10.1609/aaai.v35i5.16518; blocks as in NextItNet (arXiv:1808.05163). The price of a block
is ours.
"""

from collections.abc import Sequence

from torch import nn

from models.recommend.session._blocks import Dilated
from models.recommend.session._skip import SkipSession

__all__ = ["SkipNextItNet"]


class SkipNextItNet(SkipSession):
    """Residual blocks of causal convolutions, each behind a gate.

    Args:
        items: I.
        width: D.
        dilations: of each block's first convolution; its second has twice that.
        kernel: places a convolution reads.
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
        dilations: Sequence[int] = (1, 4) * 4,
        kernel: int = 3,
        temperature: float = 7.0,
        price: float = 0.1,
        loss: str = "full",
        negatives: int = 0,
        seed: int = 0,
    ):
        blocks = nn.ModuleList(Dilated(width, kernel, dilation) for dilation in dilations)
        super().__init__(items, width, blocks, temperature, price, loss, negatives, seed)
