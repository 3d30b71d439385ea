"""SID: attention and [CLS] are distilled layer after layer, from the inside out; the task's logits come last.

    stage n   L = sum_{i <= n} KL(A_t || A_s) + sum_{i <= n} (1 - cos(c_s^i, c_t^i)),  and CE(z_t, z_s) after the last

A = softmax of the scores, c the first token's state.
Source: Aguilar et al., 2020, arXiv:1910.03723; stages as in Tan et al., 2023, arXiv:2306.06629.
"""

from torch import Tensor

from models.distill._maths import check_heads, check_widths, cosine_distance, layer_map, soft_cross_entropy
from models.distill._progressive import Progressive
from models.distill._relations import divergence
from models.distill._signals import Shape, Signals

__all__ = ["SID"]


class SID(Progressive):
    """Distillation of internal representations: a scalar >= 0.

    Raises:
        ValueError: heads or widths differ; the student is deeper.
    """

    needs = ("scores", "hidden", "task")

    def __init__(self, student: Shape, teacher: Shape):
        super().__init__(student, teacher)
        check_heads("SID", student, teacher, "use minilmv2")
        check_widths("SID", student, teacher, "use tinybert, which learns a map")
        self.map = layer_map(student.layers, teacher.layers)

    def layers(self) -> dict[str, dict[str, list[int]]]:
        count = min(self.taught, self.student.layers)
        ends = {"student": list(range(count)), "teacher": [m - 1 for m in self.map[:count]]}
        return {who: {"scores": numbers, "hidden": numbers} for who, numbers in ends.items()}

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        total = 0.0
        for layer, g in enumerate(self.map[: self.taught], start=1):
            attention = divergence(student.scores[layer - 1], teacher.scores[g - 1], student.mask)
            first = cosine_distance(student.level(layer)[:, 0], teacher.level(g)[:, 0])
            total = total + attention + first.mean()
        return total + soft_cross_entropy(student.task, teacher.task).mean() if self.finished else total
