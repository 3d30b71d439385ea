"""DistilBERT: the masked words' distribution, the last states' direction, and the words themselves.

    L = 5 tau^2 KL(z_t / tau || z_s / tau) + 2 hard + 1 (1 - cos(h_s, h_t))

over the vocabulary at real tokens and the last layer's real tokens; hard is the masked-word loss.
Source: Sanh et al., 2019, arXiv:1910.01108; weights of its published training.
"""

from torch import Tensor

from models.distill._maths import check_temperature, check_widths, cosine_distance, masked_mean, token_kl
from models.distill._signals import Method, Shape, Signals

__all__ = ["DistilBERT"]


class DistilBERT(Method):
    """Triple loss of DistilBERT: a scalar >= 0, in nats per real token (plus the cosine distance).

    Raises:
        ValueError: the widths differ while the cosine counts.
    """

    needs = ("logits", "hidden", "hard")

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        temperature: float = 2.0,
        soft: float = 5.0,
        hard: float = 2.0,
        cosine: float = 1.0,
    ):
        super().__init__(student, teacher)
        if cosine:
            check_widths("DistilBERT", student, teacher, "set cosine: 0")
        self.temperature, self.soft, self.hard, self.cosine = check_temperature(temperature), soft, hard, cosine

    def layers(self) -> dict[str, dict[str, list[int]]]:
        last = lambda shape: {"hidden": [shape.layers - 1] if self.cosine else []}
        return {"student": last(self.student), "teacher": last(self.teacher)}

    def hard_weight(self) -> float:
        return self.hard

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        loss = self.soft * token_kl(student.logits, teacher.logits, student.mask, self.temperature)
        if self.cosine:
            apart = cosine_distance(student.hidden[-1], teacher.hidden[-1])
            loss = loss + self.cosine * masked_mean(apart, student.mask)
        return loss
