"""KD: the student imitates the teacher's softened class probabilities beside the gold labels.

    L = tau^2 CE(softmax(z_t / tau), softmax(z_s / tau)) + hard

tau^2 keeps the soft gradient's size whatever the temperature; `squared=False` leaves it out.
Source: Hinton et al., 2015, arXiv:1503.02531; temperature as in Tan et al., 2023, arXiv:2306.06629.
"""

from torch import Tensor

from models.distill._maths import check_temperature, soft_cross_entropy
from models.distill._signals import Method, Shape, Signals

__all__ = ["KD"]


class KD(Method):
    """Knowledge distillation of task logits: a scalar, in nats per row; its least value is the teacher's entropy."""

    needs = ("task", "hard")

    def __init__(
        self, student: Shape, teacher: Shape, temperature: float = 10.0, hard: float = 1.0, squared: bool = True
    ):
        super().__init__(student, teacher)
        self.temperature, self.hard, self.squared = check_temperature(temperature), hard, squared

    def hard_weight(self) -> float:
        return self.hard

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        soft = soft_cross_entropy(student.task, teacher.task, self.temperature).mean()
        return soft if self.squared else soft / self.temperature**2
