"""Training steps on texts that the models write: a row's beginning is a prompt, and the method says whose text follows.

    text = given, or prompt + sample        before the loss, without a gradient: `counts` is called first
    L = sum over predicted tokens of D / their number in the step, and the gold labels' loss of given text

Text that is written in a step is a function of its number and of the weights, so a resumed run writes it again. A row
of several documents is its first one. Padding on the left has no place of its own: positions count real tokens.
"""

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.components._model import Model
from models.distill._objective import Objective
from models.distill._sequences import NextWords, SequenceMethod, Text
from models.distill._signals import Signals
from models.distill._words import Words

__all__ = ["Writing", "next_words", "text_of"]


class Writing(nn.Module):
    """A language model that learns from another on texts of both.

    Args:
        student: trained.
        teacher: frozen here and put into evaluation mode.
        objective: of one sequence method.
        end: id of the token that ends a text.
        pad: id that fills rows; the mask hides it.
        prompt: tokens at the beginning of each row that are given.

    Raises:
        LookupError: a model does not predict the next word.
        ValueError: other methods beside a sequence method; a prompt of nothing.
    """

    def __init__(self, student: Model, teacher: Model, objective: Objective, end: int, pad: int, prompt: int):
        super().__init__()
        methods = list(objective.methods.values())
        if len(methods) != 1 or not isinstance(methods[0], SequenceMethod):
            raise ValueError(f"{', '.join(objective.methods)}: a method that chooses its texts is mixed with no other")
        for who, model in (("student", student), ("teacher", teacher)):
            if "lm" not in model.targets:
                raise LookupError(f"{next(iter(objective.methods))} predicts the next word, but the {who} only has "
                                  f"{', '.join(model.targets)}; take a decoder, such as gpt2 or llama")  # fmt: skip
        if prompt < 1:
            raise ValueError(f"a text goes on from a prompt of at least one token; got {prompt}")
        self.student, self.objective, self.method = student, objective, methods[0]
        self.end, self.pad, self.prompt = end, pad, prompt
        self._teacher = (teacher.eval().requires_grad_(False),)  # no part of the state
        self._written: deque[tuple[Text, bool]] = deque()  # by `counts`, for the forward passes that follow

    @property
    def teacher(self) -> Model:
        """The frozen teacher."""
        return self._teacher[0]

    def set_total(self, steps: int, epochs: int = 1) -> None:
        """See Objective."""
        self.objective.set_total(steps, epochs)

    def validated(self, loss: float) -> None:
        """Tell the method each validation loss in turn."""
        if hasattr(self.method, "validated"):
            self.method.validated(loss)

    def counts(self, step: Tensor | None = None, **batch: Tensor) -> dict[str, Tensor]:
        """Predicted tokens and labels of a batch; in training the step's text is written here."""
        if step is not None:
            self.method.step.copy_(step)
        text = given = text_of(batch, self.prompt)
        if self.training:
            text = self._write(given)
            self._written.append((text, text is not given))
        tokens = text.predicts(self.end).sum().float()
        return {"tokens": tokens} | {name: target.count(batch) for name, target in self.student.targets.items()}

    def forward(
        self, counts: Mapping[str, Tensor] | None = None, step: Tensor | None = None, **batch: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and the method's part of it, with "hard" where labels count.

        Raises:
            ValueError: no token of the step's text is predicted.
        """
        if counts is None:
            counts = self.counts(step, **batch)
        text, sampled = self._written.popleft() if self.training else (text_of(batch, self.prompt), False)
        mask = text.predicts(self.end)
        if not bool(mask.any()):
            raise ValueError(f"no token follows the prompts of {self.prompt} tokens in {len(mask)} rows; lower prompt, "
                             f"or give longer rows")  # fmt: skip
        student = Signals(mask, logits=words(self.student, text))
        with torch.no_grad():
            teacher = Signals(mask, logits=words(self.teacher, text))
        more = {}
        if sampled and hasattr(self.method, "measure"):
            more["rollout"] = self.method.measure(student, teacher, text)
        loss = self.method(student, teacher, counts["tokens"], **more)
        terms = {next(iter(self.objective.methods)): loss.detach()}
        if (weight := self.objective.hard_weight()) and self._labelled(sampled):
            hard, _ = self.student(counts, **batch)
            loss, terms["hard"] = loss + weight * hard, hard.detach()
        return loss, terms

    def _write(self, given: Text) -> Text:
        """This step's text, by models that drop nothing out while they write."""
        training = self.student.training
        self.student.eval()
        try:
            writers = next_words(self.student), next_words(self.teacher)
            return self.method.texts(given, *writers, self.end, self.pad)
        finally:
            self.student.train(training)

    def _labelled(self, sampled: bool) -> bool:
        """Gold labels are of given text; a method that always writes reads them of a plain corpus beside it."""
        return not sampled or not hasattr(self.method, "source")


def text_of(batch: Mapping[str, Tensor], prompt: int) -> Text:
    """The first document of each row, its first `prompt` tokens given, but never the whole of it."""
    ids, mask = batch["ids"], batch["mask"]
    if "documents" in batch:
        mask = mask & (batch["documents"] == batch["documents"][:, :1])
    given_B1 = (mask.sum(-1, keepdim=True) - 1).clamp(min=1, max=prompt)
    place_BT = mask.cumsum(-1)  # from 1
    return Text(ids, mask, mask & (place_BT > given_B1))


def words(model: Model, text: Text) -> Words:
    """What the model's head reads of each place."""
    hidden, _ = model.encode(ids=text.ids, mask=text.mask, positions=text.positions)
    target = model.targets["lm"]
    return Words(target.read(hidden), target.head.weight, target.head.bias)


def next_words(model: Model) -> NextWords:
    """Logits of the word after the last place."""

    def last(ids: Tensor, mask: Tensor) -> Tensor:
        text = Text(ids, mask, torch.zeros_like(mask))
        return words(model, text)[:, -1].tensor()

    return last
