"""A teacher, a method or a mix of methods, and data -> a smaller student, what it keeps of the teacher, and its speed.

    python -m tasks.distill params.yaml:distill methods kd TEACHER DATA OUT CHECKPOINTS

TEACHER is a folder of tasks/finetune.py, tasks/pretrain.py or this unit. DATA is an ingested set of labelled rows under
a fine-tuned teacher, or tokens under a pre-trained one. A method's stages run one after the other, each from the
student of the one before; what only looks inside ends with gold labels, or its head would never be trained.
"""

import hashlib
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import torch
from torch import Tensor

from models import build, method, parallel
from models.components._closest import refuse_unknown
from models.components._model import Model, assemble
from models.distill._distillation import Distillation, Gold
from models.distill._objective import Objective
from models.distill._signals import Shape
from models.distill._student import new_student, shape_of, student_recipe
from tasks import plots
from tasks.command import run as run_command
from tasks.engine import Engine, HeldOut, Run, launched, run
from tasks.files import digest, new_folder, read_json, write_json
from tasks.finetune import Evaluation, Start, fingerprint_of, kind_of, load_start, rows_of, save_model, training_of
from tasks.kinds._kind import Examples, Kind, Rejected
from tasks.pretrain import export
from tasks.recipes import Recipe
from tasks.settings import SettingsError, read
from tasks.slots import slot
from tasks.source import open_source
from tasks.training import use_threads

__all__ = ["Stepped", "TeacherChanged", "distill", "stages_of"]

PARTS = ("methods", "mixes")
KEYS = ("teacher", "data", "student", "training", "length", "precision", *PARTS, "gates")
STUDENT = ("layers", "width", "heads", "inner", "start")
OWN = ("training", "stages", "hard")  # of an entry, beside what its methods are told
TEXT = ("pretrain", "corpus")  # stages that read running text
GOLD = "gold"  # the stage of gold labels alone
KINDS = ("classification", "pairs")
SAMPLED = ("on_policy", "minillm", "distillm")  # train on texts that the models write
LENGTH, TIMED = 128, 15
MARKER = "teacher.json"


class TeacherChanged(ValueError):
    """The teacher's files are not those that the run began with."""


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


@dataclass(frozen=True)
class Stage:
    """One training run of a method's published order."""

    name: str
    objective: Objective
    training: dict
    trains_head: bool


class OnTask:
    """Labelled rows under a fine-tuned teacher."""

    def __init__(self, teacher: Path, start: Start, data: Path, chosen: Mapping):
        about = read_json(teacher / "run.json") if (teacher / "run.json").is_file() else {}
        name = about.get("kind", KINDS[0])
        if name not in KINDS:
            raise Rejected(f"{teacher} does {name}; only teachers of classes are distilled: {', '.join(KINDS)}")
        if "cls" not in start.recipe["target"]:
            has = ", ".join(start.recipe["target"])
            raise Rejected(f"{teacher} has no classes, only {has}; fine-tune it first, or give tokens of text as data")
        table = (start.recipe["embedding"].get("position") or {}).get("length", LENGTH)
        first = (start.recipe["embedding"].get("position") or {}).get("start") or 0
        self.length = chosen.get("length") or min(LENGTH, table - first)
        settings = {"kind": name, "length": self.length}
        self.start, self.data, self.name, self.rows = start, data, name, rows_of(data)
        self.kind: Kind = kind_of(settings, start, self.rows)
        heads = start.recipe["target"]["cls"].get("labels", 2)
        _refuse_other_labels(teacher, heads, about.get("labels") or _labels(start), self.kind.names())
        self.examples = {split: self.kind.encode(frame, split) for split, frame in self.rows.items()}
        self.fingerprint = fingerprint_of(settings, data, start)
        self.tokenizer = start.vocabulary.sha256

    def training(self, chosen: Mapping, trains_head: bool) -> Engine:
        """Where the head is not trained, the task says nothing about which weights are best: the last are kept."""
        settings = training_of(chosen, len(self.examples["train"]))
        return settings if trains_head or "patience" in chosen else replace(settings, patience=None)

    def source(self, settings: Engine) -> Examples:
        return Examples(self.kind, self.examples["train"], settings.seed, self.fingerprint)

    def judge(self, settings: Engine, device: str):
        judged = Evaluation(self.kind, self.rows["dev"], self.examples["dev"], settings, device)
        return lambda model: judged(parallel.inner(model).student)

    def metrics(self, model: Model, settings: Engine) -> tuple[dict, pl.DataFrame]:
        """Of the dev rows, and their answers."""
        return Evaluation(self.kind, self.rows["dev"], self.examples["dev"], settings, "cpu").answers(model)

    def kept(self, student: Mapping, teacher: Mapping) -> float | None:
        return _share(student[self.kind.metric], teacher[self.kind.metric])

    def one(self) -> dict[str, Tensor]:
        """A batch of one row, as it is served."""
        return self.kind.collate(self.examples["dev"][:1])

    def save(self, model: Model, recipe: Mapping, folder: Path) -> dict:
        return save_model(model, recipe, self.start, self.kind, self.examples["dev"], folder)[0]

    def about(self, settings: Engine) -> dict:
        told = {"kind": self.name, "labels": self.kind.names(), "evaluated_rows": len(self.rows["dev"])}
        return told | {"fingerprint": hashlib.sha256(self.rows["dev"].write_ndjson().encode()).hexdigest()}


