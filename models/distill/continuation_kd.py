"""Continuation-KD: from the teacher's smoothed regression to the gold labels, and no more on rows it has learned.

    L = psi hard + (1 - psi) u 1[u > phi],   u = mean((z_s - phi z_t)^2) of a row
    psi = step / (1.333 total) until .666 total, then 1;   phi = annealed in 10 levels

Source: Jafari et al., 2022, arXiv:2212.05998; values of Tan et al., 2023, arXiv:2306.06629.
"""

from torch import Tensor

from models.distill._annealing import annealed
from models.distill._maths import wide
from models.distill._signals import Method, Shape, Signals

__all__ = ["ContinuationKD"]


class ContinuationKD(Method):
    """Continuation optimisation: a scalar >= 0.

    Args:
        levels: of the temperature.
        until: share of the run after which only gold labels count.
    """

    needs = ("task", "hard")

    def __init__(self, student: Shape, teacher: Shape, levels: int = 10, until: float = 0.666):
        super().__init__(student, teacher)
        if levels < 1 or not 0 < until <= 1:
            raise ValueError(f"levels must be at least 1 and until in (0, 1]; got {levels} and {until}")
        self.levels, self.until = levels, until

    def hard_weight(self) -> float:
        """psi: grows to about one half, then is 1."""
        return self.progress / (2 * self.until + 0.001) if self.progress <= self.until else 1.0

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        phi = annealed(self.progress, self.levels)
        apart_B = (wide(student.task) - phi * wide(teacher.task)).square().mean(-1)
        return (1 - self.hard_weight()) * (apart_B * (apart_B > phi)).mean()
