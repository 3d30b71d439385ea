"""What a student reads while it is taught, how it is judged and written: labelled rows, or running text."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import torch
from torch import Tensor, nn

from models import parallel
from models.components._model import Model
from models.distill._vocabulary import Vocabulary as Words
from tasks.engine import Engine, HeldOut
from tasks.fewer_words import FILE, Renumbered, choose_words, renumber
from tasks.files import read_json
from tasks.finetune import Evaluation, Start, fingerprint_of, kind_of, rows_of, save_model, training_of
from tasks.kinds._kind import Examples, Kind, Rejected
from tasks.pretrain import export
from tasks.recipes import Recipe
from tasks.settings import SettingsError
from tasks.source import open_source
from tasks.teachers import Teacher
from tasks.tokenizer import Vocabulary, tokenizer_files

__all__ = ["OnTask", "OnText", "Stepped", "open_lessons"]

KINDS = ("classification", "pairs")
LENGTH = 128


class Stepped:
    """A source whose batches say which step they belong to, so that schedules need no counter of their own.

    Args:
        source: of rows.
        batch: rows of a step, all ranks and micro-batches together.
        fixed: the step of all batches instead: the same objective whenever held-out rows are looked at.
    """

    def __init__(self, source, batch: int, fixed: int | None = None):
        self.source, self.batch, self.fixed, self.fingerprint = source, batch, fixed, source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows of these numbers, and `step` ()."""
        step = indices[0] // self.batch if self.fixed is None else self.fixed
        return self.source.rows(indices) | {"step": torch.tensor(step)}


class OnTask:
    """Labelled rows under fine-tuned teachers.

    Args:
        teachers: of equal classes in equal order.
        data: folder of tasks/ingest.py.
        chosen: the part `distill` of params.yaml, for the length of a row.
        origin: what the student is made of: how it reads rows and is written.

    Raises:
        Rejected: teachers of something else, or of other classes than the data.
        SettingsError: a model has fewer positions than a row has tokens.
    """

    on_task = True

    def __init__(self, teachers: Sequence[Teacher], data: Path, chosen: Mapping, origin: Teacher):
        for teacher in teachers:
            self._refuse_other_kind(teacher)
        self.start, self.data, self.rows = origin.start, data, rows_of(data)
        self.name = teachers[-1].about.get("kind", KINDS[0])
        self.length = chosen.get("length") or min(LENGTH, *(_most(one.start) for one in (*teachers, origin)))
        _refuse_longer([*teachers, origin], self.length)
        settings = {"kind": self.name, "length": self.length}
        self.kind: Kind = kind_of(settings, self.start, self.rows)
        for teacher in teachers:
            heads = teacher.start.recipe["target"]["cls"].get("labels", 2)
            known = teacher.about.get("labels") or _labels(teacher.start)
            _refuse_other_labels(teacher.folder, heads, known, self.kind.names())
        self.examples = {split: self.kind.encode(frame, split) for split, frame in self.rows.items()}
        self.fingerprint = fingerprint_of(settings, data, teachers[-1].start)

    def training(self, chosen: Mapping, trains_head: bool) -> Engine:
        """Where the head is not trained, the task says nothing about which weights are best: the last are kept."""
        settings = training_of(chosen, len(self.examples["train"]))
        return settings if trains_head or "patience" in chosen else replace(settings, patience=None)

    def source(self, settings: Engine) -> Examples:
        """The training rows."""
        return Examples(self.kind, self.examples["train"], settings.seed, self.fingerprint)

    def judge(self, settings: Engine, device: str, heldout=None):
        """Metrics of the student inside of a training model, which need no teacher."""
        judged = Evaluation(self.kind, self.rows["dev"], self.examples["dev"], settings, device)
        return lambda model: judged(parallel.inner(model).student)

    def metrics(self, model: Model, settings: Engine, words: Words | None = None) -> tuple[dict, pl.DataFrame]:
        """Of the dev rows, and their answers."""
        return Evaluation(self.kind, self.rows["dev"], self.examples["dev"], settings, "cpu").answers(model)

    def kept(self, student: Mapping, teacher: Mapping) -> float | None:
        """The student's share of a teacher's metric."""
        return _share(student[self.kind.metric], teacher[self.kind.metric])

    def one(self, words: Words | None = None) -> dict[str, Tensor]:
        """A batch of one row, as it is served."""
        return self.kind.collate(self.examples["dev"][:1])

    def save(self, model: Model, recipe: Mapping, folder: Path, words: Words | None = None) -> dict:
        """Write the student's folder, and say how it compares with the model when it is loaded again."""
        return save_model(model, recipe, self.start, self.kind, self.examples["dev"], folder)[0]

    def about(self, settings: Engine) -> dict:
        """For run.json."""
        told = {"kind": self.name, "labels": self.kind.names(), "length": self.length}
        told["evaluated_rows"] = len(self.rows["dev"])
        return told | {"fingerprint": hashlib.sha256(self.rows["dev"].write_ndjson().encode()).hexdigest()}

    def recipe(self, recipe: Mapping) -> dict:
        """For recipe.json."""
        return {"model": dict(recipe), "transformers": self.start.family}

    def words(self, chosen: Mapping | None) -> None:
        """All of the teacher's: fewer are chosen on running text."""
        return None

    def _refuse_other_kind(self, teacher: Teacher) -> None:
        does = teacher.about.get("kind", KINDS[0])
        if does not in KINDS:
            raise Rejected(f"{teacher.folder} does {does}; only teachers of classes are distilled: {', '.join(KINDS)}")
        if "cls" not in (targets := teacher.start.recipe["target"]):
            raise Rejected(f"{teacher.folder} has no classes, only {', '.join(targets)}; fine-tune it first, or give "
                           f"tokens of text as data")  # fmt: skip