class OnText:
    """Tokens of running text under a pre-trained teacher."""

    def __init__(self, teacher: Path, start: Start, data: Path, chosen: Mapping):
        self.start, self.teacher, self.data = start, teacher, data
        if not (teacher / "recipe.json").is_file() or not (teacher / "run.json").is_file():
            raise Rejected(f"{teacher} has no recipe.json and run.json: text is read as its pre-training did; give a "
                           f"folder of tasks/pretrain.py, or labelled rows as data")  # fmt: skip
        self.recipe, about = read_json(teacher / "recipe.json"), read_json(teacher / "run.json")
        if "processor" not in self.recipe:
            raise Rejected(f"{teacher} is fine-tuned and reads labelled rows, but {data} holds tokens of running text; "
                           f"give it artifacts/ingest/<name>, or a pre-trained teacher")  # fmt: skip
        self.length = chosen.get("length") or about["length"]
        self.name, self.data_name = about.get("name"), about.get("data")
        self.heldout = self.open(Engine.seed, heldout=True)
        self.fingerprint = f"{self.heldout.fingerprint} {start.digest}"

    def open(self, seed: int, heldout: bool = False):
        return open_source(self.data, self.recipe["processor"], self.start.tokenizer, self.length, seed, heldout)

    def training(self, chosen: Mapping, trains_head: bool) -> Engine:
        if "epochs" in chosen:
            raise SettingsError("training on running text is counted in steps; take out epochs")
        return Engine.read(chosen)

    def source(self, settings: Engine):
        return self.open(settings.seed)

    def judge(self, settings: Engine, device: str):
        return HeldOut(Stepped(self.heldout, settings.batch, settings.steps), settings, device)

    def metrics(self, model: Model, settings: Engine) -> tuple[dict, None]:
        return HeldOut(self.heldout, settings)(model), None

    def kept(self, student: Mapping, teacher: Mapping) -> float | None:
        name = next((name for name in ("mlm_correct", "lm_correct") if name in student), None)
        return _share(student[name], teacher[name]) if name else None

    def one(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.heldout.rows([0]).items() if not name.startswith("labels_")}

    def save(self, model: Model, recipe: Mapping, folder: Path) -> dict:
        told = Recipe(f"{self.name} student", dict(recipe), self.recipe["processor"], self.start.family, "")
        with TemporaryDirectory() as place:  # the teacher's folder holds its weights too
            for file in self.start.tokenizer.iterdir():
                if file.is_file() and file.suffix != ".safetensors" and file.name not in ("config.json", "recipe.json"):
                    shutil.copy(file, place)
            return export(parallel.full_state(model), told, self.start.vocabulary, Path(place), folder,
                          self.heldout.rows(range(4)))  # fmt: skip

    def about(self, settings: Engine) -> dict:
        return {"data": self.data_name, "length": self.length, "fingerprint": self.heldout.fingerprint,
                "evaluated_rows": min(len(self.heldout), settings.evaluate_rows)}  # fmt: skip


