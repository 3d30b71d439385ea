"""Span: the start and the end of an answer among the places of a row.

    s_t, e_t = W h_t + b,   L = sum over rows of 1/2 [CE(s, start) + CE(e, end)],  softmax over the row's real places

A window without the answer is labelled (first place, first place). Source: Devlin et al., 2018, arXiv:1810.04805,
sections 4.2 and 4.3. That padding never enters the softmax is ours: transformers lets it.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components._rows import Rows

__all__ = ["Span"]


class Span(nn.Module):
    """Reads labels_span (B, 2) int64: first and last place of the answer, counted in the row; -100 twice = no label.

    Args:
        width: D.
        bias: of the head.

    Raises:
        ValueError: a label points at padding.
    """

    label = "labels_span"

    def __init__(self, width: int, bias: bool = True):
        super().__init__()
        self.head = nn.Linear(width, 2, bias=bias)

    def count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Labelled rows."""
        return (batch[self.label][:, 0] >= 0).sum().float()

    def forward(self, hidden: Tensor, rows: Rows, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        label = batch[self.label]
        labelled = label[:, 0] >= 0
        label, mask = label[labelled], rows.mask[labelled]
        if not mask.gather(1, label).all():
            raise ValueError("labels_span points at padding: the answer lies outside its window")
        logits = self.head(hidden[labelled]).float().masked_fill(~mask.unsqueeze(-1), torch.finfo(torch.float32).min)
        loss = F.cross_entropy(logits, label, reduction="sum") / 2
        return loss, {"correct": (logits.argmax(1) == label).all(-1).sum()}

    def predict(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, T, D) -> (B, T, 2); padding has the lowest number there is."""
        logits = self.head(hidden)
        return logits.masked_fill(~rows.mask.unsqueeze(-1), torch.finfo(logits.dtype).min)
