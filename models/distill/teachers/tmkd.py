"""TMKD: several teachers teach by the mean of their losses, before and during fine-tuning.

    pretrain  L = mean_k MSE(z_s, z_k)              over the vocabulary at real tokens
    finetune  L = mean_k MSE(z_s, z_k) + hard / K   over the task's classes

With another method, its soft part takes the place of the squared error.
Source: Yang et al., 2019, arXiv:1910.08381; form as in Tan et al., 2023, arXiv:2306.06629.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from models.distill._maths import wide
from models.distill._signals import Method, Shape, Signals
from models.distill._step import weight
from models.distill._words import Words
from models.distill.teachers._several import Choice, Several

__all__ = ["TMKD"]


class TMKD(Several):
    """Two-stage multi-teacher distillation: a scalar >= 0.

    Args:
        method: see Several; None for the squared error.
        hard: weight of the gold labels in fine-tuning; None for 1 / K.
        stage: "pretrain", then "finetune".
    """

    stages = ("pretrain", "finetune")

    def __init__(
        self,
        student: Shape,
        teachers: Sequence[Shape],
        method: Choice | None = None,
        hard: float | None = None,
        stage: str | None = None,
    ):
        stage = self.choose_stage(stage)
        error = partial(SquaredError, read="logits" if stage == "pretrain" else "task")
        super().__init__(student, teachers, method or error, ("hard",) if stage == "finetune" else ())
        self.stage = stage
        self.hard = 1 / len(teachers) if hard is None else hard

    def hard_weight(self) -> float:
        return self.hard if self.stage == "finetune" else 0.0

    def forward(self, student: Signals, teachers: Sequence[Signals]) -> Tensor:
        return self.each(student, teachers).mean()


class SquaredError(Method):
    """Mean squared difference of logits."""

    def __init__(self, student: Shape, teacher: Shape, read: str):
        super().__init__(student, teacher)
        self.needs = (read,)

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        if self.needs == ("task",):
            return (wide(student.task) - wide(teacher.task)).square().mean()
        ours, theirs = (x[student.mask] for x in (student.logits, teacher.logits))
        ours, theirs = (x.tensor() if isinstance(x, Words) else x for x in (ours, theirs))
        return (wide(ours) - wide(theirs)).square().sum() / max(ours.numel(), 1) * weight(student.mask)
