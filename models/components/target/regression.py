"""Regression: one number (or several) a row, squared error.

    y = W dropout(tanh(P h_pool)) + b,   L = sum over rows and outputs of (y - label)^2

Source: Devlin et al., 2018, arXiv:1810.04805, section 4.1 (STS-B); squared error as there. NaN = no label is ours.
"""

from collections.abc import Mapping

from torch import Tensor

from models.components._pool import PooledHead
from models.components._rows import Rows

__all__ = ["Regression"]


class Regression(PooledHead):
    """Reads labels_regression (B,) or (B, K) float, in any unit; NaN where there is no label.

    Args:
        width: D.
        outputs: K, numbers a row.
        pool: first, last, mean or max of the real places.
        transform: a tanh layer between pool and head.
        bias: of the head.
        dropout: before the head.

    Raises:
        ValueError: the labels are not K a row.
    """

    label = "labels_regression"

    def __init__(
        self, width: int, outputs: int = 1, pool: str = "first", transform: bool = True, bias: bool = True,
        dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__(width, outputs, pool, transform, bias, dropout)

    def count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Labels that are there."""
        return (~batch[self.label].isnan()).sum().float()

    def forward(self, hidden: Tensor, rows: Rows, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        answer = self.predict(hidden, rows).float()
        label = batch[self.label].view(len(answer), -1)
        if label.shape != answer.shape:
            raise ValueError(f"labels_regression has {label.shape[1]} numbers a row, the head {answer.shape[1]}")
        there = ~label.isnan()
        error = answer[there] - label[there].float()
        return error.square().sum(), {"absolute": error.abs().sum().detach()}
