"""Single task: every task has a model of its own, embeddings included; the reference from scratch.

    y_t = sigmoid(tower_t(bottom_t(e_t))),  L = mean_t BCE(y_t)

No parameter is shared, so the gradient of one task never reaches another. Source: SingleTask in the code of
easezyc/Multitask-Recommendation-Library (MTReclib), with its sizes and batch norm. Ours: the head, a tower on all
bottoms side by side (there, single tasks are only trained from scratch).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.recommend._inputs import Inputs
from models.recommend._layers import Experts, Joint, MultiTask, TowerHead, Towers, require_frozen

__all__ = ["SingleTask"]


class SingleTask(MultiTask):
    """T separate models.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        tasks: T.
        embedding: width of a field's embedding.
        bottom: widths of each bottom's layers.
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
        self.tower_widths, self.dropout, self.norm = tuple(towers), dropout, norm
        self.inputs = nn.ModuleList(Inputs(sizes, dense, embedding, dense_field) for _ in range(tasks))
        self.first = nn.ModuleList(Joint(inputs.width, [bottom[0]]) for inputs in self.inputs)
        self.bottom = Experts(tasks, bottom, dropout, norm)
        self.towers = Towers(tasks, bottom[-1], towers, dropout, norm)

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        return self.towers(self._bottoms(categorical, numerical))

    @torch.no_grad()
    def represent(self, categorical: Tensor, numerical: Tensor) -> dict[str, Tensor]:
        """What the head reads: z (B, T H), all bottoms side by side. Needs eval mode, so that rows stay apart."""
        require_frozen(self)
        return {"z": self._bottoms(categorical, numerical).flatten(1)}

    def head(self, towers: Sequence[int] | None = None, dropout: float | None = None) -> TowerHead:
        """A new tower on all frozen bottoms; what is None is as in this backbone."""
        widths, rate = self.tower_widths if towers is None else towers, self.dropout if dropout is None else dropout
        return TowerHead("z", self.bottom.count * self.bottom.width, widths, rate, self.norm)

    def _bottoms(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        first = [
            layer(inputs, categorical, numerical)[0] for layer, inputs in zip(self.first, self.inputs, strict=True)
        ]
        return self.bottom(first)
