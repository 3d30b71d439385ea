"""OMoE: all tasks read one mixture of experts, through one gate.

    z = sum_i softmax(W e + b)_i f_i(e),  y_t = sigmoid(tower_t(z)),  L = mean_t BCE(y_t)

Source: Ma et al., 2018, doi:10.1145/3219819.3220007 (there: the one-gate model that MMoE is compared with). Sizes,
batch norm, the gate's bias and the mean over tasks as in the code of easezyc/Multitask-Recommendation-Library
(MTReclib).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.recommend._inputs import Inputs
from models.recommend._layers import Experts, Joint, MultiTask, TowerHead, Towers, gate, mix, require_frozen

__all__ = ["OMoE"]


class OMoE(MultiTask):
    """Shared experts, one gate, a tower per task.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        tasks: T.
        embedding: width of a field's embedding.
        experts: how many.
        widths: of each expert's layers.
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
        experts: int = 8,
        widths: Sequence[int] = (512, 256),
        towers: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        norm: bool = True,
        dense_field: bool = True,
    ):
        super().__init__()
        self.tasks, self.tower_widths, self.dropout, self.norm = tasks, tuple(towers), dropout, norm
        self.inputs = Inputs(sizes, dense, embedding, dense_field)
        self.first = Joint(self.inputs.width, [widths[0]] * experts + [experts])
        self.experts = Experts(experts, widths, dropout, norm)
        self.towers = Towers(tasks, widths[-1], towers, dropout, norm)

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        return self.towers(self._mixture(categorical, numerical).expand(-1, self.tasks, -1))

    @torch.no_grad()
    def represent(self, categorical: Tensor, numerical: Tensor) -> dict[str, Tensor]:
        """What the head reads: the mixture z (B, H) of the frozen gate. Needs eval mode, so that rows stay apart."""
        require_frozen(self)
        return {"z": self._mixture(categorical, numerical).squeeze(1)}

    def head(self, towers: Sequence[int] | None = None, dropout: float | None = None) -> TowerHead:
        """A new tower on the frozen mixture; what is None is as in this backbone."""
        widths, rate = self.tower_widths if towers is None else towers, self.dropout if dropout is None else dropout
        return TowerHead("z", self.experts.width, widths, rate, self.norm)

    def _mixture(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        *first, gate_BO = self.first(self.inputs, categorical, numerical)
        return mix(gate(gate_BO, 1), self.experts(first))
