"""What all ways of combining teachers share: one single-teacher method for each, called on all rows or on some."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from models.distill._signals import LISTS, Method, Shape, Signals

__all__ = ["Several", "rows_of"]


class Several(Method):
    """Turns several teachers' signals into one loss.

    Args:
        student: sizes.
        teachers: of each teacher, from the smallest to the largest.
        method: makes the single-teacher method for one of them, given both shapes.

    Raises:
        ValueError: fewer than two teachers; teachers whose numbers of classes differ.
    """

    teacher_reads_hard = False  # whether the teachers' own losses on the gold labels are needed

    def __init__(self, student: Shape, teachers: Sequence[Shape], method: Callable[[Shape, Shape], Method]):
        super().__init__(student, teachers[-1] if teachers else student)
        if len(teachers) < 2:
            raise ValueError(f"several teachers are at least two, got {len(teachers)}")
        if len(classes := {shape.classes for shape in teachers}) > 1:
            raise ValueError(f"the teachers' numbers of classes differ: {sorted(classes)}; they teach different tasks")
        self.methods = nn.ModuleList(method(student, shape) for shape in teachers)
        self.shapes = tuple(teachers)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the methods read, the task's logits and the student's loss."""
        return tuple(sorted({name for method in self.methods for name in method.needs} | {"task", "hard"}))

    def layers_of(self, teacher: int) -> dict[str, dict[str, list[int]]]:
        """As `layers` of a method, for one of the teachers."""
        return self.methods[teacher].layers()

    def set_total(self, steps: int, epochs: int = 1) -> None:
        super().set_total(steps, epochs)
        for method in self.methods:
            method.set_total(steps, epochs)

    def advance(self) -> None:
        super().advance()
        for method in self.methods:
            method.advance()

    def each_row(self, student: Signals, teachers: Sequence[Signals]) -> Tensor:
        """The single-teacher loss of every row: (K, B)."""
        count = len(student.mask)
        one = lambda method, teacher, i: method(rows_of(student, [i]), rows_of(teacher, [i]))
        return torch.stack(
            [
                torch.stack([one(method, teacher, i) for i in range(count)])
                for method, teacher in zip(self.methods, teachers, strict=True)
            ]
        )

    def each(self, student: Signals, teachers: Sequence[Signals]) -> Tensor:
        """The single-teacher loss of each teacher: (K,)."""
        pairs = zip(self.methods, teachers, strict=True)
        return torch.stack([method(student, teacher) for method, teacher in pairs])


def rows_of(signals: Signals, rows: Sequence[int] | Tensor) -> Signals:
    """The signals of some rows of the batch."""
    rows = torch.as_tensor(rows, device=signals.mask.device)
    cut = lambda x: None if x is None else x[rows]
    kept = {f.name: getattr(signals, f.name) for f in fields(signals)}
    return replace(
        signals, **{name: [cut(x) for x in value] if name in LISTS else cut(value) for name, value in kept.items()}
    )