class OnText:
    """Tokens of running text under pre-trained teachers.

    Args:
        teachers: of one tokenizer; the last one is the student's origin, and its pre-training says how text is read.
        data: folder of tasks/tokens.py.
        chosen: the part `distill` of params.yaml, for the length of a row.

    Raises:
        Rejected: a teacher that reads no running text.
        SettingsError: a teacher has fewer positions than a row has tokens.
    """

    on_task = False

    def __init__(self, teachers: Sequence[Teacher], data: Path, chosen: Mapping):
        teacher = teachers[-1]
        self.start, self.data = teacher.start, data
        for each in teachers:
            if not (each.folder / "recipe.json").is_file() or not each.about:
                raise Rejected(f"{each.folder} has no recipe.json and run.json: text is read as its pre-training did; "
                               f"give a folder of tasks/pretrain.py, or labelled rows as data")  # fmt: skip
            if "processor" not in read_json(each.folder / "recipe.json"):
                raise Rejected(f"{each.folder} is fine-tuned and reads labelled rows, but {data} holds tokens of "
                               f"running text; give it artifacts/ingest/<name>, or a pre-trained teacher")  # fmt: skip
        self.processor = read_json(teacher.folder / "recipe.json")["processor"]
        self.length = chosen.get("length") or teacher.about["length"]
        _refuse_longer(teachers, self.length)
        self.name, self.data_name = teacher.about.get("name"), teacher.about.get("data")
        self.heldout = self.open(Engine.seed, heldout=True)
        self.fingerprint = f"{self.heldout.fingerprint} {self.start.digest}"

    def open(self, seed: int, heldout: bool = False):
        """The rows of a split."""
        return open_source(self.data, self.processor, self.start.tokenizer, self.length, seed, heldout)

    def training(self, chosen: Mapping, trains_head: bool) -> Engine:
        """Of a run on running text, which is counted in steps."""
        if "epochs" in chosen:
            raise SettingsError("training on running text is counted in steps; take out epochs")
        return Engine.read(chosen)

    def source(self, settings: Engine):
        """The training rows."""
        return self.open(settings.seed)

    def judge(self, settings: Engine, device: str, heldout=None):
        """The training model's own loss on held-out rows, at the last step's objective; it is told of it.

        Args:
            heldout: these rows with what an absent teacher said of them.
        """
        judged = HeldOut(Stepped(heldout or self.heldout, settings.batch, settings.steps), settings, device)

        def judge(model: nn.Module) -> dict[str, float]:
            found = judged(model)
            if hasattr(own := parallel.inner(model), "validated"):
                own.validated(found["loss"])
            return found

        return judge

    def metrics(self, model: Model, settings: Engine, words: Words | None = None) -> tuple[dict, None]:
        """Of held-out rows."""
        return HeldOut(self._in(words), settings)(model), None

    def kept(self, student: Mapping, teacher: Mapping) -> float | None:
        """The student's share of the words that a teacher gets right."""
        name = next((name for name in ("mlm_correct", "lm_correct") if name in student), None)
        return _share(student[name], teacher[name]) if name else None

    def one(self, words: Words | None = None) -> dict[str, Tensor]:
        """A batch of one row, as it is served."""
        return {name: value for name, value in self._in(words).rows([0]).items() if not name.startswith("labels_")}

    def save(self, model: Model, recipe: Mapping, folder: Path, words: Words | None = None) -> dict:
        """Write the student's folder, and say how it compares with the model when it is loaded again."""
        told = Recipe(f"{self.name} student", dict(recipe), self.processor, self.start.family, "")
        with TemporaryDirectory() as place:  # the teacher's folder holds its weights too
            for file in tokenizer_files(self.start.tokenizer):
                shutil.copy(file, place)
            if words is not None:
                renumber(Path(place), words)
            known, probe = Vocabulary.open(place), self._in(words).rows(range(4))
            report = export(parallel.full_state(model), told, known, Path(place), folder, probe)
            if words is not None:
                shutil.copy(Path(place) / FILE, folder)
            return report

    def about(self, settings: Engine) -> dict:
        """For run.json."""
        return {"data": self.data_name, "length": self.length, "fingerprint": self.heldout.fingerprint,
                "evaluated_rows": min(len(self.heldout), settings.evaluate_rows)}  # fmt: skip

    def recipe(self, recipe: Mapping) -> dict:
        """For recipe.json."""
        return {"model": dict(recipe), "transformers": self.start.family, "processor": self.processor}

    def words(self, chosen: Mapping | None) -> Words | None:
        """Which words the student keeps; None for all."""
        return choose_words(chosen, self.data, self.start) if chosen else None

    def _in(self, words: Words | None):
        return self.heldout if words is None else Renumbered(self.heldout, words)


