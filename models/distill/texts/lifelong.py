"""Lifelong distillation: a model learns a new language, and what it was before keeps it from forgetting the others.

    L = CE(y | new x) + w sum_k KD(y_k | old input of language k)
    KD = CE to the text that the old model decoded ("text"), or KL(old || new) at every token of it ("words")

One to many: the new source is read with each old tag. Many to one: a new source says next to nothing of what the old
model knows, so the inputs are made: word for word from the new one (pseudo input), or back from the new target by a
model that was kept (reverse teacher). Source: 2022, arXiv:2212.02800, of which the abstract was at hand: the levels
and both constructions are our reading. Classifiers remember by the same KL, to outputs that were recorded before the
first step (Li and Hoiem, 2016, arXiv:1606.09282).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.components._loss import IGNORED
from models.components._model import Model
from models.distill._divergence import Divergence, word_divergence
from models.distill._maths import kl
from models.distill._words import Words

__all__ = ["Lifelong", "Remembering", "pseudo"]

LEVELS = ("text", "words")


class Lifelong(nn.Module):
    """How much of the old model is kept, and by what.

    Args:
        weight: w.
        level: "text" or "words".

    Raises:
        ValueError: there is no such level, or the weight is below 0.
    """

    def __init__(self, weight: float = 1.0, level: str = "words"):
        super().__init__()
        if level not in LEVELS or weight < 0:
            raise ValueError(f"level is one of {', '.join(LEVELS)} and weight >= 0; got {level!r} and {weight}")
        self.weight, self.level = weight, level

    def forward(self, student: Tensor | Words, old: Tensor | Words) -> Tensor:
        """w times the summed KL(old || student) of (N, V) words or classes."""
        if isinstance(student, Tensor):
            return self.weight * kl(student, old.detach()).sum()
        each = student.hidden.new_ones(student.shape[:-1])
        return self.weight * word_divergence(student, old, Divergence(), each)


class Remembering(nn.Module):
    """A language model, or an encoder with a decoder, beside what it was.

    A batch has `old` (B,) bool: rows whose target the old model wrote. New and old tokens are averaged apart.

    Args:
        student: with the target lm.
        before: the old model, frozen here, no part of the state; None at the level of texts.
        method: see Lifelong.
    """

    def __init__(self, student: Model, before: Model | None, method: Lifelong):
        super().__init__()
        if before is not None:
            before.eval().requires_grad_(False)
        self.student, self.method, self._before = student, method, (before,)

    def counts(self, old: Tensor, labels_lm: Tensor, **batch: Tensor) -> dict[str, Tensor]:
        """Labelled tokens of new and of old rows."""
        there = labels_lm != IGNORED
        return {"new": there[~old].sum().float(), "old": there[old].sum().float()}

    def forward(
        self, old: Tensor, labels_lm: Tensor, counts: Mapping[str, Tensor] | None = None, **batch: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and "new" and "kept", its parts, per token."""
        counts = self.counts(old, labels_lm) if counts is None else counts
        target = self.student.targets["lm"]
        hidden, rows = self.student.encode(**batch)
        of = lambda which: {"labels_lm": labels_lm.where(which[:, None], torch.full_like(labels_lm, IGNORED))}
        new = target(hidden, rows, of(~old))[0] / counts["new"].clamp(min=1)
        if self.method.level == "text":
            kept = self.method.weight * target(hidden, rows, of(old))[0]
        else:
            asked = (labels_lm != IGNORED) & old[:, None]
            with torch.no_grad():
                theirs, _ = self._before[0].encode(**batch)
            kept = self.method(words(target, hidden[asked]), words(self._before[0].targets["lm"], theirs[asked]))
        kept = kept / counts["old"].clamp(min=1)
        return new + kept, {"new": new.detach(), "kept": kept.detach()}


def words(target: nn.Module, hidden: Tensor) -> Words:
    """What a language head would say of these places (N, D), not yet multiplied."""
    return Words(target.read(hidden), target.head.weight, target.head.bias)


def pseudo(text: str, dictionary: Mapping[str, str]) -> tuple[str, float]:
    """A text word for word in another language, and the share of its words that the dictionary has; others stay.

    >>> pseudo("Das rote Haus.", {"das": "the", "rote": "red"})
    ('the red Haus.', 0.6666666666666666)
    """
    found = [dictionary.get(word.lower()) for word in re.findall(r"\w+", text)]
    translated = re.sub(r"\w+", lambda match: dictionary.get(match[0].lower(), match[0]), text)
    return translated, sum(word is not None for word in found) / max(len(found), 1)