def distill(
    chosen: Mapping,
    part: str,
    name: str,
    teacher: str | Path,
    data: str | Path,
    out: str | Path,
    checkpoints: str | Path | None,
) -> dict:
    """Distil, and write the folder `out` whole or not at all.

    Args:
        chosen: {student: {layers, width, heads, inner, start: cut|random}, training, length, precision (of the teacher,
            float32 or bfloat16), methods: {name: settings}, mixes: {name: {method: settings with `weight`}}}. An entry
            may have `training` of its own, `stages` (a list, or {stage: training}), and a mix `hard`.
        part: "methods" or "mixes".
        name: of the entry.
        teacher: folder of tasks/finetune.py, tasks/pretrain.py or this unit.
        data: folder of tasks/ingest.py or tasks/tokens.py.
        out: takes model/, recipe.json, run.json, metrics.json {"dev", "teacher", "kept", "latency_ms", "export"},
            curve.csv, and extra/: curve.png, and of a task predictions.parquet.
        checkpoints: of the run, emptied when it is done; None keeps none.

    Returns:
        The metrics; {} if SIGTERM ended the run early, and on all ranks but the first.

    Raises:
        SettingsError, LookupError, ValueError: what cannot work, before any training.
        TeacherChanged: during the run, or since the checkpoint.
    """
    began, teacher, data = time.monotonic(), Path(teacher), Path(data)
    entry = _entry(chosen, part, name)
    start, known = load_start(teacher), digest(load_folder(teacher))
    rows = (OnTask if (data / "rows").is_dir() else OnText)(teacher, start, data, chosen)
    sizes = dict(chosen.get("student") or {})
    begins = sizes.pop("start", "cut")
    recipe = student_recipe(start.recipe, **sizes)
    shapes = shape_of(recipe), shape_of(start.recipe)
    stages = _stages(name, part, entry, shapes, isinstance(rows, OnTask), dict(chosen.get("training") or {}))
    whole, precision = assemble(start.recipe), _precision(chosen)
    whole.load_state_dict(start.state)
    torch.manual_seed(stages[0].training.get("seed", Engine.seed))
    student = new_student(recipe, begins, start.state)
    kept = _checkpoints(checkpoints, [part, name, entry, sizes, begins, str(precision), rows.fingerprint], known)
    runs: dict[str, Run] = {}
    with launched() as own, nullcontext(own) if own else slot() as device:
        taught, _ = rows.metrics(whole.eval(), _settings(rows, stages[-1]))
        whole.to(device, precision)
        for number, stage in enumerate(stages):
            settings = _settings(rows, stage)
            model = _begin(student, whole, stage, settings, rows, device)
            folder = kept and kept / f"{number}-{stage.name}"
            source = Stepped(rows.source(settings), settings.batch)
            done = run(model, source, settings, rows.judge(settings, device), folder, f"{name} {stage.name}", device)
            if done.stopped:
                return {}
            runs[stage.name] = done
        if parallel.rank():
            return {}
        student.cpu().eval()
    if digest(load_folder(teacher)) != known:
        raise TeacherChanged(f"{teacher} was written while its student was being trained; run this again")
    found, told = rows.metrics(student, settings)
    times = latency({"student": student, "teacher": whole.cpu().float()}, rows.one())
    numbers = [sum(p.numel() for p in one.parameters()) for one in (student, whole)]
    with new_folder(out) as folder:
        (folder / "extra").mkdir()
        saved = rows.save(student, recipe, folder / "model")
        metrics = {"dev": found, "teacher": taught, "kept": rows.kept(found, taught), "latency_ms": times}
        metrics["export"] = saved
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "recipe.json", {"model": recipe, "transformers": start.family}
                   | ({"processor": rows.recipe["processor"]} if isinstance(rows, OnText) else {}))  # fmt: skip
        write_json(folder / "run.json", rows.about(settings) | {
            "name": name,
            "part": part,
            "family": start.family,
            "stages": [stage.name for stage in stages],
            "teacher": str(teacher),
            "teacher_content": known,
            "parameters": numbers[0],
            "teacher_parameters": numbers[1],
            "ratio": numbers[0] / numbers[1],
            "trained_on": rows.fingerprint,
            "tokens": sum(done.tokens for done in runs.values()),
            "steps": sum(done.step for done in runs.values()),
            "seconds": sum(done.seconds for done in runs.values()),
            "wall_seconds": time.monotonic() - began,
            "seed": settings.seed,
            "training": settings.decisive,
            "precision": chosen.get("precision", "float32"),
            "tokenizer": start.vocabulary.sha256,
        })  # fmt: skip
        if told is not None:
            told.write_parquet(folder / "extra/predictions.parquet")
        _write_curve(folder, runs)
    if checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)
    share = "unknown" if metrics["kept"] is None else f"{metrics['kept']:.3f}"
    shown = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
    print(f"{name}: {numbers[0]:,} of {numbers[1]:,} parameters, kept {share} of the teacher, "
          f"{times['student']:.2f} ms instead of {times['teacher']:.2f}; {shown}")  # fmt: skip
    return metrics


