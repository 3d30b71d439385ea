"""Feed-forward layers: outer(act(inner x)), or gated: outer(act(gate x) * inner x).

Source: Vaswani et al., 2017, arXiv:1706.03762; gated: Shazeer, 2020, arXiv:2002.05202.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from models.components._closest import refuse_unknown

__all__ = ["FeedForward", "activation"]

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda hidden: hidden * (1.702 * hidden).sigmoid(),  # CLIP's
    "relu": F.relu,
    "silu": F.silu,
    "tanh": F.tanh,
    "linear": lambda hidden: hidden,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name.

    Raises:
        ValueError: no such activation.
    """
    refuse_unknown("act", name, ACTIVATIONS, ValueError)
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """Two layers around an activation, three when gated: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, inner: int, act: str, gated: bool, bias: bool):
        super().__init__()
        self.act = activation(act)
        self.inner = nn.Linear(width, inner, bias)
        self.gate = nn.Linear(width, inner, bias) if gated else None
        self.outer = nn.Linear(inner, width, bias)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.gate is None:
            return self.outer(self.act(self.inner(hidden)))
        return self.outer(self.act(self.gate(hidden)) * self.inner(hidden))
