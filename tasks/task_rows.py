"""Several tasks as one source of rows, with what their teachers say, and as one evaluation."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn

from models import parallel
from models.distill.tasks._lesson import Task
from models.distill.tasks._sampler import TaskSampler
from tasks.engine import Engine
from tasks.finetune import TIE, Evaluation, Start, fingerprint_of, kind_of, rows_of
from tasks.kinds._kind import Example, Examples, Kind
from tasks.teaching import Teacher, Told

__all__ = ["KINDS", "Macro", "One", "TaskRows", "hash_of", "read_one"]

KINDS = {"classification": "cls", "pairs": "cls", "regression": "regression"}


@dataclass(frozen=True)
class One:
    """A task, ready to be learned."""

    name: str
    kind: Kind
    rows: dict[str, pl.DataFrame]
    examples: dict[str, list[Example]]
    teachers: tuple[Teacher, ...]
    told: tuple[Told, ...]  # of the training rows
    head: dict
    settings: dict  # of the kind, with its length
    fingerprint: str

    @property
    def target(self) -> str:
        return KINDS[self.settings["kind"]]

    def known(self, taught: bool = True) -> Task:
        outputs = 1 if self.target == "regression" else self.head["labels"]
        widths = tuple(teacher.width for teacher in self.teachers) if taught else ()
        return Task(self.name, outputs, self.target == "regression", len(self.examples["train"]), len(widths), widths)


class _Taught:
    """Collates examples of one task, with what its teachers say of them."""

    def __init__(self, one: One, needs: Sequence[str]):
        self.one, self.needs = one, needs

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = self.one.kind.collate([example for example, _ in examples])
        gold = batch.pop(f"labels_{self.one.target}")
        rows = torch.tensor([place for _, place in examples])
        more = {}
        if self.one.told and "taught" in self.needs:
            more["taught"] = torch.stack([told.answers[rows] for told in self.one.told], 1)
        if self.one.told and "features" in self.needs:
            more = {f"feature_{number}": told.features[rows] for number, told in enumerate(self.one.told)}
        return batch | {"gold": gold} | more


class TaskRows:
    """Rows of several tasks as one source: a step is of one task, each task's rows in a new order every epoch of its.

    Args:
        ones: the tasks.
        needs: of the method.
        sampler: which task a step is of.
        batch: rows of a step.
        seed: of the order.
    """

    def __init__(self, ones: Sequence[One], needs: Sequence[str], sampler: TaskSampler, batch: int, seed: int):
        self.sampler, self.batch, self.names = sampler, batch, [one.name for one in ones]
        self.sources = {
            one.name: Examples(
                _Taught(one, needs), [(row, place) for place, row in enumerate(one.examples["train"])], seed, ""
            )
            for one in ones
        }
        taught = [[teacher.identity for teacher in one.teachers] for one in ones]
        self.fingerprint = hash_of([[one.fingerprint for one in ones], taught, list(needs), sampler.shares.tolist()])

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources.values())

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows of these numbers, with `task` () and `step` ().

        Raises:
            ValueError: they are of several steps, so perhaps of several tasks.
        """
        step = indices[0] // self.batch
        if indices[-1] // self.batch != step:
            raise ValueError(
                f"rows {indices[0]}..{indices[-1]} are of several steps of {self.batch} rows; one is asked"
            )
        name, number = self.sampler.at(step)
        found = self.sources[name].rows([index - step * self.batch + number * self.batch for index in indices])
        return found | {"task": torch.tensor(self.names.index(name)), "step": torch.tensor(step)}


class Macro:
    """Metrics of all tasks on their dev rows; the mean of their own metrics is what is maximised."""

    def __init__(self, ones: Sequence[One], settings: Engine, device: str):
        self.ones = ones
        self.each = {one.name: Evaluation(one.kind, one.rows["dev"], one.examples["dev"], settings, device)
                     for one in ones}  # fmt: skip

    def __call__(self, model: nn.Module) -> dict[str, float]:
        model = parallel.inner(model)
        found = {one.name: self.each[one.name].answers(model.one(one.name, one.target))[0] for one in self.ones}
        macro = sum(found[one.name][one.kind.metric] for one in self.ones) / len(self.ones)
        loss = sum(each["loss"] for each in found.values()) / len(self.ones)
        flat = {f"{name}_{key}": value for name, each in found.items() for key, value in each.items()}
        return {"loss": loss, "macro": macro, "score": macro - TIE * loss} | flat


def read_one(
    name: str, told: Mapping, length: int, start: Start, data: Path, teachers: Path, cache: Path | None, device: str
) -> One:
    """A task from its folder, with its teachers' answers to the training rows.

    Args:
        name: of the task.
        told: {data, kind, teachers, settings, head}.
        length: tokens of a row.
        start: whose tokenizer reads.
        data: has its folder.
        teachers: has those of its teachers.
        cache: of their answers; None keeps none.
        device: on which they answer.
    """
    settings = {"kind": told["kind"], "length": length, "settings": told.get("settings")}
    rows = rows_of(data / told["data"])
    kind = kind_of(settings, start, rows)
    known = tuple(Teacher(teachers / each, told["kind"], length) for each in told.get("teachers") or ())
    examples = {split: kind.encode(frame, split) for split, frame in rows.items()}
    answers = tuple(teacher.told(rows, "train", cache, device, told.get("settings")) for teacher in known)
    head = kind.head() | dict(told.get("head") or {})
    return One(name, kind, rows, examples, known, answers, head, settings,
               fingerprint_of(settings, data / told["data"], start))  # fmt: skip


def hash_of(value) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