@torch.no_grad()
def latency(models: Mapping[str, Model], batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Milliseconds that each model takes for a row on the CPU: the median of passes in turns."""
    spent: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(TIMED):
        for name, model in models.items():
            at = time.perf_counter()
            hidden, rows = model.encode(**batch)
            if "cls" in model.targets:
                model.targets["cls"].predict(hidden, rows)
            spent[name].append(1000 * (time.perf_counter() - at))
    return {name: statistics.median(times[2:]) for name, times in spent.items()}


def load_folder(teacher: Path) -> Path:
    """Where the teacher's files lie: what its registered version is known by."""
    return teacher / "model" if (teacher / "model").is_dir() else teacher


# ---------------------------------------------------------------- what to run


def stages_of(chosen: Mapping, name: str, teacher: str | Path, data: str | Path) -> list[str]:
    """The stages that a method would have here, without a run; refuses what `distill` would refuse of them."""
    entry, start = _entry(chosen, "methods", name), load_start(teacher)
    sizes = {key: value for key, value in chosen["student"].items() if key != "start"}
    shapes = shape_of(student_recipe(start.recipe, **sizes)), shape_of(start.recipe)
    return [stage.name for stage in _stages(name, "methods", entry, shapes, (Path(data) / "rows").is_dir(), {})]


def _entry(chosen: Mapping, part: str, name: str) -> dict:
    for key in chosen:
        refuse_unknown("distill", key, KEYS)
    for key in chosen.get("student") or {}:
        refuse_unknown("distill.student", key, STUDENT)
    if "layers" not in (chosen.get("student") or {}):
        raise SettingsError("distill.student lacks layers: how many of the teacher's the student has")
    if part not in PARTS or name not in (chosen.get(part) or {}):
        there = ", ".join(chosen.get(part) or {}) or "nothing"
        raise SettingsError(f"distill.{part} has no {name!r}; it has: {there}")
    return dict(chosen[part][name] or {})


def _stages(
    name: str, part: str, entry: Mapping, shapes: tuple[Shape, Shape], on_task: bool, training: Mapping
) -> list[Stage]:
    """What runs, in order; every objective is built here, so that a fault costs no training."""
    own = {key: entry[key] for key in OWN if key in entry}
    told = {key: value for key, value in entry.items() if key not in own}
    methods = {name: told} if part == "methods" else {key: dict(value or {}) for key, value in told.items()}
    weights = {key: each.pop("weight") for key, each in methods.items() if part == "mixes" and "weight" in each}
    for each in methods:
        _refuse_unfit(each)
    training = {**training, **(own.get("training") or {})}
    order = own.get("stages") or (_published(name, told, shapes, on_task) if part == "methods" else [name])
    changes = order if isinstance(order, Mapping) else {}
    made = []
    for stage in order:
        if stage == GOLD:
            objective = Objective({GOLD: Gold(*shapes)})
        else:
            chosen = {"stage": stage} if part == "methods" and len(method("distill", name).stages) > 1 else {}
            built = {key: build("distill", key, *shapes, **each, **chosen) for key, each in methods.items()}
            objective = Objective(built, weights, own.get("hard"))
        made.append(Stage(stage, objective, {**training, **(changes.get(stage) or {})}, _trains_head(objective)))
    return made


def _published(name: str, told: Mapping, shapes: tuple[Shape, Shape], on_task: bool) -> list[str]:
    """The stages of a method that such data can feed, in the published order."""
    cls = method("distill", name)
    if len(cls.stages) == 1 or "stage" in told:
        fitting, needs = [told.get("stage", name)], set(build("distill", name, *shapes, **told).needs)
    else:
        needs_of = {stage: set(build("distill", name, *shapes, stage=stage, **told).needs) for stage in cls.stages}
        text = [stage for stage in cls.stages if stage in TEXT]
        if on_task:
            fitting = [stage for stage in cls.stages if stage not in TEXT and "logits" not in needs_of[stage]]
        else:
            fitting = text or [stage for stage in cls.stages if "task" not in needs_of[stage]]
        needs = set().union(*(needs_of[stage] for stage in fitting))
    if not fitting:
        raise SettingsError(f"{name} has no stage for such data; its stages: {', '.join(cls.stages)}")
    return fitting + [GOLD] * (on_task and not needs & {"task", "hard", "logits"})


def _trains_head(objective: Objective) -> bool:
    return bool({"task", "hard"} & set(objective.needs()["student"]))


def _refuse_unfit(name: str) -> None:
    """What acts otherwise than by signals of both models is not run here."""
    why = "trains on texts that the models write" if name in SAMPLED else "rebuilds the teacher into the student"
    if name in SAMPLED or hasattr(method("distill", name), "attach"):
        raise SettingsError(f"{name} {why}, which needs a loop of its own: take another method here, or call "
                            f"models/distill/{name}.py from Python")  # fmt: skip


def _precision(chosen: Mapping) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if (asked := chosen.get("precision", "float32")) not in known:
        raise SettingsError(f"distill.precision, the teacher's, is one of {', '.join(known)}; got {asked!r}")
    return known[asked]


def _settings(rows: OnTask | OnText, stage: Stage) -> Engine:
    settings = rows.training(stage.training, stage.trains_head)
    if settings.activations != "none" or settings.compile:
        raise SettingsError("distillation reads layers as they run; set activations: none and compile: false")
    return settings


def _begin(student: Model, teacher: Model, stage: Stage, settings: Engine, rows, device: str) -> Distillation:
    """A stage's model, told of its run, and asked once: what cannot be seen should cost no training."""
    only_gold = set(stage.objective.methods) == {GOLD}
    lends = any(place.startswith("student.layer") for place in stage.objective.edits())
    if lends and next(teacher.parameters()).dtype != torch.float32:
        raise SettingsError(f"{stage.name} runs the teacher's layers inside the student; set precision: float32")
    model = Distillation(student, None if only_gold else teacher, stage.objective).to(device)
    source = rows.source(settings)
    model.set_total(settings.steps, math.ceil(settings.steps * settings.batch / len(source)))
    for each in stage.objective.methods.values():
        each.seed.fill_(settings.seed)
    batch = Stepped(source, settings.batch).rows(range(min(2, len(source))))
    model.train()(**{name: value.to(device) for name, value in batch.items()})
    return model


def _checkpoints(folder: str | Path | None, known: Sequence, teacher: str) -> Path | None:
    """This run's checkpoints; they are of one teacher."""
    if folder is None:
        return None
    kept = Path(folder) / hashlib.sha256(repr(known).encode()).hexdigest()[:16]
    marker = kept / MARKER
    if marker.is_file() and (was := read_json(marker)["content"]) != teacher:
        raise TeacherChanged(f"{kept} was trained under a teacher whose files hash to {was[:12]}, now they hash to "
                             f"{teacher[:12]}; bring the teacher back, or delete the folder to start anew")  # fmt: skip
    kept.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"content": teacher})
    return kept


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


