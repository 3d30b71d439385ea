"""One training step of a distillation: both models show what the objective asks for, and it gives the loss.

    L = r objective(student, teacher),   r = rows of this batch / rows of the whole step

Nothing is run that nobody asked for: no vocabulary, no head, and no teacher where only gold labels count. The teacher
is frozen and no part of the state; learned maps are, beside the student. It may also be away: then batches carry what
it said, see models/distill/_kept.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.components._loss import IGNORED
from models.components._model import Model
from models.components._rows import Rows
from models.distill._hooks import edits_of, inside, watch
from models.distill._kept import BORROWED, FIELD, Kept
from models.distill._objective import Objective
from models.distill._rows import halves, twice
from models.distill._signals import LISTS, Method, Signals
from models.distill._words import Words

__all__ = ["Distillation", "Gold", "in_type", "see"]

NAMES = {"task": "cls", "logits": ("mlm", "lm")}  # signals that a target of the model gives


class Gold(Method):
    """Gold labels alone: what ends methods that look inside and never train the task's head."""

    needs = ("hard",)

    def hard_weight(self) -> float:
        return 1.0

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        return student.hard.new_zeros(())


class Distillation(nn.Module):
    """A student, what it learns by, and, outside of the state, its teacher.

    The loss over micro-batches and ranks is that of one batch for what is averaged over rows, and for gold labels;
    what a method averages over tokens, or compares between rows, it sees by micro-batch.

    Args:
        student: trained, with the objective's own parameters.
        teacher: frozen here and put into evaluation mode; None where the objective asks for gold labels alone.
        objective: its step is set by the batches' field `step`, so that a resumed run is where it was.
        kept: reads what a teacher said from the batch (`Kept`); then `teacher` is None.

    Raises:
        LookupError: a model does not give a signal that the objective asks for, or none was kept.
        ValueError: word predictions of two vocabularies.
    """

    def __init__(self, student: Model, teacher: Model | None, objective: Objective, kept: Kept | None = None):
        super().__init__()
        self.student, self.objective, self.kept = student, objective, kept
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        self._teacher = (teacher,)  # in a tuple: no part of the state
        wanted = objective.needs()
        self._refuse_absent(student, "student", wanted["student"])
        if kept is not None:
            kept.refuse_missing(wanted["teacher"])
            self._refuse_unkept(teacher)
        if teacher is not None:
            self._refuse_absent(
                teacher, "teacher", {name: of for name, of in wanted["teacher"].items() if name != "hard"}
            )
        self._refuse_vocabularies(wanted["student"])

    @property
    def teacher(self) -> Model | None:
        """The frozen teacher."""
        return self._teacher[0]

    def set_total(self, steps: int, epochs: int = 1) -> None:
        """See Objective."""
        self.objective.set_total(steps, epochs)

    def counts(self, **batch: Tensor) -> dict[str, Tensor]:
        """Rows of a batch and, where gold labels are asked for, labels by target."""
        rows = {"rows": torch.tensor(float(len(batch["mask"])), device=batch["mask"].device)}
        if "hard" not in self.objective.needs()["student"]:
            return rows
        return rows | {name: target.count(batch) for name, target in self.student.targets.items()}

    def forward(
        self, counts: Mapping[str, Tensor] | None = None, step: Tensor | None = None, **batch: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and each method's soft part, with "hard" where labels count.

        Args:
            counts: of the whole step, from `counts`; None for this batch's own.
            step: () int64, the number of the step from 0; None leaves it.
            batch: fields of a batch; `mask` (B, T) among them.

        Raises:
            ValueError: the batch has no real token.
        """
        if step is not None:
            for method in self.objective.methods.values():
                method.step.copy_(step)
        if not bool(batch["mask"].any()):
            raise ValueError(f"all {len(batch['mask'])} rows of the batch are padding: nothing can be learned from it")
        counts = {k: v.clamp(min=1) for k, v in (self.counts(**batch) if counts is None else counts).items()}
        share = len(batch["mask"]) / counts["rows"]
        wanted = self.objective.needs()
        edits = self._edits(wanted)
        told = self._teach(wanted["teacher"], batch, edits)
        batch = {name: value for name, value in batch.items() if not name.startswith(FIELD)}
        perturbing = [m for m in self.objective.methods.values() if getattr(m, "perturbed", False) and edits]
        for method in perturbing:
            method.perturb(self.objective(self._show(wanted, batch, edits, counts, share), told)[0])
        loss, terms = self.objective(self._show(wanted, batch, edits, counts, share), told)
        return loss * share, {name: term * share for name, term in terms.items()}

    def _edits(self, wanted: Mapping[str, Mapping]) -> Mapping[str, Any]:
        """Acts inside the forward pass belong to training, except where both passes are compared."""
        if "edited" in wanted["student"] or (self.training and torch.is_grad_enabled()):
            return self.objective.edits()
        return {}

    @torch.no_grad()
    def _teach(self, wanted: Mapping[str, Sequence[int]], batch: Mapping[str, Tensor], edits: Mapping) -> Signals:
        """What the teacher shows, in the student's floating type."""
        asked = {name: layers for name, layers in wanted.items() if name not in ("hard", "spans")}
        if not asked or (self.teacher is None and self.kept is None):
            return Signals(batch["mask"])
        if self.kept is not None:
            self.kept.refuse_missing(asked)
            seen = self.kept.signals(batch)
        else:
            seen = see(self.teacher, asked, batch, edits_of(edits, "teacher"))
        return in_type(seen, next(self.student.parameters()).dtype)

    def _show(self, wanted: Mapping, batch: Mapping[str, Tensor], edits: Mapping, counts: Mapping, share: Tensor):
        own, lender = edits_of(edits, "student"), self.teacher
        return see(self.student, wanted["student"], batch, own, lender, {k: v * share for k, v in counts.items()})

    def _refuse_absent(self, model: Model, who: str, wanted: Mapping) -> None:
        for name, told in NAMES.items():
            known = {told} if isinstance(told, str) else set(told)
            if name in wanted and not known & set(model.targets):
                what = "a task's classes" if name == "task" else "words"
                raise LookupError(
                    f"{', '.join(self.objective.methods)} asks for logits of {what}, but the {who} only has "
                    f"{', '.join(model.targets)}; take a {who} with {' or '.join(sorted(known))}, or another stage"
                )

    def _refuse_unkept(self, teacher: Model | None) -> None:
        if teacher is not None:
            raise ValueError("a live teacher and one that was kept: give Distillation one of them")
        if places := sorted(p for p in self.objective.edits() if p.startswith(BORROWED)):
            raise LookupError(f"{', '.join(self.objective.methods)} acts inside the teacher or runs its layers "
                              f"({', '.join(places)}), which are not there; use a live teacher")  # fmt: skip
        fewer = [name for name, m in self.objective.methods.items() if getattr(m, "keep", None) is not None]
        if fewer and "logits" in self.objective.needs()["teacher"]:
            raise LookupError(f"{', '.join(fewer)} leaves words out, but of the teacher only its most likely words "
                              f"were kept, whichever they are; use a live teacher")  # fmt: skip

    def _refuse_vocabularies(self, wanted: Mapping) -> None:
        if self.teacher is None and self.kept is None:
            return
        if "logits" not in wanted or any(getattr(m, "keep", None) is not None for m in self.objective.methods.values()):
            return
        ours = _words(self.student).head.out_features
        theirs = self.kept.vocabulary if self.teacher is None else _words(self.teacher).head.out_features
        if ours != theirs:
            raise ValueError(f"the student knows {ours} words and the teacher {theirs}: their predictions cannot be "
                             f"compared; give both one tokenizer")  # fmt: skip


def see(
    model: Model,
    wanted: Mapping[str, Sequence[int]],
    batch: Mapping[str, Tensor],
    edits: Mapping[str, Any],
    lender: Model | None = None,
    counts: Mapping[str, Tensor] | None = None,
) -> Signals:
    """Run a model once and keep what is wanted.

    Args:
        wanted: signal -> layers, as from Objective.needs.
        batch: fields of a batch.
        edits: of this model, by place; see `inside`.
        lender: of layers.
        counts: labels by target, by which a token target's hard loss is divided.
    """
    edited = "edited" in wanted
    given = twice(batch) if edited else dict(batch)
    with inside(model, edits, given["mask"], lender), watch(model, wanted) as seen:
        hidden, rows = model.encode(**given)
    more: dict[str, Any] = {}
    if "task" in wanted:
        more["task"] = model.targets["cls"].predict(hidden, rows)
    if "logits" in wanted:
        target = _words(model)
        more["logits"] = Words(target.read(hidden), target.head.weight, target.head.bias)
    if "spans" in wanted and "spans" in given:
        more["spans"] = given["spans"]
    signals = seen.signals(given["mask"], **more)
    signals = halves(signals) if edited else signals
    if "hard" not in wanted:
        return signals
    if edited:
        hidden, rows = hidden[: len(batch["mask"])], Rows.read(batch)
    return replace(signals, hard=_hard(model, hidden, rows, batch, signals.task, counts))


def _hard(model: Model, hidden: Tensor, rows: Rows, batch: Mapping, task: Tensor | None, counts: Mapping) -> Tensor:
    """(B,) losses on the gold labels, whose mean is the loss: of classes by row, of words spread over all rows."""
    size, total = len(batch["mask"]), 0.0
    for name, target in model.targets.items():
        if name == "cls":
            logits = target.predict(hidden, rows) if task is None else task
            losses = F.cross_entropy(logits.float(), batch["labels_cls"], ignore_index=IGNORED, reduction="none")
            total = total + losses * size / counts[name]
        else:
            loss, _ = target(hidden, rows, batch)
            total = total + (loss / counts[name]).expand(size)
    return total


def _words(model: Model) -> nn.Module:
    return next(model.targets[name] for name in NAMES["logits"] if name in model.targets)


def in_type(signals: Signals, dtype: torch.dtype) -> Signals:
    """Signals in another floating type; scores keep what stands for the impossible."""

    def cast(value):
        if isinstance(value, Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        if isinstance(value, Signals):
            return in_type(value, dtype)
        return value

    changed = {}
    for each in fields(signals):
        value = getattr(signals, each.name)
        changed[each.name] = [cast(one) for one in value] if each.name in LISTS else cast(value)
    return replace(signals, **changed)
