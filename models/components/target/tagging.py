"""Tagging: one class a token, cross-entropy at the labelled tokens only.

    L = -sum over labelled t of log softmax(W dropout(h_t) + b)[label_t]

A word's label lies on its first sub-token; the others carry -100. Source: Devlin et al., 2018, arXiv:1810.04805,
section 5.3.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from models.components._rows import Rows

__all__ = ["Tagging"]


class Tagging(nn.Module):
    """Reads labels_tagging (B, T) int64, -100 = no label.

    Args:
        width: D.
        classes: labels of a token, for example B-, I- of each kind, and O.
        dropout: before the head.
        bias: of the head.
    """

    label = "labels_tagging"

    def __init__(self, width: int, classes: int, dropout: float = 0.1, bias: bool = True):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes, bias=bias)

    def count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Labelled tokens."""
        return (batch[self.label] >= 0).sum().float()

    def forward(self, hidden: Tensor, rows: Rows, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        labelled = batch[self.label] >= 0
        logits, label = self.head(self.dropout(hidden[labelled])).float(), batch[self.label][labelled]
        return F.cross_entropy(logits, label, reduction="sum"), {"correct": (logits.argmax(-1) == label).sum()}

    def predict(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, T, D) -> (B, T, classes)."""
        return self.head(self.dropout(hidden))
