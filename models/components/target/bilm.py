"""Two language models, one from each end, with one softmax (ELMo).

    L = - sum_t [ log p(x_{t+1} | x_1 .. x_t) + log p(x_{t-1} | x_t .. x_T) ],  logits = W h_half + b in both

The first half of the width speaks for the left-to-right model, the second for the right-to-left one. Source: Peters et
al., 2018, arXiv:1802.05365, section 3.1, which ties the softmax of the two directions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.components._loss import IGNORED, head_loss
from models.components._rows import Rows
from models.components.target._labels import count_labels, read_labels

__all__ = ["BiLM"]


class BiLM(nn.Module):
    """Reads labels_bilm (B, T, 2) int64: the next and the previous token, -100 = none.

    Args:
        width: D, even: both directions together.
        vocabulary: V.
        bias: of the head.

    Raises:
        ValueError: an odd width.
    """

    label = "labels_bilm"

    def __init__(self, width: int, vocabulary: int, bias: bool = True):
        super().__init__()
        if width % 2:
            raise ValueError(f"bilm reads two halves of the width, but {width} is odd; give an even width")
        self.head = nn.Linear(width // 2, vocabulary, bias=bias)

    def count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Labels of one direction, which has as many as the other: the loss is the sum of two means."""
        return count_labels(batch, self.label) / 2

    def forward(self, hidden: Tensor, rows: Rows, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> sum in nats over both directions; each direction's sum and how many are right, halved."""
        label = read_labels(batch, self.label, (*hidden.shape[:2], 2))
        ahead, back = (
            head_loss(half[asked], self.head.weight, wanted[asked], self.head.bias)
            for half, wanted in zip(hidden.chunk(2, -1), label.unbind(-1), strict=True)
            for asked in [wanted != IGNORED]
        )
        terms = {"forward": ahead.nll, "backward": back.nll, "correct": (ahead.correct + back.correct) / 2}
        return ahead.total + back.total, terms

    def predict(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, T, D) -> (B, T, 2, V): logits of the next and of the previous token."""
        return self.head(torch.stack(hidden.chunk(2, -1), 2))
