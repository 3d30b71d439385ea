"""Universal-KD: each student layer meets a mixture of the teacher's in a space that both sides learn.

    soft  L = .5 tau^2 KL(z_t / tau || z_s / tau) + .5 sum_{m < N_s} KL(softmax T_m || softmax S_m)
          S_m = U_m c_s^m,   T_m = sum_j softmax_j(S_m . V c_t^j) V c_t^j,   j < N_t
    hard  L = hard

c is the first token's state; the maps have no bias; the softmax of the KL is over features. One V for all teacher
layers, the student's width for the space and tau = 10 are ours.
Source: Wu et al., 2021 (Universal-KD, EMNLP); form as in Tan et al., 2023, arXiv:2306.06629.
"""

import torch
from torch import Tensor, nn

from models.distill._maths import check_temperature, kl, new_map, score_kl
from models.distill._signals import Method, Shape, Signals

__all__ = ["UniversalKD"]


class UniversalKD(Method):
    """Attention-based output-grounded distillation: a scalar >= 0. A mixture is no layer: not 0 at the teacher.

    Args:
        stage: "soft", then "hard".

    Raises:
        ValueError: student or teacher has no layer before its last.
    """

    stages = ("soft", "hard")

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        soft: float = 0.5,
        inner: float = 0.5,
        temperature: float = 10.0,
        stage: str | None = None,
    ):
        super().__init__(student, teacher)
        if min(student.layers, teacher.layers) < 2:
            raise ValueError(
                f"Universal-KD compares all layers but the last; student and teacher have {student.layers} and "
                f"{teacher.layers}, it needs two"
            )
        self.soft, self.inner, self.temperature = soft, inner, check_temperature(temperature)
        self.stage = self.choose_stage(stage)
        self.needs = ("task", "hard") if self.stage == "hard" else ("task", "hidden")
        if self.stage == "soft":
            self.student_maps = nn.ModuleList(
                new_map(student.width, student.width, bias=False) for _ in range(student.layers - 1)
            )
            self.teacher_map = new_map(teacher.width, student.width, bias=False)

    def layers(self) -> dict[str, dict[str, list[int]]]:
        if self.stage == "hard":
            return {"student": {}, "teacher": {}}
        but_last = lambda shape: {"hidden": list(range(shape.layers - 1))}
        return {"student": but_last(self.student), "teacher": but_last(self.teacher)}

    def hard_weight(self) -> float:
        return float(self.stage == "hard")

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        if self.stage == "hard":
            return student.task.new_zeros(())
        first = lambda seen, count: [state[:, 0] for state in seen.hidden[:count]]
        states = first(student, self.student.layers - 1)
        ours_BMD = torch.stack([map_(c) for map_, c in zip(self.student_maps, states, strict=True)], 1)
        theirs_BJD = self.teacher_map(torch.stack(first(teacher, self.teacher.layers - 1), 1))
        mixed_BMD = (ours_BMD @ theirs_BJD.mT).softmax(-1) @ theirs_BJD
        inner = score_kl(ours_BMD, mixed_BMD).sum(1).mean()
        return self.soft * kl(student.task, teacher.task, self.temperature).mean() + self.inner * inner
