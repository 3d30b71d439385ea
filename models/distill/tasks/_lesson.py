"""A batch of one task, with what its teachers say, and the form of a method that learns from it.

S(q, s) = -sum_c q_c log softmax(s)_c,   q = 1/M sum_m softmax(z_m)      probabilities are averaged, never logits
of a number: S(q, s) = (q - s)^2,        q = 1/M sum_m z_m
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.components._loss import IGNORED

__all__ = ["Lesson", "Task", "TaskMethod", "ensemble", "gold_loss", "logit_mse", "soft_loss"]


@dataclass(frozen=True)
class Task:
    """What is known of a task before the first batch."""

    name: str
    outputs: int = 1  # C, classes; 1 for a number
    number: bool = False
    rows: int = 1  # of its training set
    teachers: int = 0  # M
    widths: Sequence[int] = ()  # of the teachers' features


@dataclass(frozen=True)
class Lesson:
    """B rows of one task."""

    task: str
    answer: Tensor  # (B, C) the student's logits, or (B, 1) its numbers
    gold: Tensor  # (B,) int64, -100 where there is none; of a number float, NaN where there is none
    taught: Tensor | None = None  # (M, B, C) what the teachers say, in the form of `answer`
    feature: Tensor | None = None  # (B, D) the student's pooled state
    features: Sequence[Tensor] = ()  # M of (B, D_m), the teachers'

    @property
    def number(self) -> bool:
        """Whether the answer is a number."""
        return self.gold.is_floating_point()

    @property
    def labelled(self) -> Tensor:
        """(B,) bool: rows with a gold label."""
        return ~self.gold.isnan() if self.number else self.gold != IGNORED


class TaskMethod(nn.Module):
    """One published way. Its parameters are learned beside the student and dropped with the teachers.

    Attributes:
        needs: "taught", "features" or both, of the tasks that have teachers.
        every: all tasks must have a teacher.

    Args:
        tasks: all that the student learns.

    Raises:
        ValueError: two tasks of one name, or one without a teacher that needs one.
    """

    needs: tuple[str, ...] = ("taught",)
    every = True
    step: Tensor
    total: Tensor

    def __init__(self, tasks: Sequence[Task]):
        super().__init__()
        self.tasks: Mapping[str, Task] = {task.name: task for task in tasks}
        if len(self.tasks) != len(tasks) or not tasks:
            raise ValueError(f"{len(tasks)} tasks have {len(self.tasks)} names; each needs one of its own")
        if self.every and (alone := [task.name for task in tasks if not task.teachers]):
            raise ValueError(f"{type(self).__name__} learns from teachers, but {', '.join(alone)} has none; give each "
                             f"task one, or take mt_dnn, which learns the others from gold labels")  # fmt: skip
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.ones((), dtype=torch.int64))

    def set_total(self, steps: int) -> None:
        """How many optimiser steps the run is planned to have."""
        self.total.fill_(steps)

    @property
    def progress(self) -> Tensor:
        """() from 0 at the first step to 1 at the last."""
        return (self.step / (self.total - 1).clamp(min=1)).clamp(max=1.0)

    def forward(self, lesson: Lesson) -> Tensor:
        """(B,) losses of the rows."""
        raise NotImplementedError


def ensemble(taught: Tensor, number: bool = False) -> Tensor:
    """(M, B, C) logits -> (B, C) probabilities that are averaged; of a number the mean.

    >>> ensemble(torch.tensor([[[0.0, 0.0]], [[0.0, 100.0]]]))
    tensor([[0.2500, 0.7500]])
    """
    return taught.float().mean(0) if number else taught.float().softmax(-1).mean(0)


def soft_loss(lesson: Lesson) -> Tensor:
    """S(q, s) of each row, to the ensemble of its teachers: (B,)."""
    q = ensemble(lesson.taught, lesson.number)
    if lesson.number:
        return (lesson.answer.float() - q).square().mean(-1)
    return -(q * lesson.answer.float().log_softmax(-1)).sum(-1)


def gold_loss(lesson: Lesson) -> Tensor:
    """Cross-entropy, or the squared error of a number, on the gold label: (B,), 0 where there is none."""
    if lesson.number:
        return torch.where(lesson.labelled, lesson.answer.float()[:, 0] - lesson.gold.nan_to_num(), 0.0).square()
    return F.cross_entropy(lesson.answer.float(), lesson.gold, ignore_index=IGNORED, reduction="none")


def logit_mse(lesson: Lesson) -> Tensor:
    """1/2 mean_c (s_c - z_c)^2 to the mean logits of the teachers: (B,)."""
    return (lesson.answer.float() - lesson.taught.float().mean(0)).square().mean(-1) / 2
