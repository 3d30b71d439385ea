"""Shared-Bottom: all tasks read one representation of the row.

    z = bottom(e),  y_t = sigmoid(tower_t(z)),  L = mean_t BCE(y_t)

Source: Caruana, 1997, doi:10.1023/A:1007379606734. Sizes, batch norm and the mean over tasks as in the code of
easezyc/Multitask-Recommendation-Library (MTReclib).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.recommend._inputs import Inputs
from models.recommend._layers import Experts, Joint, MultiTask, TowerHead, Towers, require_frozen

__all__ = ["SharedBottom"]


class SharedBottom(MultiTask):
    """One bottom, a tower per task.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        tasks: T.
        embedding: width of a field's embedding.
        bottom: widths of the bottom's layers.
        towers: hidden widths of each tower.
        dropout: after each hidden layer.
        norm: batch normalisation before each ReLU.
        dense_field: one Linear(dense, embedding) makes the numerical columns one more field.
    """

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        tasks: int,
        embedding: int = 128,
        bottom: Sequence[int] = (512, 256),
        towers: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        norm: bool = True,
        dense_field: bool = True,
    ):
        super().__init__()
        self.tasks, self.tower_widths, self.dropout, self.norm = tasks, tuple(towers), dropout, norm
        self.inputs = Inputs(sizes, dense, embedding, dense_field)
        self.first = Joint(self.inputs.width, [bottom[0]])
        self.bottom = Experts(1, bottom, dropout, norm)
        self.towers = Towers(tasks, bottom[-1], towers, dropout, norm)

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        return self.towers(self._bottom(categorical, numerical).expand(-1, self.tasks, -1))

    @torch.no_grad()
    def represent(self, categorical: Tensor, numerical: Tensor) -> dict[str, Tensor]:
        """What the head reads: z (B, H). Needs eval mode; then each row's values depend on that row alone."""
        require_frozen(self)
        return {"z": self._bottom(categorical, numerical).squeeze(1)}

    def head(self, towers: Sequence[int] | None = None, dropout: float | None = None) -> TowerHead:
        """A new tower; what is None is as in this backbone."""
        widths, rate = self.tower_widths if towers is None else towers, self.dropout if dropout is None else dropout
        return TowerHead("z", self.bottom.width, widths, rate, self.norm)

    def _bottom(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        return self.bottom(self.first(self.inputs, categorical, numerical))
