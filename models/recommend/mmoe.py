"""MMoE: every task mixes the same experts with a gate of its own.

    z_t = sum_i softmax(W_t e + b_t)_i f_i(e),  y_t = sigmoid(tower_t(z_t)),  L = mean_t BCE(y_t)

Source: Ma et al., 2018, doi:10.1145/3219819.3220007. Sizes, batch norm, the gates' biases and the mean over tasks as in
the code of easezyc/Multitask-Recommendation-Library (MTReclib).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.recommend._inputs import Inputs
from models.recommend._layers import Experts, GateHead, Joint, MultiTask, Towers, gate, mix, require_frozen

__all__ = ["MMoE"]


class MMoE(MultiTask):
    """Shared experts, a gate and a tower per task.

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
        self.first = Joint(self.inputs.width, [widths[0]] * experts + [tasks * experts])
        self.experts = Experts(experts, widths, dropout, norm)
        self.towers = Towers(tasks, widths[-1], towers, dropout, norm)

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        *first, gates_BO = self.first(self.inputs, categorical, numerical)
        return self.towers(mix(gate(gates_BO, self.tasks), self.experts(first)))

    @torch.no_grad()
    def represent(self, categorical: Tensor, numerical: Tensor) -> dict[str, Tensor]:
        """What the head reads: x = e (B, D) and the experts f (B, E, H). Needs eval mode, so that rows stay apart."""
        require_frozen(self)
        *first, _ = self.first(self.inputs, categorical, numerical)
        return {"x": self.inputs(categorical, numerical), "f": self.experts(first)}

    def head(self, towers: Sequence[int] | None = None, dropout: float | None = None) -> GateHead:
        """A new gate over the frozen experts and a new tower; what is None is as in this backbone."""
        widths, rate = self.tower_widths if towers is None else towers, self.dropout if dropout is None else dropout
        return GateHead(self.inputs.width, self.experts.count, self.experts.width, widths, rate, self.norm)
