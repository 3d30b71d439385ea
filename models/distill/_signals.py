"""What a Transformer shows to a distillation method, and what a method says it wants to see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.distill._words import TopK, Words

__all__ = ["LISTS", "Method", "Shape", "Signals"]

LISTS = ("hidden", "query", "key", "value", "scores")  # one entry a layer


@dataclass(frozen=True)
class Shape:
    """Sizes known before the first batch. A vocabulary or a number of classes that plays no part may stay 0."""

    layers: int
    width: int
    heads: int
    vocabulary: int = 0
    classes: int = 0

    def __post_init__(self):
        wrong = [f"{name} {getattr(self, name)}" for name in ("layers", "width", "heads") if getattr(self, name) < 1]
        if wrong:
            raise ValueError(f"a model has at least one layer, feature and head; got {', '.join(wrong)}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")


@dataclass(frozen=True)
class Signals:
    """One model on one batch. What nobody asked for is None; a list has one entry a layer, from the first to the last.

    Level 0 is `embedding`, level m is `hidden[m - 1]`: the output of layer m, or, where norms stand before the layers,
    the normalised input of layer m + 1 (after the last layer: of the final norm).
    """

    mask: Tensor  # (B, T) bool, True at real tokens
    logits: Tensor | Words | TopK | None = None  # (B, T, V) of a language model, or what gives them
    task: Tensor | None = None  # (B, C) of a task's classes
    hard: Tensor | None = None  # (B,) the model's own loss on each row's gold label
    embedding: Tensor | None = None  # (B, T, D)
    hidden: Sequence[Tensor | None] = field(default_factory=list)  # L of (B, T, D)
    query: Sequence[Tensor | None] = field(default_factory=list)  # L of (B, H, T, K); key and value alike
    key: Sequence[Tensor | None] = field(default_factory=list)
    value: Sequence[Tensor | None] = field(default_factory=list)
    scores: Sequence[Tensor | None] = field(
        default_factory=list
    )  # L of (B, H, T, T): scaled and masked, before softmax
    spans: Tensor | None = None  # (B, T) int64, which word or phrase of its row a token is part of; -1: none
    edited: "Signals | None" = None  # the same rows once more, under the edits of a method that compares both

    def level(self, number: int) -> Tensor:
        """(B, T, D) states of level `number`: 0 is the embedding's output."""
        return self.embedding if number == 0 else self.hidden[number - 1]


class Method(nn.Module):
    """What all methods share: the wants, the step, the stage.

    A method states in `needs` which signals it reads and may narrow `layers`. Whatever changes with the step reads the
    buffers, so that a resumed run goes on where it was; random draws come from `generator()`, a function of both.

    Args of every method: the shapes of student and teacher, then its settings; `stage` picks one of `stages`, the
    published order of training runs, where there is more than one.
    """

    needs: tuple[str, ...] = ()
    stages: tuple[str, ...] = ("distill",)
    uncut = False  # whether a step must be one batch: rows are compared, or what is averaged is neither rows nor tokens
    step: Tensor
    total: Tensor
    epochs: Tensor
    seed: Tensor

    def __init__(self, student: Shape, teacher: Shape, seed: int = 7):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.ones((), dtype=torch.int64))
        self.register_buffer("epochs", torch.ones((), dtype=torch.int64))
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))

    def layers(self) -> dict[str, dict[str, list[int]]]:
        """{"student": {signal: layer numbers from 0}, "teacher": ...} of the listed signals; all layers by default."""
        wanted = [name for name in self.needs if name in LISTS]
        every = lambda shape: {name: list(range(shape.layers)) for name in wanted}
        return {"student": every(self.student), "teacher": every(self.teacher)}

    def learned(self) -> int:
        """How many parameters of its own it trains beside the student; they are dropped at export."""
        return sum(parameter.numel() for parameter in self.parameters())

    def hard_weight(self) -> float:
        """Weight of the mean hard loss at this step; the objective adds it, once for all methods together."""
        return 0.0

    def edits(self) -> Mapping[str, object]:
        """For methods that act inside the forward pass: what to do, by the name of the place."""
        return {}

    def set_total(self, steps: int, epochs: int = 1) -> None:
        """Say how many steps the run has, what schedules are fractions of, and how many passes over the data.

        Raises:
            ValueError: fewer than one of either.
        """
        if steps < 1 or epochs < 1:
            raise ValueError(f"a run has at least one step and one epoch, got {steps} and {epochs}")
        self.total.fill_(steps)
        self.epochs.fill_(epochs)

    def advance(self) -> None:
        """Count one step; the trainer calls it after each update."""
        self.step += 1

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return min(1.0, self.step.item() / self.total.item())

    @property
    def epoch(self) -> int:
        """The pass over the data that this step is in, from 0."""
        return min(self.step.item() * self.epochs.item() // self.total.item(), self.epochs.item() - 1)

    def generator(self, number: int | None = None) -> torch.Generator:
        """Random numbers of this step alone, or of another number, such as the epoch: equal after a resume."""
        number = self.step.item() if number is None else number
        return torch.Generator().manual_seed((self.seed.item() * 1_000_003 + number) % 2**63)

    def choose_stage(self, stage: str | None) -> str:
        """The stage asked for, the first one by default.

        Raises:
            ValueError: this method has no such stage.
        """
        stage = stage or self.stages[0]
        if stage not in self.stages:
            raise ValueError(f"{type(self).__name__} has no stage {stage!r}; its stages: {', '.join(self.stages)}")
        return stage
