"""Uncertainty: how unsure the student is of a row decides who teaches it: unsure rows go to small teachers.

    L = .5 sum_k mean_i w_k,i tau^2 KL(z_k,i / tau || z_s,i / tau) + .5 hard,   u_i = entropy(softmax z_s,i) / ln C
    hard choice  w is 1 for one teacher: the 1/K most unsure rows have the smallest, the next 1/K the next larger one
    soft choice  w_k,i proportional to u_i + (1 - 2 u_i) k / (K - 1), k = 0 the smallest; they sum to 1

u has no gradient. tau = 1 and the hard choice are as in Tan et al., 2023, arXiv:2306.06629, whose code divides by K
besides.
Source: Li et al., 2021 (Dynamic Knowledge Distillation), arXiv:2109.11295.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from models.distill._maths import wide
from models.distill._signals import Shape, Signals
from models.distill.teachers._several import Choice, Several, SoftLabels

__all__ = ["Uncertainty"]


class Uncertainty(Several):
    """Teachers by the student's uncertainty: a scalar, in nats per row.

    Args:
        method: see Several; None for the divergence above. Under the hard choice it sees each teacher's rows together.
        temperature: of that divergence.
        soft: weight of what teachers say.
        hard: weight of the gold labels.
        choice: "hard" or "soft".

    Raises:
        ValueError: another choice; fewer than two classes; teachers that are not sorted by size.
    """

    def __init__(
        self,
        student: Shape,
        teachers: Sequence[Shape],
        method: Choice | None = None,
        temperature: float = 1.0,
        soft: float = 0.5,
        hard: float = 0.5,
        choice: str = "hard",
    ):
        super().__init__(student, teachers, method or partial(SoftLabels, temperature=temperature), ("task", "hard"))
        if choice not in ("hard", "soft"):
            raise ValueError(f"teachers are chosen hard or soft, not {choice!r}")
        if student.classes < 2:
            raise ValueError(f"uncertainty is about classes, of which the task needs two; it has {student.classes}")
        sizes = [shape.layers * shape.width**2 for shape in teachers]
        if sizes != sorted(sizes):
            told = ", ".join(f"{shape.layers} x {shape.width}" for shape in teachers)
            raise ValueError(f"teachers go from the smallest to the largest, but their layers and widths are {told}")
        self.soft, self.hard, self.choice = soft, hard, choice
        self.uncut |= choice == "hard" or any(not set(one.needs) <= {"task", "hard"} for one in self.methods)

    def hard_weight(self) -> float:
        return self.hard

    def forward(self, student: Signals, teachers: Sequence[Signals]) -> Tensor:
        unsure_B = uncertainty(student.task)
        if self.choice == "hard":
            return self.soft * self.on_rows(student, teachers, hard_choice(unsure_B, len(self.methods)))
        weight_BK = soft_choice(unsure_B, len(self.methods))
        return self.soft * (weight_BK.T * self.each_row(student, teachers)).sum(0).mean()


@torch.no_grad()
def uncertainty(task_BC: Tensor) -> Tensor:
    """Entropy of the classes, as a share of the largest one: (B,) in [0, 1]."""
    log_BC = wide(task_BC).log_softmax(-1)
    return -(log_BC.exp() * log_BC).sum(-1) / math.log(task_BC.shape[-1])


def hard_choice(unsure_B: Tensor, teachers: int) -> Tensor:
    """One teacher for each row, the most unsure rows having the first: (B, K) bool.

    Groups differ by at most one row; equally unsure rows keep their order.
    """
    rank_B = unsure_B.argsort(descending=True, stable=True).argsort()
    return (rank_B * teachers // len(rank_B))[:, None] == torch.arange(teachers, device=unsure_B.device)


def soft_choice(unsure_B: Tensor, teachers: int) -> Tensor:
    """Weights of teachers, from the smallest: (B, K), each row sums to 1."""
    size_K = torch.arange(teachers, device=unsure_B.device, dtype=unsure_B.dtype) / (teachers - 1)
    weight_BK = unsure_B[:, None] + (1 - 2 * unsure_B)[:, None] * size_K
    return weight_BK / weight_BK.sum(-1, keepdim=True)
