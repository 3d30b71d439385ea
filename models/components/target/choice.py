"""Choice: one row an option, softmax over the options of a question.

    z_i = w . dropout(tanh(P h_i,pool)) + b,   L = -sum over questions of log softmax over its options (z)[right one]

Source: Radford et al., 2018, "Improving Language Understanding by Generative Pre-Training", section 3.3; Devlin et al.,
2018, arXiv:1810.04805, section 4.4 (SWAG). Questions may have different numbers of options; that form is ours.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.components._pool import PooledHead
from models.components._rows import Rows

__all__ = ["Choice"]


class Choice(PooledHead):
    """Reads labels_choice (N,) int64, 1 at the right option and 0 at the others, and questions (N,) int64.

    N rows are options; `questions` numbers the question of each row, from 0 on and without gaps.

    Args:
        width: D.
        pool: first, last, mean or max of the real places.
        transform: a tanh layer between pool and head.
        bias: of the head.
        dropout: before the head.

    Raises:
        ValueError: a question has no right option, or several.
    """

    label = "labels_choice"

    def __init__(
        self, width: int, pool: str = "first", transform: bool = True, bias: bool = True, dropout: float = 0.1
    ):
        super().__init__(width, 1, pool, transform, bias, dropout)

    def count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Questions."""
        return batch[self.label].sum().float()

    def forward(self, hidden: Tensor, rows: Rows, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        label, questions = batch[self.label], batch["questions"]
        total = int(questions[-1]) + 1
        if (label.new_zeros(total).index_add(0, questions, label) != 1).any():
            raise ValueError("every question of labels_choice needs exactly one right option")
        score = self.predict(hidden, rows).float().squeeze(-1)
        highest = score.new_full((total,), -torch.inf).scatter_reduce(0, questions, score.detach(), "amax")
        shifted = score - highest[questions]
        normaliser = score.new_zeros(total).index_add(0, questions, shifted.exp()).log()
        right = label == 1
        loss = (normaliser[questions[right]] - shifted[right]).sum()
        return loss, {"correct": (shifted[right] >= 0).sum()}
