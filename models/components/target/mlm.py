"""Masked language modelling: name the tokens that were hidden.

    logits = W norm(act(U h + u)) + b at labelled places only

Source: Devlin et al., 2018, arXiv:1810.04805; over visual codes: Bao et al., 2021 (BEiT), arXiv:2106.08254.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from models.components._feedforward import activation
from models.components._loss import IGNORED, head_loss
from models.components._norm import make_norm
from models.components._rows import Rows
from models.components.target._labels import count_labels, read_labels

__all__ = ["MaskedLM"]


class MaskedLM(nn.Module):
    """Cross-entropy of labels_mlm (B, T), -100 where nothing is asked.

    Args:
        width: D.
        vocabulary: V.
        embedding_width: width of what the head reads, E where the embedding is factorised; None for D.
        act: between transform and norm.
        norm: before the head.
        eps: of the norm.
    """

    label = "labels_mlm"

    def __init__(
        self,
        width: int,
        vocabulary: int,
        embedding_width: int | None = None,
        act: str = "gelu",
        norm: str = "layer",
        eps: float = 1e-12,
    ):
        super().__init__()
        inner = embedding_width or width
        self.act = activation(act)
        self.transform = nn.Linear(width, inner)
        self.norm = make_norm(norm, inner, eps)
        self.head = nn.Linear(inner, vocabulary)

    def count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Labelled tokens."""
        return count_labels(batch, self.label)

    def forward(self, hidden: Tensor, rows: Rows, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> sum over labelled tokens in nats, and how many are right."""
        labels = read_labels(batch, self.label, hidden.shape[:2])
        asked = labels != IGNORED
        loss = head_loss(self.read(hidden[asked]), self.head.weight, labels[asked], self.head.bias)
        return loss.total, {"correct": loss.correct}

    def predict(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Logits (B, T, V)."""
        return self.head(self.read(hidden))

    def read(self, hidden: Tensor) -> Tensor:
        """What the head reads, of any places (..., D)."""
        return self.norm(self.act(self.transform(hidden)))
