"""PKD: the student's [CLS] follows the teacher's through the layers, patiently.

    L = (1 - alpha) hard + alpha tau^2 KL(z_t / tau || z_s / tau) + beta sum_{m < N_s} mean((h_s^m - h_t^g(m))^2)

h is the first token's state with norm 1; the last layer is left out, as its states already serve the logits.
Source: Sun et al., 2019, arXiv:1908.09355. Values: Tan et al., 2023, arXiv:2306.06629.
"""

from torch import Tensor
from torch.nn import functional as F

from models.distill._maths import check_temperature, check_widths, kl, layer_map, wide
from models.distill._signals import Method, Shape, Signals

__all__ = ["PKD"]


class PKD(Method):
    """Patient distillation: a scalar >= 0 (nats, and squared distance of unit vectors per feature).

    Raises:
        ValueError: the widths differ, so the states cannot be compared; or the student is deeper.
    """

    needs = ("task", "hard", "hidden")

    def __init__(
        self, student: Shape, teacher: Shape, alpha: float = 0.5, beta: float = 100.0, temperature: float = 10.0
    ):
        super().__init__(student, teacher)
        check_widths("PKD", student, teacher, "use tinybert, which learns a map")
        self.alpha, self.beta, self.temperature = alpha, beta, check_temperature(temperature)
        self.map = layer_map(student.layers, teacher.layers)[:-1]

    def layers(self) -> dict[str, dict[str, list[int]]]:
        return {"student": {"hidden": list(range(len(self.map)))}, "teacher": {"hidden": [m - 1 for m in self.map]}}

    def hard_weight(self) -> float:
        return 1 - self.alpha

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        soft = kl(student.task, teacher.task, self.temperature).mean()
        pairs = [(student.level(m), teacher.level(g)) for m, g in enumerate(self.map, start=1)]
        patient = sum((_unit(s) - _unit(t)).square().mean() for s, t in pairs)
        return self.alpha * soft + self.beta * patient


def _unit(state_BTD: Tensor) -> Tensor:
    return F.normalize(wide(state_BTD[:, 0]), dim=-1)
