"""Training steps whose loss does not depend on how they are cut, under one teacher or several.

A mean over rows, tokens or pairs of tokens is that of the whole step, see _step; so a run of two ranks, or of smaller
micro-batches, is the same run. An objective that says `uncut` sees one batch, and who trains it refuses cuts.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from models.components._model import Model
from models.distill._distillation import Distillation, in_type, see
from models.distill._hooks import edits_of
from models.distill._kept import Kept
from models.distill._objective import Council, Objective
from models.distill._signals import Method, Signals
from models.distill._step import counts_of, whole_step
from models.distill._vocabulary import Vocabulary

__all__ = ["Combined", "Exact"]


class Exact(Distillation):
    """A student, its teacher and what it learns by; see Distillation.

    Args:
        vocabulary: of a student that knows fewer words; batches keep the teacher's ids.
    """

    partial = True  # a head that a stage does not train has no part in its loss, layers that come later none yet
    to_student: Tensor | None

    def __init__(
        self,
        student: Model,
        teacher: Model | None,
        objective: Objective,
        kept: Kept | None = None,
        vocabulary: Vocabulary | None = None,
    ):
        super().__init__(student, teacher, objective, kept)
        self.vocabulary = vocabulary
        self.register_buffer("to_student", None if vocabulary is None else vocabulary.to_student)

    def counts(self, **batch: Tensor) -> dict[str, Tensor]:
        """Rows, tokens and pairs of a batch and, where gold labels are asked for, labels by target."""
        return super().counts(**batch) | counts_of(batch["mask"])

    def forward(
        self, counts: Mapping[str, Tensor] | None = None, step: Tensor | None = None, **batch: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See Distillation."""
        if step is not None:
            for method in self.objective.modules():
                if isinstance(method, Method):
                    method.step.copy_(step)
        counts = self.counts(**batch) if counts is None else counts
        with nullcontext() if self.objective.uncut else whole_step(counts, batch["mask"]):
            return super().forward(counts, **batch)

    def _show(self, wanted: Mapping, batch: Mapping[str, Tensor], *more: Any) -> Signals:
        return super()._show(wanted, renumbered(batch, self.to_student), *more)


class Combined(Exact):
    """A student and several teachers that speak as one.

    Args:
        student: see Distillation.
        teachers: in the order of the combiner's.
        council: the combiner.

    Raises:
        LookupError: a model does not give a signal that the combiner asks for.
        ValueError: as many teachers are missing or too many.
    """

    def __init__(self, student: Model, teachers: Sequence[Model], council: Council):
        super().__init__(student, None, council)
        wanted = council.needs()["teacher"]
        if len(wanted) != len(teachers):
            raise ValueError(f"the combiner is for {len(wanted)} teachers, got {len(teachers)}")
        for number, (teacher, signals) in enumerate(zip(teachers, wanted, strict=True), start=1):
            teacher.eval().requires_grad_(False)
            self._refuse_absent(teacher, f"teacher {number}", {k: v for k, v in signals.items() if k != "hard"})
        self._teachers = tuple(teachers)  # no part of the state

    @property
    def teachers(self) -> tuple[Model, ...]:
        """The frozen teachers."""
        return self._teachers

    @torch.no_grad()
    def _teach(self, wanted: Sequence[Mapping], batch: Mapping[str, Tensor], edits: Mapping) -> list[Signals]:
        """What each teacher shows, its own loss on each row among it where that is asked for."""
        dtype, told = next(self.student.parameters()).dtype, []
        for number, (teacher, signals) in enumerate(zip(self._teachers, wanted, strict=True)):
            asked = {name: layers for name, layers in signals.items() if name != "spans"}
            # a row's own loss, whatever the step is
            counts = {name: target.count(batch).clamp(min=1) for name, target in teacher.targets.items()}
            counts |= {"cls": torch.tensor(float(len(batch["mask"])))} if "cls" in counts else {}
            seen = see(teacher, asked, batch, edits_of(edits, f"teachers.{number}"), None, counts)
            told.append(in_type(seen, dtype))
        return told


def renumbered(batch: Mapping[str, Tensor], to_student: Tensor | None) -> dict[str, Tensor]:
    """A batch in the student's words: ids, and labels that are words; negative labels, of no place, stay."""
    if to_student is None:
        return dict(batch)
    words = Vocabulary(to_student, to_student)
    names = [name for name in ("ids", "labels_mlm", "labels_lm") if name in batch]
    return dict(batch) | {name: words.rows(batch[name]) for name in names}
