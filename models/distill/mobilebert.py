"""MobileBERT: knowledge moves layer by layer; a layer that had its turn is only kept in place.

    stage n   L = 1/2 sum_{i <= n} w_i KL(A_t || A_s) + 1/2 sum_{i <= n} w_i MSE(h_s^i, h_t^i),   w_n = 1, before .1

with the embedding as level 0, and the gold labels once all layers are taught. Needs a student of the teacher's width
and heads (the inverted bottleneck makes them so); where depths differ, layers follow the layer map.
Source: Sun et al., 2020, arXiv:2004.02984; weights as in Tan et al., 2023, arXiv:2306.06629.
"""

from torch import Tensor

from models.distill._maths import check_heads, check_widths, layer_map, masked_mse
from models.distill._progressive import Progressive
from models.distill._relations import divergence
from models.distill._signals import Shape, Signals

__all__ = ["MobileBERT"]


class MobileBERT(Progressive):
    """Progressive knowledge transfer: a scalar >= 0.

    Args:
        inner: weight of what is compared inside.
        before: weight of layers that had their turn.
        hard: weight of the gold labels after the last layer's turn.

    Raises:
        ValueError: heads or widths differ; the student is deeper.
    """

    needs = ("scores", "hidden", "embedding", "hard")

    def __init__(self, student: Shape, teacher: Shape, inner: float = 0.5, before: float = 0.1, hard: float = 1.0):
        super().__init__(student, teacher)
        check_heads("MobileBERT", student, teacher, "use minilmv2")
        check_widths("MobileBERT", student, teacher, "use tinybert, which learns a map")
        self.map = layer_map(student.layers, teacher.layers)
        self.inner, self.before, self.hard = inner, before, hard

    def layers(self) -> dict[str, dict[str, list[int]]]:
        count = min(self.taught, self.student.layers)
        ends = {"student": list(range(count)), "teacher": [m - 1 for m in self.map[:count]]}
        return {who: {"scores": numbers, "hidden": numbers} for who, numbers in ends.items()}

    def hard_weight(self) -> float:
        return self.hard if self.finished else 0.0

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        total = self.before * masked_mse(student.embedding, teacher.embedding, student.mask)
        for layer, g in enumerate(self.map[: self.taught], start=1):
            weight = 1.0 if layer == self.taught else self.before
            attention = divergence(student.scores[layer - 1], teacher.scores[g - 1], student.mask)
            state = masked_mse(student.level(layer), teacher.level(g), student.mask)
            total = total + weight * (attention + state)
        return self.inner * total
