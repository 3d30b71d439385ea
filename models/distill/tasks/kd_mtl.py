"""KD-MTL: the shared features, seen through a small map of each task, reproduce those of its single-task teacher.

    L = S(y, s) + lambda ||n(A_k phi(x)) - n(phi_k(x))||^2,   n(v) = v / sqrt(|v|^2 + 1e-6)

All matching losses lie in [0, 4], whatever the task's own loss, which balances tasks of unlike difficulty. The maps
A_k leave with the teachers. Source: Li and Bilen, 2020, arXiv:2007.06889. Here phi is the pooled state that the heads
read, and a step is of one task (ours); a teacher whose feature is all but zero says nothing on that row (ours).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.distill.tasks._lesson import Lesson, Task, TaskMethod, gold_loss

__all__ = ["KDMTL"]

TINY = 1e-6


class KDMTL(TaskMethod):
    """Gold labels and features; several teachers of a task are averaged.

    Args:
        tasks: see TaskMethod; with the widths of their teachers' features.
        width: D, of the student's feature.
        weight: lambda, one for all tasks or one each.
    """

    needs = ("features",)

    def __init__(self, tasks: Sequence[Task], width: int, weight: float | Mapping[str, float] = 1.0):
        super().__init__(tasks)
        self.weight = {task.name: weight.get(task.name, 1.0) if isinstance(weight, Mapping) else weight
                       for task in tasks}  # fmt: skip
        self.adapt = nn.ModuleDict({
            task.name: nn.ModuleList(nn.Linear(width, theirs, bias=False) for theirs in task.widths) for task in tasks
        })  # fmt: skip
        for map_ in self.adapt.parameters():
            nn.init.xavier_normal_(map_)

    def forward(self, lesson: Lesson) -> Tensor:
        maps = self.adapt[lesson.task]
        far = [distance(map_(lesson.feature), theirs) for map_, theirs in zip(maps, lesson.features, strict=True)]
        return gold_loss(lesson) + self.weight[lesson.task] * torch.stack(far).mean(0)


def distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """||n(ours) - n(theirs)||^2 over the last axis, in [0, 4]; 0 where theirs is all but zero."""
    size = theirs.float().square().sum(-1)
    return torch.where(size > TINY, (_normed(ours) - _normed(theirs)).square().sum(-1), 0.0)


def _normed(v: Tensor) -> Tensor:
    v = v.float()
    return v / (v.square().sum(-1, keepdim=True) + TINY).sqrt()
