"""Generation-Distillation: a small network learns what a large classifier says of few gold and many written texts.

    L = S(q, s)   on gold and written texts alike

The large classifier is tuned on the few gold texts, and a language model writes the others. Source: Melas-Kyriazi et
al., 2020, arXiv:2002.00733.
"""

from torch import Tensor

from models.distill.tasks._lesson import Lesson, TaskMethod, soft_loss

__all__ = ["Generation"]


class Generation(TaskMethod):
    """Cross-entropy to the classifier's probabilities, in nats, or squared error to its number."""

    def forward(self, lesson: Lesson) -> Tensor:
        return soft_loss(lesson)
