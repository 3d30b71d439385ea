"""Blocks that a sequence goes through, one after another: (B, T, D) -> (B, T, D) each, none of them looks ahead."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components._attention import View, view
from models.components._dropout import dropout
from models.components._layers import Layer, Stack
from models.components._rows import Rows

__all__ = ["Attended", "Dilated", "Places", "attended", "sight"]


class Dilated(nn.Module):
    """NextItNet's residual block: two causal convolutions, of dilation d and 2 d, each with norm and ReLU.

    x + relu(norm(conv_2d( relu(norm(conv_d(x))) )))

    Raises:
        ValueError: a width, a kernel or a dilation below 1.
    """

    def __init__(self, width: int, kernel: int, dilation: int):
        super().__init__()
        if min(width, kernel, dilation) < 1:
            raise ValueError(f"a convolution needs a width, a kernel and a dilation of 1 or more; got {width}, "
                             f"{kernel} and {dilation}")  # fmt: skip
        self.kernel, self.dilations = kernel, (dilation, 2 * dilation)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, kernel, dilation=d) for d in self.dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.dilations)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTD = x_BTD
        for convolution, norm, dilation in zip(self.convolutions, self.norms, self.dilations, strict=True):
            padded = F.pad(h_BTD.transpose(1, 2), ((self.kernel - 1) * dilation, 0))
            h_BTD = F.relu(norm(convolution(padded).transpose(1, 2)))
        return x_BTD + h_BTD


class Attended(nn.Module):
    """A causal Transformer layer whose norms come first."""

    def __init__(self, layer: Layer, attention_dropout: float):
        super().__init__()
        self.layer, self.attention_dropout = layer, attention_dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        held = self.training and self.attention_dropout > 0 and x_BTD.device.type == "cpu"
        return self.layer(x_BTD, sight(x_BTD.shape[:2], x_BTD.device, held))[0]


def attended(width: int, layers: int, heads: int, inner: int | None, dropout: float) -> nn.ModuleList:
    """Causal Transformer layers, norms first, ReLU; inner None for the width, as SASRec's.

    Raises:
        ValueError: heads that do not divide the width, or a width below 1.
    """
    if width < 1:
        raise ValueError(f"width, of the item vectors, is 1 or more; got {width}")
    stack = Stack(width, layers, heads, inner or width, mask="causal", norm_first=True, act="relu", eps=1e-8,
                  dropout=dropout)  # fmt: skip
    return nn.ModuleList(Attended(layer, dropout) for layer in stack.layers)


def sight(shape: tuple[int, int], device: torch.device, held: bool) -> View:
    """Each place sees itself and all before."""
    return view(Rows.of(shape, device), "causal", None, held)


class Places(nn.Module):
    """Item vectors times sqrt(D), plus a vector for each position from the first real item, then dropout.

    Raises:
        ValueError: no position, or a row longer than there are positions.
    """

    def __init__(self, width: int, length: int, rate: float):
        super().__init__()
        if length < 1:
            raise ValueError(f"length, the items of a row that are read, is 1 or more; got {length}")
        self.position = nn.Embedding(length, width)
        nn.init.normal_(self.position.weight, std=0.02)
        self.rate = rate

    def forward(self, item_BTD: Tensor) -> Tensor:
        places, most = item_BTD.shape[1], self.position.num_embeddings
        if places > most:
            raise ValueError(f"a row has {places} items, the model has {most} positions; give it the last {most} items "
                             f"of each row, or build it with a larger length")  # fmt: skip
        x_BTD = item_BTD * item_BTD.shape[-1] ** 0.5 + self.position.weight[:places]
        return dropout(x_BTD, self.rate, self.training)
