"""MKD: a small network of any kind learns the logits of every head of one multi-task teacher.

    L = gamma CE(y, s) + (1 - gamma) 1/2 mean_c (s_c - z_c)^2

z are the logits of the drawn task's head. Layers are never compared, so the student may be a bi-LSTM under a
Transformer. Source: Liu et al., 2019, arXiv:1911.03588. The weight gamma of gold labels is ours, 0 by default.
"""

from collections.abc import Sequence

from torch import Tensor

from models.distill.tasks._lesson import Lesson, Task, TaskMethod, gold_loss, logit_mse

__all__ = ["MKD"]


class MKD(TaskMethod):
    """Squared differences of logits, a mean over classes.

    Args:
        tasks: see TaskMethod.
        hard: gamma, in [0, 1].

    Raises:
        ValueError: several teachers of a task, whose logits are on scales of their own; gamma out of range.
    """

    def __init__(self, tasks: Sequence[Task], hard: float = 0.0):
        super().__init__(tasks)
        if not 0 <= hard <= 1:
            raise ValueError(f"hard is the share of the gold labels, in [0, 1]; got {hard}")
        if several := [f"{task.name} ({task.teachers})" for task in tasks if task.teachers > 1]:
            raise ValueError(f"mkd compares logits, which teachers have on scales of their own: {', '.join(several)};"
                             f" give one teacher a task, or take mt_dnn, bam or road")  # fmt: skip
        self.hard = hard

    def forward(self, lesson: Lesson) -> Tensor:
        soft = (1 - self.hard) * logit_mse(lesson)
        return soft + self.hard * gold_loss(lesson) if self.hard else soft
