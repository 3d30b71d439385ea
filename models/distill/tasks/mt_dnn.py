"""MT-DNN with distillation: where a task has teachers, half of the target is theirs; elsewhere gold labels alone.

    L = 1/2 S(q, s) + 1/2 S(y, s)   with teachers,   S(y, s)   without

q averages the probabilities of several fine-tuned teachers. Without any teacher this is MT-DNN itself (Liu et al.,
2019, arXiv:1901.11504). Source: Liu et al., 2019, arXiv:1904.09482. Logits are compared by cross-entropy: the published
code's squared difference of logits and probabilities is not 0 at the teacher.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.distill.tasks._lesson import Lesson, Task, TaskMethod, gold_loss, soft_loss

__all__ = ["MTDNN"]


class MTDNN(TaskMethod):
    """Cross-entropy in nats, or squared error, with soft and gold targets. A row without a gold label has the soft one.

    Args:
        tasks: see TaskMethod.
        soft: share of the teachers.

    Raises:
        ValueError: the share is not in [0, 1].
    """

    every = False

    def __init__(self, tasks: Sequence[Task], soft: float = 0.5):
        super().__init__(tasks)
        if not 0 <= soft <= 1:
            raise ValueError(f"soft is the teachers' share, in [0, 1]; got {soft}")
        self.soft = soft

    def forward(self, lesson: Lesson) -> Tensor:
        if lesson.taught is None:
            return gold_loss(lesson)
        share = torch.where(lesson.labelled, self.soft, 1.0)
        return share * soft_loss(lesson) + (1 - share) * gold_loss(lesson)
