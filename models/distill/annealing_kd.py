"""Annealing-KD: imitate a softened teacher that sharpens in steps, then learn from the gold labels.

    soft  L = mean((z_s - phi z_t)^2),   phi = 1 - (k - 1) / 7,   k = max(1, ceil((1 - step / total) 7))
    hard  L = hard

Source: Jafari et al., 2021, arXiv:2104.07163.
"""

from torch import Tensor

from models.distill._annealing import annealed
from models.distill._maths import wide
from models.distill._signals import Method, Shape, Signals

__all__ = ["AnnealingKD"]


class AnnealingKD(Method):
    """Annealed regression of logits: a scalar >= 0, in squared logits.

    Args:
        levels: of the temperature.
        stage: "soft", then "hard".
    """

    needs = ("task", "hard")
    stages = ("soft", "hard")

    def __init__(self, student: Shape, teacher: Shape, levels: int = 7, stage: str | None = None):
        super().__init__(student, teacher)
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        self.levels, self.stage = levels, self.choose_stage(stage)

    def hard_weight(self) -> float:
        return float(self.stage == "hard")

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        if self.stage == "hard":
            return student.task.new_zeros(())
        return (wide(student.task) - annealed(self.progress, self.levels) * wide(teacher.task)).square().mean()
