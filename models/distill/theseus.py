"""Theseus: the teacher's layers are replaced by the student's one by one, until only the student's are left.

    L = hard
    module i of a step = student's layer i with probability p, else the teacher's layers g(i - 1) + 1 .. g(i)
    p = min(1, start + (1 - start) step / (full total))

The teacher lends its frozen layers to the student's own forward pass, so gradients flow through them; nothing of the
two models is compared. A draw without any student layer would train nothing and is drawn again. Embeddings and head
are the student's, which starts as a cut of the teacher (ours).
Source: Xu et al., 2020, arXiv:2002.02925; schedule as in Tan et al., 2023, arXiv:2306.06629.
"""

import torch
from torch import Tensor

from models.distill._maths import check_widths, layer_map
from models.distill._signals import Method, Shape, Signals

__all__ = ["Theseus"]


class Theseus(Method):
    """Module replacing: the soft part is 0; run the student inside `edits`, with the teacher as the lender.

    Args:
        start: p of the first step.
        full: share of the run after which p is 1.
        hard: weight of the gold labels.

    Raises:
        ValueError: the widths differ, so layers cannot stand in for each other; the student is deeper; a probability
            or a share outside 0..1.
    """

    needs = ("hard",)

    def __init__(self, student: Shape, teacher: Shape, start: float = 0.3, full: float = 0.66, hard: float = 1.0):
        super().__init__(student, teacher)
        check_widths("Theseus", student, teacher, "use another method")
        if not (0 < start <= 1 and 0 < full <= 1):
            raise ValueError(
                f"start is a probability and full a share of the run, above 0 and at most 1; got {start} and {full}"
            )
        self.start, self.full, self.hard = start, full, hard
        ends = [0, *layer_map(student.layers, teacher.layers)]
        self.segments = [list(range(first, last)) for first, last in zip(ends, ends[1:], strict=False)]

    @property
    def probability(self) -> float:
        """p of this step."""
        return min(1.0, self.start + (1 - self.start) * self.progress / self.full)

    def drawn(self) -> list[bool]:
        """Which of the student's layers run in this step, at least one."""
        generator, chosen = self.generator(), torch.zeros(self.student.layers, dtype=torch.bool)
        while not chosen.any():
            chosen = torch.rand(self.student.layers, generator=generator) < self.probability
        return chosen.tolist()

    def edits(self) -> dict[str, list[int]]:
        """Which of the teacher's layers, from 0, run in place of a student's."""
        pairs = zip(self.drawn(), self.segments, strict=True)
        return {f"student.layer.{i}": segment for i, (own, segment) in enumerate(pairs) if not own}

    def hard_weight(self) -> float:
        return self.hard

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        return student.hard.new_zeros(())
