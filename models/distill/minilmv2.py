"""MiniLMv2: relations between queries, between keys and between values, in as many heads as one likes.

    L = KL(QQ_t || QQ_s) + KL(KK_t || KK_s) + KL(VV_t || VV_s),    XX = softmax(X X^T / sqrt(D / A_r))

The heads are joined and cut again into A_r relation heads, so student and teacher may differ in heads, width and depth.
Source: Wang et al., 2020, arXiv:2012.15828.
"""

from torch import Tensor

from models.distill._relations import compared, split, teacher_layer
from models.distill._signals import Method, Shape, Signals

__all__ = ["MiniLMv2"]


class MiniLMv2(Method):
    """Multi-head self-attention relation distillation: a scalar >= 0, in nats per relation head and real token.

    Args:
        relation_heads: A_r; 48 for teachers of 12 heads, 64 for those of 16.
        layer: of the teacher, from 1; None for the last. The paper takes 21 of 24 for BERT-large.
        causal: for language models, which see no later place.

    Raises:
        ValueError: the relation heads do not divide a width; the teacher has no such layer.
    """

    needs = ("query", "key", "value")

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        relation_heads: int = 48,
        layer: int | None = None,
        causal: bool = False,
    ):
        super().__init__(student, teacher)
        if wrong := [f"the {who}'s width {s.width}" for who, s in (("student", student), ("teacher", teacher))
                     if relation_heads < 1 or s.width % relation_heads]:  # fmt: skip
            raise ValueError(f"{relation_heads} relation heads do not divide {' nor '.join(wrong)}; set relation_heads")
        self.heads, self.layer, self.causal = relation_heads, teacher_layer(layer, teacher), causal

    def layers(self) -> dict[str, dict[str, list[int]]]:
        return {
            "student": {name: [self.student.layers - 1] for name in self.needs},
            "teacher": {name: [self.layer] for name in self.needs},
        }

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        # one relation at a time: each is relation heads x T x T on both sides
        return sum(self._compare(student, teacher, name) for name in self.needs)

    def _compare(self, student: Signals, teacher: Signals, name: str) -> Tensor:
        cut = [split(getattr(s, name)[m], self.heads) for s, m in ((student, -1), (teacher, self.layer))]
        return compared(*((x, x) for x in cut), student.mask, self.causal)
