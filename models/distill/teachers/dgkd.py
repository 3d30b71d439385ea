"""DGKD: in a chain of ever smaller models, each is taught by all larger ones at once, some of them dropped at random.

    L = .5 sum_k keep_k tau^2 CE(z_k / tau, z_s / tau) + .5 hard,   keep_k ~ Bernoulli(.75), anew each step

The first link of the chain has a single teacher.
Source: Son et al., 2021, arXiv:2009.08825; values as in Tan et al., 2023, arXiv:2306.06629.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.distill._signals import Shape, Signals
from models.distill.teachers._several import Choice, Several, check_share

__all__ = ["DGKD"]


class DGKD(Several):
    """Densely guided distillation: a scalar; 0 in a step that drops all teachers, which the labels then teach alone.

    Args:
        method: see Several.
        soft: weight of each teacher.
        hard: weight of the gold labels.
        keep: probability of a teacher.

    Raises:
        ValueError: a probability outside 0..1.
    """

    fewest = 1

    def __init__(
        self,
        student: Shape,
        teachers: Sequence[Shape],
        method: Choice = "kd",
        soft: float = 0.5,
        hard: float = 0.5,
        keep: float = 0.75,
    ):
        super().__init__(student, teachers, method)
        self.soft, self.hard, self.keep = soft, hard, check_share("keep", keep)

    def kept(self) -> list[bool]:
        """Which teachers teach in this step."""
        return (torch.rand(len(self.methods), generator=self.generator()) < self.keep).tolist()

    def hard_weight(self) -> float:
        return self.hard

    def forward(self, student: Signals, teachers: Sequence[Signals]) -> Tensor:
        self.check(teachers)
        loss = torch.zeros((), device=student.mask.device)
        for kept, method, teacher in zip(self.kept(), self.methods, teachers, strict=True):
            if kept:
                loss = loss + self.soft * method(student, teacher)
        return loss
