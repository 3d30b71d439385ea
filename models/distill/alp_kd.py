"""ALP-KD: each student layer attends to all teacher layers and follows their mixture.

    L = .1 hard + .7 tau^2 CE(z_t / tau, z_s / tau) + .2 sum_m MSE(c_s^m, sum_j a_mj c_t^j)
    a_m = softmax_j(c_s^m . c_t^j)

c is the first token's state.
Source: Passban et al., 2021, arXiv:2012.14022; weights of Tan et al., 2023, arXiv:2306.06629.
"""

import torch
from torch import Tensor

from models.distill._maths import check_temperature, check_widths, soft_cross_entropy, wide
from models.distill._signals import Method, Shape, Signals

__all__ = ["ALPKD"]


class ALPKD(Method):
    """Attention-based layer projection: a scalar. A mixture is no layer: the inner part is not 0 at the teacher.

    Raises:
        ValueError: the widths differ.
    """

    needs = ("task", "hard", "hidden")

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        hard: float = 0.1,
        soft: float = 0.7,
        inner: float = 0.2,
        temperature: float = 20.0,
    ):
        super().__init__(student, teacher)
        check_widths("ALP-KD", student, teacher, "use universal_kd, which learns maps")
        self.hard, self.soft, self.inner, self.temperature = hard, soft, inner, check_temperature(temperature)

    def hard_weight(self) -> float:
        return self.hard

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        soft = soft_cross_entropy(student.task, teacher.task, self.temperature).mean()
        student_BMD = wide(torch.stack([state[:, 0] for state in student.hidden], 1))
        teacher_BJD = wide(torch.stack([state[:, 0] for state in teacher.hidden], 1))
        share_BMJ = (student_BMD @ teacher_BJD.mT).softmax(-1)
        apart_BMD = (student_BMD - share_BMJ @ teacher_BJD).square()
        return self.soft * soft + self.inner * apart_BMD.mean((0, 2)).sum()
