"""PD: pre-train the small model on plain text first, then distil the task's soft labels alone.

    L = CE(softmax(z_t), softmax(z_s))

Source: Turc et al., 2019, arXiv:1908.08962.
"""

from torch import Tensor

from models.distill._maths import soft_cross_entropy
from models.distill._signals import Method, Signals

__all__ = ["PD"]


class PD(Method):
    """Pre-trained distillation: a scalar, in nats per row; its least value is the teacher's entropy."""

    needs = ("task",)

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        return soft_cross_entropy(student.task, teacher.task).mean()
