"""BAM: the target goes from the single-task teachers to the gold labels, in a straight line over the run.

    L = lambda S(y, s) + (1 - lambda) S(q, s),   lambda = i / (T - 1),  i = 0 .. T - 1

Early gradients are the teacher's, late ones those of the labels, so the student can pass its teachers.
Source: Clark et al., 2019, arXiv:1907.04829. T counts optimiser steps; a row without a gold label keeps the soft one.
"""

import torch
from torch import Tensor

from models.distill.tasks._lesson import Lesson, TaskMethod, gold_loss, soft_loss

__all__ = ["BAM"]


class BAM(TaskMethod):
    """Teacher annealing, in nats or squared errors; the step comes with the batches, so a resumed run goes on."""

    def forward(self, lesson: Lesson) -> Tensor:
        gold = torch.where(lesson.labelled, self.progress, 0.0)
        return gold * gold_loss(lesson) + (1 - gold) * soft_loss(lesson)
