"""What a fine-tuned teacher says of the rows of a task, computed before any training and kept on disk.

A file of a cache is named after what it depends on: the teacher's weights and tokenizer, the kind of task, the length
and the rows. A changed teacher or a changed row is another file; a file that is not whole is written anew.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.components._model import assemble
from models.distill.tasks._learner import answers_of
from tasks.files import read_json
from tasks.finetune import Start, kind_of, load_start
from tasks.kinds._kind import Kind, Rejected

__all__ = ["Teacher", "Told", "refuse_other_labels"]

BATCH = 64
PARTS = ("answers", "features")


@dataclass(frozen=True)
class Told:
    """What a teacher says of N rows."""

    answers: Tensor  # (N, C) float32 logits, or (N, 1) numbers
    features: Tensor  # (N, D) float32, the pooled states it says it from


class Teacher:
    """A folder of tasks/finetune.py, tasks/distill.py or tasks/distill_tasks.py that answers one kind of task.

    Args:
        folder: of the teacher.
        kind: that its student has.
        length: tokens of a row; None for all that it can read, at most 512.

    Raises:
        Rejected: it does something else, or its model has no head for that.
    """

    def __init__(self, folder: str | Path, kind: str, length: int | None = None):
        self.folder, self.kind_name = Path(folder), kind
        self.start: Start = load_start(folder)
        told = read_json(self.folder / "run.json") if (self.folder / "run.json").is_file() else {}
        if (does := told.get("kind", kind)) != kind:
            raise Rejected(f"{folder} does {does}, its student {kind}; give a teacher of the same kind")
        target = "regression" if kind == "regression" else "cls"
        if target not in self.start.recipe["target"]:
            has = ", ".join(self.start.recipe["target"])
            raise Rejected(f"{folder} has no head for {kind}, only {has}; fine-tune it on the task first")
        table = (self.start.recipe["embedding"].get("position") or {}).get("length", 512)
        first = (self.start.recipe["embedding"].get("position") or {}).get("start") or 0
        self.target, self.length = target, min(length or 512, table - first)
        self.labels = told.get("labels") or _labels(self.start)
        self.width = self.start.recipe["width"]
        self.outputs = self.start.recipe["target"][target].get("labels", 2) if target == "cls" else 1

    @property
    def identity(self) -> str:
        """Changes with the weights and the tokenizer."""
        return _hash([self.start.digest, self.start.vocabulary.sha256])

    def told(
        self, rows: Mapping[str, pl.DataFrame], split: str, cache: Path | None, device: str = "cpu", settings=None
    ) -> Told:
        """What it says of the rows of a split; computed once, without dropout.

        Args:
            rows: of all splits, as its kind needs them.
            split: that is asked.
            cache: folder of answers; None keeps none.
            settings: of the kind.
        """
        key = self.key(rows[split], settings)
        file = cache and Path(cache) / f"{key}.safetensors"
        if file and (found := _open(file, key, len(rows[split]))):
            return found
        kind = kind_of({"kind": self.kind_name, "length": self.length, "settings": settings}, self.start, rows)
        refuse_other_labels(self.folder, self.outputs, self.labels, kind)
        made = Told(*self._say(kind, kind.encode(rows[split], split), device))
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh = file.with_name(f".{file.name}")
            fresh.write_bytes(save({"answers": made.answers, "features": made.features}, {"key": key}))
            fresh.replace(file)
        return made

    def key(self, rows: pl.DataFrame, settings=None) -> str:
        """What its answers to these rows depend on."""
        kept = [name for name in ("text", "second", "label") if name in rows.columns]
        content = hashlib.sha256(rows.select(kept).write_ndjson().encode()).hexdigest()
        return _hash([self.identity, self.kind_name, self.length, settings, content])

    def _say(self, kind: Kind, examples: Sequence[Mapping], device: str) -> tuple[Tensor, Tensor]:
        model = assemble(self.start.recipe)
        model.load_state_dict(self.start.state)
        model.to(device)
        batches = (
            {name: value.to(device) for name, value in kind.collate(examples[first : first + BATCH]).items()}
            for first in range(0, len(examples), BATCH)
        )
        return answers_of(model, model.targets[self.target], batches)


def refuse_other_labels(folder: str | Path, outputs: int, known: Sequence[str], kind: Kind) -> None:
    """Raise Rejected unless a teacher's classes are those of the data, in their order."""
    asked = kind.names()
    if not asked or (not known and outputs == len(asked)) or list(known) == list(asked):
        return
    if sorted(known) == sorted(asked):
        raise Rejected(f"{folder} says its classes in another order ({', '.join(known)}) than the data has them "
                       f"({', '.join(asked)}): the student would learn wrong ones; tune the teacher again")  # fmt: skip
    has = ", ".join(known) or f"{outputs} unnamed classes"
    raise Rejected(f"{folder} knows {has}, the data {', '.join(asked)}; give the data that the teacher was tuned on")


def _labels(start: Start) -> list[str]:
    named = start.config.get("id2label") or {}
    names = [named[key] for key in sorted(named, key=int)]
    return [] if all(name == f"LABEL_{place}" for place, name in enumerate(names)) else names


def _open(file: Path, key: str, rows: int) -> Told | None:
    """A cached file, or None where it is absent, cut short or another's."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as content:
            found = [content.get_tensor(name) for name in PARTS]
            known = (content.metadata() or {}).get("key")
    except (SafetensorError, OSError) as error:
        print(f"{file} is not whole ({error}); the teacher is asked again", file=sys.stderr)
        return None
    return Told(*found) if known == key and all(len(part) == rows for part in found) else None


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
