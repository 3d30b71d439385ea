"""Sentence prediction: does the second sentence follow the first, do image and text match?

    logits = W tanh(U h_0 + u) + b

Source: next sentence: Devlin et al., 2018, arXiv:1810.04805; order: Lan et al., 2019 (ALBERT), arXiv:1909.11942.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from models.components._loss import IGNORED
from models.components._rows import Rows
from models.components.target._labels import count_labels, read_labels

__all__ = ["SentencePrediction"]


class SentencePrediction(nn.Module):
    """Cross-entropy of labels_sp (B,), read at place 0.

    Args:
        width: D.
        labels: 2, follows or does not.
    """

    label = "labels_sp"

    def __init__(self, width: int, labels: int = 2):
        super().__init__()
        self.pool = nn.Linear(width, width)
        self.head = nn.Linear(width, labels)

    def count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Labelled rows."""
        return count_labels(batch, self.label)

    def forward(self, hidden: Tensor, rows: Rows, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> sum over labelled rows in nats, and how many are right."""
        labels = read_labels(batch, self.label, hidden.shape[:1])
        logits = self.predict(hidden, rows).float()
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return loss, {"correct": (logits.argmax(-1) == labels).sum()}

    def predict(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Logits (B, labels)."""
        return self.head(self.pool(hidden[:, 0]).tanh())
