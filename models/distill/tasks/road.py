"""ROaD: before the end task, a second pre-training on many labelled tasks at once, under several teachers of each.

    L = (1 - w) S(y, s) + w 1/M sum_m S(q_m, s),   then the end tasks alone on gold labels

The sum over teachers is S to their mean, as S is linear in its target. Source: ElFadeel and Peshterliev, 2021,
arXiv:2103.08809, of which the abstract was at hand: the form of L and w = 1/2 are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.distill.tasks._lesson import Lesson, Task, TaskMethod, gold_loss, soft_loss

__all__ = ["ROaD"]


class ROaD(TaskMethod):
    """The joint stage; `ends` names what is trained alone afterwards.

    Args:
        tasks: see TaskMethod; those without teachers learn from gold labels.
        ends: names of the end tasks.
        soft: w.

    Raises:
        LookupError: an end task that is no task.
        ValueError: w is not in [0, 1].
    """

    every = False

    def __init__(self, tasks: Sequence[Task], ends: Sequence[str] = (), soft: float = 0.5):
        super().__init__(tasks)
        if unknown := sorted(set(ends) - set(self.tasks)):
            raise LookupError(f"road ends with {', '.join(unknown)}, but the tasks are {', '.join(self.tasks)}")
        if not 0 <= soft <= 1:
            raise ValueError(f"soft is the teachers' share, in [0, 1]; got {soft}")
        self.ends, self.soft = tuple(ends), soft

    def forward(self, lesson: Lesson) -> Tensor:
        if lesson.taught is None:
            return gold_loss(lesson)
        share = torch.where(lesson.labelled, self.soft, 1.0)
        return share * soft_loss(lesson) + (1 - share) * gold_loss(lesson)
