"""MT-BERT: a teacher counts on a row as far as it is right there itself; the student also follows all teachers' states.

    L = sum_k [ mean_i CE(z_k,i, z_s,i) / (1 + hard_k,i) + sum_{m=1..N_s} MSE(h_s^m, W_k h_k^g_k(m)) ] + hard

hard_k,i is teacher k's own loss on the gold label of row i. One W_k without bias for each teacher, on its side, serves
all levels; all real tokens count. With another method, its loss on each row takes the place of CE.
Source: Wu et al., 2021, arXiv:2106.01023; form as in Tan et al., 2023, arXiv:2306.06629.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.distill._maths import layer_map, masked_mse, new_map
from models.distill._signals import Shape, Signals
from models.distill.teachers._several import Choice, Several

__all__ = ["MTBERT"]


class MTBERT(Several):
    """Multi-teacher distillation of BERTs: a scalar, in nats per row and squared differences per feature.

    Args:
        method: see Several.
        hidden: weight of the states; 0 leaves them out.
        hard: weight of the gold labels.
    """

    teacher_reads_hard = True

    def __init__(
        self,
        student: Shape,
        teachers: Sequence[Shape],
        method: Choice = "pd",
        hidden: float = 1.0,
        hard: float = 1.0,
    ):
        super().__init__(student, teachers, method, ("hard", "hidden") if hidden else ("hard",))
        self.hidden, self.hard = hidden, hard
        self.uncut |= any(not set(one.needs) <= {"task", "hard"} for one in self.methods)  # each row is a batch
        if hidden:
            self.maps = [layer_map(student.layers, shape.layers) for shape in teachers]
            self.project = nn.ModuleList(new_map(shape.width, student.width, bias=False) for shape in teachers)

    def layers(self) -> dict[str, Any]:
        layers = super().layers()
        if not self.hidden:
            return layers
        add = lambda one, numbers: one | {"hidden": sorted({*one.get("hidden", ()), *numbers})}
        theirs = zip(layers["teachers"], self.maps, strict=True)
        return {
            "student": add(layers["student"], range(self.student.layers)),
            "teachers": [add(one, [m - 1 for m in map_]) for one, map_ in theirs],
        }

    def hard_weight(self) -> float:
        return self.hard

    def forward(self, student: Signals, teachers: Sequence[Signals]) -> Tensor:
        soft_KB = self.each_row(student, teachers)
        loss = sum((soft_B / (1 + t.hard.float())).mean() for soft_B, t in zip(soft_KB, teachers, strict=True))
        if not self.hidden:
            return loss
        states = sum(
            masked_mse(student.level(m), project(teacher.level(g)), student.mask)
            for teacher, map_, project in zip(teachers, self.maps, self.project, strict=True)
            for m, g in enumerate(map_, start=1)
        )
        return loss + self.hidden * states