def open_lessons(
    teachers: Sequence[Teacher], data: Path, chosen: Mapping, begun: Teacher | None = None
) -> OnTask | OnText:
    """What is in a folder: rows, or tokens.

    Args:
        begun: what a student begins from that learns a task alone.

    Raises:
        Rejected: see OnTask and OnText; running text for a student that learns a task.
    """
    on_task = (data / "rows").is_dir()
    if begun is not None and not on_task:
        raise Rejected(f"{data} has no labelled rows, but a student that begins from {begun.folder} learns a task; "
                       f"give artifacts/ingest/<name>. On running text, continue its pre-training instead: "
                       f"language.pretrain, with start, or distill.chains")  # fmt: skip
    return OnTask(teachers, data, chosen, begun or teachers[-1]) if on_task else OnText(teachers, data, chosen)


def _refuse_longer(models: Sequence[Teacher], length: int) -> None:
    for one in models:
        if "length" in (one.start.recipe["embedding"].get("position") or {}) and length > (most := _most(one.start)):
            raise SettingsError(f"distill.length is {length}, but {one.folder} has positions for {most} tokens; lower "
                                f"it")  # fmt: skip


def _most(start: Start) -> int:
    """Tokens of the longest row that a model can read."""
    position = start.recipe["embedding"].get("position") or {}
    return position.get("length", LENGTH) - (position.get("start") or 0)


def _labels(start: Start) -> list[str]:
    """Names of the teacher's classes; [] where its config.json only numbers them."""
    named = start.config.get("id2label") or {}
    names = [named[key] for key in sorted(named, key=int)]
    return [] if all(name == f"LABEL_{place}" for place, name in enumerate(names)) else names


def _refuse_other_labels(teacher: Path, count: int, known: Sequence[str], asked: Sequence[str]) -> None:
    if not known and count != len(asked):
        raise Rejected(f"{teacher} has {count} classes, the data {len(asked)}; give the data that it was tuned on")
    if not known or list(known) == list(asked):
        return
    if sorted(known) == sorted(asked):
        raise Rejected(f"{teacher} says its classes in another order ({', '.join(known)}) than the data has them "
                       f"({', '.join(asked)}): the student would learn wrong ones; tune the teacher again")  # fmt: skip
    only = [set(known) - set(asked), set(asked) - set(known)]
    listed = [", ".join(sorted(each)) or "none" for each in only]
    raise Rejected(f"{teacher} knows {len(known)} classes, the data {len(asked)}: only the teacher has {listed[0]}, "
                   f"only the data has {listed[1]}; give the data that the teacher was tuned on")  # fmt: skip


def _share(student: float, teacher: float) -> float | None:
    return student / teacher if teacher > 0 else None
