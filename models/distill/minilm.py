"""MiniLM: the student's last self-attention imitates two relations of the teacher's last one.

    L = KL(A_t || A_s) + KL(R_t || R_s)
    A = softmax(Q K^T / sqrt(d))    which token attends to which
    R = softmax(V V^T / sqrt(d))    which values resemble each other

Both are T x T: the student may be narrower and shallower, but has as many heads. Where heads share keys and values,
each of them counts.
Source: Wang et al., 2020, arXiv:2002.10957, section 3.
"""

from torch import Tensor

from models.distill._maths import check_heads
from models.distill._relations import compared, teacher_layer, ungrouped
from models.distill._signals import Method, Shape, Signals

__all__ = ["MiniLM"]


class MiniLM(Method):
    """Deep self-attention distillation: a scalar >= 0, in nats per head and real token.

    Args:
        layer: of the teacher, from 1; None for the last.
        causal: for language models, which see no later place.

    Raises:
        ValueError: the heads differ in number; the teacher has no such layer.
    """

    needs = ("query", "key", "value")

    def __init__(self, student: Shape, teacher: Shape, layer: int | None = None, causal: bool = False):
        super().__init__(student, teacher)
        check_heads("MiniLM", student, teacher, "use minilmv2")
        self.layer, self.causal = teacher_layer(layer, teacher), causal

    def layers(self) -> dict[str, dict[str, list[int]]]:
        return {
            "student": {name: [self.student.layers - 1] for name in self.needs},
            "teacher": {name: [self.layer] for name in self.needs},
        }

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        ends = ((student, -1), (teacher, self.layer))
        attention = [(s.query[m], ungrouped(s.key[m], self.student.heads)) for s, m in ends]
        values = [(s.value[m], s.value[m]) for s, m in ends]
        if values[0][0].shape[1] != values[1][0].shape[1]:
            values = [tuple(ungrouped(x, self.student.heads) for x in pair) for pair in values]
        return sum(compared(*pair, student.mask, self.causal) for pair in (attention, values))
