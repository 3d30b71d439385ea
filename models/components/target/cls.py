"""Classification: a label for the whole row.

    logits = W dropout(tanh(P h_pool)) + b

Source: Devlin et al., 2018, arXiv:1810.04805; without the dense layer: Dosovitskiy et al., 2020 (ViT),
arXiv:2010.11929.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from models.components._loss import IGNORED
from models.components._pool import PooledHead
from models.components._rows import Rows
from models.components.target._labels import count_labels, read_labels

__all__ = ["Classification"]


class Classification(PooledHead):
    """Cross-entropy of labels_cls (B,), -100 where a row has none.

    Args:
        width: D.
        labels: how many.
        pool: "first", "mean", "max" or "last" of the real places.
        transform: a tanh layer between pool and head.
        bias: of the head.
        dropout: before the head.
    """

    label = "labels_cls"

    def __init__(
        self,
        width: int,
        labels: int = 2,
        pool: str = "first",
        transform: bool = True,
        bias: bool = True,
        dropout: float = 0.1,
    ):
        super().__init__(width, labels, pool, transform, bias, dropout)

    def count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Labelled rows."""
        return count_labels(batch, self.label)

    def forward(self, hidden: Tensor, rows: Rows, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> sum over labelled rows in nats, and how many are right."""
        labels = read_labels(batch, self.label, hidden.shape[:1])
        logits = self.predict(hidden, rows).float()
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return loss, {"correct": (logits.argmax(-1) == labels).sum()}
