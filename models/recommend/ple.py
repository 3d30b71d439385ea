"""PLE: in each of L levels a task mixes experts of its own with shared ones, so tasks meet only in the shared ones.

Level l, on x_t of each task and x_s of the shared path (all are e at level 1), with n own and m shared experts:

    out_t = sum_i softmax(W_t x_t + b_t)_i [E_t,1(x_t) ... E_t,n(x_t); S_1(x_s) ... S_m(x_s)]_i
    out_s = sum_i softmax(W_s x_s + b_s)_i [all tasks' experts; all shared experts]_i         not in the last level

    y_t = sigmoid(tower_t(out_t)),  L = mean_t BCE(y_t)

Source: Tang et al., 2020, doi:10.1145/3383313.3412236. One-layer experts of width `widths[l]` in level l, batch norm,
the gates' biases and the mean over tasks as in the code of easezyc/Multitask-Recommendation-Library (MTReclib).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.recommend._inputs import Inputs
from models.recommend._layers import (
    Block,
    GateHead,
    Joint,
    MultiTask,
    ParallelLinear,
    Perceptrons,
    Towers,
    gate,
    mix,
    per_layer,
    require_frozen,
)

__all__ = ["PLE"]


class PLE(MultiTask):
    """Levels of own and shared experts.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        tasks: T.
        embedding: width of a field's embedding.
        own: experts of each task, in each level.
        shared: shared experts, in each level; may be 0.
        widths: of the experts, one for each level.
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
        own: int = 4,
        shared: int = 4,
        widths: Sequence[int] = (512, 256),
        towers: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        norm: bool = True,
        dense_field: bool = True,
    ):
        super().__init__()
        if own < 1 or shared < 0:
            raise ValueError(f"PLE needs own >= 1 and shared >= 0 experts; got own={own}, shared={shared}")
        self.tower_widths, self.dropout, self.norm = tuple(towers), dropout, norm
        self.inputs = Inputs(sizes, dense, embedding, dense_field)
        last = [level == len(widths) - 1 for level in range(len(widths))]
        self.levels = nn.ModuleList(
            Level(tasks, own, shared, *level, norm)
            for level in zip(widths, last, per_layer(dropout, widths), strict=True)
        )
        self.first = Joint(self.inputs.width, self.levels[0].sizes)
        self.reads = nn.ModuleList(Reads(width, level) for width, level in zip(widths, self.levels[1:], strict=False))
        self.towers = Towers(tasks, widths[-1], towers, dropout, norm)

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        return self.towers(self._last_level(categorical, numerical)[2])

    @torch.no_grad()
    def represent(self, categorical: Tensor, numerical: Tensor) -> dict[str, Tensor]:
        """What the head reads: the shared path x (B, D) before the last level, and all its experts f (B, N, H).

        With one level, x is e. Needs eval mode, so that rows stay apart.
        """
        require_frozen(self)
        shared_BD, f_BNH, _ = self._last_level(categorical, numerical)
        return {"x": self.inputs(categorical, numerical) if shared_BD is None else shared_BD, "f": f_BNH}

    def head(self, towers: Sequence[int] | None = None, dropout: float | None = None) -> GateHead:
        """A new last-level gate on the shared path, over the experts of all tasks and the shared ones, and a new tower.

        What is None is as in this backbone.
        """
        widths, rate = self.tower_widths if towers is None else towers, self.dropout if dropout is None else dropout
        last = self.levels[-1]
        read = self.levels[-2].width if self.reads else self.inputs.width
        return GateHead(read, last.count, last.width, widths, rate, self.norm)

    def _last_level(self, categorical: Tensor, numerical: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Its shared input (None: it is e), its experts (B, N, H) and the tasks' outputs (B, T, H)."""
        f_BNH, out_BTH, shared_BH = self.levels[0](self.first(self.inputs, categorical, numerical))
        read_BH = None
        for reads, level in zip(self.reads, self.levels[1:], strict=True):
            read_BH = shared_BH
            f_BNH, out_BTH, shared_BH = level(reads(out_BTH, read_BH))
        return read_BH, f_BNH, out_BTH


class Level(Perceptrons):
    """One level after its linear layers: all experts, the tasks' gates and, unless it is the last, the shared gate."""

    def __init__(self, tasks: int, own: int, shared: int, width: int, last: bool, dropout: float, norm: bool):
        super().__init__()
        self.tasks, self.own, self.shared, self.width, self.last = tasks, own, shared, width, last
        self.count = tasks * own + shared
        self.sizes = [width] * self.count + [tasks * (own + shared)] + ([] if last else [self.count])
        self.layers = nn.Sequential(Block(self.count, width, dropout, norm))

    def forward(self, linear: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Outputs of these layers, as `sizes` says -> experts (B, N, H), tasks (B, T, H), the shared path (B, H)."""
        gates_BO, *shared_gate = linear[self.count :]
        f_BNH = self.run(linear[: self.count])
        own_BTI, shared_BTM = gate(gates_BO, self.tasks).split([self.own, self.shared], -1)
        # Other tasks' experts weigh exactly 0, so their gradient is exactly 0; one product reads all experts once.
        own_TT1 = torch.eye(self.tasks, device=f_BNH.device).unsqueeze(-1)
        gate_BXN = torch.cat([(own_BTI.unsqueeze(2) * own_TT1).flatten(2), shared_BTM], -1)
        if not self.last:
            gate_BXN = torch.cat([gate_BXN, gate(*shared_gate, 1)], 1)
        out_BXH = mix(gate_BXN, f_BNH)
        return f_BNH, out_BXH[:, : self.tasks], None if self.last else out_BXH[:, -1]


class Reads(nn.Module):
    """The linear layers of a later level: a task's experts and gate read its path, the shared ones the shared path."""

    def __init__(self, width: int, level: Level):
        super().__init__()
        self.shared_experts = level.shared
        self.split = [level.width] * level.own + [level.own + level.shared]
        self.shared_split = [level.width] * level.shared + ([] if level.last else [level.count])
        self.tasks = ParallelLinear(level.tasks, width, sum(self.split))
        self.shared = ParallelLinear(1, width, sum(self.shared_split))

    def forward(self, out_BTH: Tensor, shared_BH: Tensor) -> list[Tensor]:
        """As `level.sizes` says: own experts of all tasks, shared experts, the tasks' gates, the shared gate."""
        own, gates = [], []
        for part in self.tasks.apart(out_BTH.unbind(1)):
            *experts, logit_BO = part.split(self.split, -1)
            own += [expert.contiguous() for expert in experts]  # batch norm crawls over a slice
            gates.append(logit_BO)
        (part,) = self.shared.apart([shared_BH])
        shared = part.split(self.shared_split, -1) if self.shared_split else ()
        experts = [expert.contiguous() for expert in shared[: self.shared_experts]]
        return [*own, *experts, torch.cat(gates, -1), *shared[self.shared_experts :]]
