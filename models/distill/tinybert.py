"""TinyBERT: the student imitates attention scores, states and embeddings layer by layer, then the task's logits.

    inner   L = sum_m MSE(A_s^m, A_t^g(m)) + sum_{m=0..N_s} MSE(W h_s^m, h_t^g(m))
    logits  L = CE(softmax(z_t), softmax(z_s))

A are scores before the softmax, compared where query and key are real; one W serves all levels; level 0 is the
embedding. The published code counts padding in its means; ours does not.
Source: Jiao et al., 2019, arXiv:1909.10351.
"""

from torch import Tensor

from models.distill._maths import check_heads, layer_map, masked_mse, new_map, score_mse, soft_cross_entropy
from models.distill._signals import Method, Shape, Signals

__all__ = ["TinyBERT"]


class TinyBERT(Method):
    """Transformer distillation: a scalar; >= 0 in the stages that look inside.

    Args:
        stage: "pretrain" and "inner" are the same loss, on running text and on the task's; then "logits".

    Raises:
        ValueError: the heads differ in number; the student is deeper.
    """

    stages = ("pretrain", "inner", "logits")

    def __init__(self, student: Shape, teacher: Shape, stage: str | None = None):
        super().__init__(student, teacher)
        check_heads("TinyBERT", student, teacher, "use minilmv2")
        self.stage = self.choose_stage(stage)
        self.needs = ("task",) if self.stage == "logits" else ("scores", "hidden", "embedding")
        self.map = layer_map(student.layers, teacher.layers)
        self.project = None if self.stage == "logits" else new_map(student.width, teacher.width)

    def layers(self) -> dict[str, dict[str, list[int]]]:
        if self.stage == "logits":
            return {"student": {}, "teacher": {}}
        ends = {"student": list(range(self.student.layers)), "teacher": [m - 1 for m in self.map]}
        return {who: {"scores": numbers, "hidden": numbers} for who, numbers in ends.items()}

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        if self.stage == "logits":
            return soft_cross_entropy(student.task, teacher.task).mean()
        attention = sum(
            score_mse(student.scores[m], teacher.scores[g - 1], student.mask) for m, g in enumerate(self.map)
        )
        states = sum(
            masked_mse(self.project(student.level(m)), teacher.level(g), student.mask)
            for m, g in enumerate([0, *self.map])
        )
        return attention + states
