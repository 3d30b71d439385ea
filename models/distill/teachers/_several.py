"""What all ways of combining teachers share: one single-teacher method for each, called on all rows or on some."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models import build
from models.distill._maths import check_temperature, kl
from models.distill._rows import rows_of
from models.distill._signals import Method, Shape, Signals

__all__ = ["Choice", "Several", "SoftLabels", "check_share"]

Choice = str | Mapping[str, Mapping[str, Any] | None]  # of a single-teacher method: its name, or that and its settings


class SoftLabels(Method):
    """tau^2 KL(z_t / tau || z_s / tau) of task logits: what a combiner does for each teacher unless told otherwise."""

    needs = ("task",)

    def __init__(self, student: Shape, teacher: Shape, temperature: float = 1.0):
        super().__init__(student, teacher)
        self.temperature = check_temperature(temperature)

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        return kl(student.task, teacher.task, self.temperature).mean()


class Several(Method):
    """Turns several teachers' signals into one loss; it is called with a list of Signals, in the order of `teachers`.

    The hard loss is the combiner's: what the methods would ask for does not count, so labels enter once.

    Args:
        student: sizes.
        teachers: of each teacher, from the smallest to the largest.
        method: name of the single-teacher method for each of them, a mapping of that name to its settings, or, from
            a combiner, what makes it.
        reads: signals of the student and the teachers that the combiner itself needs.

    Raises:
        ValueError: too few teachers; classes, or where they count vocabularies, that differ; a method that compares
            nothing, or whose layers meet none of a teacher's.
        LookupError: no such method.
    """

    fewest = 2  # teachers
    teacher_reads_hard = False  # whether the teachers' own losses on the gold labels are needed

    def __init__(
        self,
        student: Shape,
        teachers: Sequence[Shape],
        method: Choice | Callable[[Shape, Shape], Method],
        reads: Sequence[str] = ("hard",),
    ):
        if len(teachers) < self.fewest:
            raise ValueError(f"{type(self).__name__} needs at least {self.fewest} teachers, got {len(teachers)}")
        super().__init__(student, teachers[-1])
        self.methods = nn.ModuleList(_one(method, student, shape) for shape in teachers)
        self.shapes = tuple(teachers)
        self.needs = tuple(sorted({name for one in self.methods for name in one.needs} | set(reads)))
        self.uncut = any(one.uncut for one in self.methods)
        if all(one.needs == ("hard",) for one in self.methods):
            raise ValueError(f"{method} compares nothing with a teacher, so several cannot be combined under it")
        self._refuse_other_tasks()

    def layers(self) -> dict[str, Any]:
        """{"student": layers by signal, "teachers": one such mapping for each}."""
        each = [method.layers() for method in self.methods]
        ours: dict[str, set[int]] = {}
        for layers in each:
            for name, numbers in layers["student"].items():
                ours.setdefault(name, set()).update(numbers)
        student = {name: sorted(numbers) for name, numbers in ours.items()}
        return {"student": student, "teachers": [layers["teacher"] for layers in each]}

    def edits(self) -> dict[str, object]:
        """What the method does inside the student, and as "teachers.<k>...." inside each teacher."""
        edits = {place: edit for place, edit in self.methods[0].edits().items() if place.startswith("student.")}
        for k, method in enumerate(self.methods):
            named = {place: edit for place, edit in method.edits().items() if place.startswith("teacher.")}
            edits |= {f"teachers.{k}.{place.removeprefix('teacher.')}": edit for place, edit in named.items()}
        return edits

    @property
    def perturbed(self) -> bool:
        """Whether a step has two passes, see LRC-BERT."""
        return getattr(self.methods[0], "perturbed", False)

    def perturb(self, loss: Tensor) -> None:
        """Between the two passes."""
        self.methods[0].perturb(loss)

    def set_total(self, steps: int, epochs: int = 1) -> None:
        super().set_total(steps, epochs)
        for method in self.methods:
            method.set_total(steps, epochs)

    def advance(self) -> None:
        super().advance()
        for method in self.methods:
            method.advance()

    def each(self, student: Signals, teachers: Sequence[Signals]) -> Tensor:
        """The single-teacher loss of each teacher: (K,).

        Raises:
            ValueError: as many signals are missing or too many.
        """
        self.check(teachers)
        pairs = zip(self.methods, teachers, strict=True)
        return torch.stack([method(student, teacher) for method, teacher in pairs])

    def each_row(self, student: Signals, teachers: Sequence[Signals]) -> Tensor:
        """The single-teacher loss of every row, as if it were the whole batch: (K, B)."""
        self.check(teachers)
        return torch.stack(
            [_row_losses(method, student, teacher) for method, teacher in zip(self.methods, teachers, strict=True)]
        )

    def on_rows(self, student: Signals, teachers: Sequence[Signals], chosen_BK: Tensor) -> Tensor:
        """Sum over teachers of the loss on the rows chosen for each, weighted by their share of the batch: a scalar."""
        self.check(teachers)
        loss = torch.zeros((), device=student.mask.device)
        for method, teacher, chosen_B in zip(self.methods, teachers, chosen_BK.T, strict=True):
            if len(rows := chosen_B.nonzero()[:, 0]):
                share = len(rows) / len(chosen_B)
                loss = loss + share * method(rows_of(student, rows), rows_of(teacher, rows))
        return loss

    def check(self, teachers: Sequence[Signals]) -> None:
        """Raise ValueError if these are not the signals of the teachers this was built for."""
        if len(teachers) != len(self.methods):
            raise ValueError(f"{type(self).__name__} was built for {len(self.methods)} teachers, got {len(teachers)}")
        if self.teacher_reads_hard and any(teacher.hard is None for teacher in teachers):
            raise ValueError(
                f"{type(self).__name__} weighs teachers by their own losses; a teacher's `hard` is missing"
            )

    def _refuse_other_tasks(self) -> None:
        read = {"classes": "task", "vocabulary": "logits"}
        for what, signal in read.items():
            counts = {getattr(shape, what) for shape in (self.student, *self.shapes)} - {0}
            if signal in self.needs and len(counts) > 1:
                raise ValueError(
                    f"{what} of student and teachers differ: {', '.join(map(str, sorted(counts)))}; they do not speak "
                    "of the same things"
                )


def check_share(name: str, share: float) -> float:
    """The share, if it is one; ValueError otherwise."""
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is a share, from 0 to 1; got {share}")
    return share


def _one(method: Choice | Callable[[Shape, Shape], Method], student: Shape, teacher: Shape) -> Method:
    if callable(method):
        return method(student, teacher)
    method = {method: {}} if isinstance(method, str) else method
    if len(method) != 1:
        raise ValueError(f"one method serves all teachers, not {len(method)}: {', '.join(method)}")
    ((name, settings),) = method.items()
    return build("distill", name, student, teacher, **(settings or {}))


def _row_losses(method: Method, student: Signals, teacher: Signals) -> Tensor:
    """(B,); in one call where the method reads nothing but task logits."""
    if set(method.needs) <= {"task", "hard"}:
        one = student.mask[:1]
        alone = lambda s, t: method(Signals(one, task=s[None]), Signals(one, task=t[None]))
        return torch.vmap(alone)(student.task, teacher.task)
    rows = range(len(student.mask))
    return torch.stack([method(rows_of(student, [i]), rows_of(teacher, [i])) for i in rows])
