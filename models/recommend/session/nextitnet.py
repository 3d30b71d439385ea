"""NextItNet: dilated causal convolutions, whose sight doubles from block to block.

    block(x) = x + relu(norm(conv_2d(relu(norm(conv_d(x))))))

Source: Yuan et al., 2018, arXiv:1808.05163; dilations 1 and 4 in turn, eight blocks as in MerRec's benchmark
(arXiv:2402.14230).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.recommend.session._blocks import Dilated
from models.recommend.session._session import Session

__all__ = ["NextItNet"]


class NextItNet(Session):
    """Residual blocks of causal convolutions.

    Args:
        items: I.
        width: D.
        dilations: of each block's first convolution; its second has twice that.
        kernel: places a convolution reads.
        loss: "full", "sampled", "bce" or "bpr_max".
        negatives: drawn items a step, for sampled and bpr_max.
        seed: of the drawn items.
    """

    def __init__(
        self,
        items: int,
        width: int = 64,
        dilations: Sequence[int] = (1, 4) * 4,
        kernel: int = 3,
        loss: str = "full",
        negatives: int = 0,
        seed: int = 0,
    ):
        super().__init__(items, width, loss, negatives, seed)
        if not len(dilations):
            raise ValueError("NextItNet needs a block; name one dilation or more")
        self.blocks = nn.Sequential(*(Dilated(width, kernel, dilation) for dilation in dilations))

    def hidden(self, items: Tensor, length: Tensor) -> Tensor:
        return self.blocks(self.item(items))