def _write_curve(folder: Path, stages: Mapping[str, Run]) -> None:
    """curve.csv with the stages on end, and extra/curve.png."""
    rows, before = [], 0
    for name, done in stages.items():
        # A later stage begins with the weights that the one before ended with: that step is told once.
        told = done.curve if before == 0 else done.curve[1:]
        rows += [{"stage": name} | row | {"step": row["step"] + before} for row in told]
        before += done.step
    table = pl.DataFrame(rows, infer_schema_length=None)
    table.write_csv(folder / "curve.csv")
    shown = [name for name in ("step", "loss", "heldout_loss") if name in table.columns]
    drawn = table.select(shown).with_columns(pl.exclude("step").cast(pl.Float64).fill_null(float("nan"))).to_dicts()
    (folder / "extra/curve.png").write_bytes(plots.curves(drawn))


def main(address: str, part: str, name: str, teacher: str, data: str, out: str, checkpoints: str) -> None:
    """python -m tasks.distill params.yaml:distill methods|mixes NAME TEACHER DATA OUT CHECKPOINTS"""
    use_threads()
    if not distill(read(address), part, name, teacher, data, out, checkpoints) and not parallel.rank():
        sys.exit(os.EX_TEMPFAIL)  # stopped early: the flows try again, and it continues


if __name__ == "__main__":
    run_command(main)
