"""Teachers of several tasks -> one student with a head for each, and each task's model as it would be served.

    python -m tasks.distill_tasks params.yaml:distill.tasks NAME START DATA TEACHERS OUT CHECKPOINTS

START is a pre-trained folder: the student begins as it, or cut from it, or takes only its tokenizer. DATA and TEACHERS
are folders that hold the data sets and the teachers which the tasks name. Every step is of one task; the kept weights
are those of the best macro mean. OUT/tasks/<name> is a folder like that of tasks/finetune.py, and may teach in turn.
"""

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from inspect import signature
from pathlib import Path

import torch

from models import build, method
from models.components._closest import refuse_unknown
from models.components._model import Model, assemble
from models.distill._student import new_student, student_recipe
from models.distill.tasks._learner import Learner, new_head
from models.distill.tasks._lesson import TaskMethod
from models.distill.tasks._sampler import TaskSampler, alpha_for
from tasks.command import run as run_command
from tasks.curve import on_end, write_curve
from tasks.engine import Engine, Run, run
from tasks.files import new_folder, write_json
from tasks.finetune import LENGTH, Start, load_start, retarget, training_of
from tasks.recipes import read_recipe
from tasks.settings import SettingsError, read
from tasks.slots import slot
from tasks.task_model import export, single
from tasks.task_rows import KINDS, Macro, One, TaskRows, hash_of, read_one
from tasks.training import use_threads

__all__ = ["distill_tasks"]

KEYS = ("method", "from", "tasks", "student", "alpha", "length", "training", "finetune")
OF_TASK = ("data", "kind", "teachers", "settings", "head")
STUDENT = ("layers", "width", "heads", "inner", "start", "recipe", "size", "overrides")
EPOCHS = 5  # MT-DNN's, arXiv:1901.11504
LENGTHS = {"epochs", "steps"}
PLAIN = "mt_dnn"  # without teachers: gold labels alone


def distill_tasks(
    name: str,
    chosen: Mapping,
    source: str | Path,
    data: str | Path,
    teachers: str | Path,
    out: str | Path,
    checkpoints: str | Path | None,
) -> dict:
    """Distil all tasks into one student, and write the folder `out` whole or not at all.

    Args:
        name: of the entry.
        chosen: {method: {name of models/distill/tasks: settings}, from (a name of `source`, for the report),
            tasks: {task: {data, kind (classification, pairs or regression), teachers: [folders], settings, head}},
            student: {layers, width, heads, inner, start (see models/distill/_student.py)} or {recipe, size,
            overrides}, or none for the whole of `source`; alpha (None: 1, or .75 beyond two orders of magnitude between
            the sizes), length, training (see tasks/engine.py, with `epochs`, 5), finetune: {task: training} or [task]}.
        source: the pre-trained folder.
        data: has each task's `data`, an ingested folder.
        teachers: has each of its `teachers`.
        out: takes tasks/<task>/ {model/, recipe.json, run.json, metrics.json}, metrics.json, run.json, curve.csv and
            extra/curve.png.
        checkpoints: of the run, and the teachers' answers; emptied when it is done. None keeps none.

    Returns:
        The metrics; {} if SIGTERM ended the run early.

    Raises:
        SettingsError, Rejected, ValueError, LookupError: what cannot work, before any training.
    """
    began = time.monotonic()
    chosen = _checked(name, chosen)
    start = load_start(source)
    kept = checkpoints and Path(checkpoints)
    length = chosen.get("length", LENGTH)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError("a step trains the head of one task, which several ranks cannot do yet; start one process")
    with slot() as device:
        ones = [
            read_one(task, told, length, start, Path(data), Path(teachers), kept and kept / "told", device)
            for task, told in chosen["tasks"].items()
        ]
        settings = _training(chosen.get("training") or {}, ones)
        torch.manual_seed(settings.seed)
        body, recipe = _body(chosen.get("student"), start)
        _refuse_longer(recipe, length)
        learner = _learner(body, recipe, ones, _method(chosen["method"], ones, recipe["width"])).to(device)
        sizes = {one.name: len(one.examples["train"]) for one in ones}
        alpha = alpha_for(sizes) if chosen.get("alpha") is None else chosen["alpha"]
        sampler = TaskSampler(sizes, alpha, settings.seed)
        done = _train(name, learner, ones, sampler, settings, kept, device, recipe)
        if done.stopped:
            return {}
        runs, models, after = {"joint": done}, {}, _afterwards(chosen, learner.method)
        for one in ones:
            if one.name in after:
                alone = _copied(learner, one)
                tuning = _training(_over(chosen.get("training") or {}, after[one.name]), [one])
                only = TaskSampler({one.name: sizes[one.name]}, 1.0, settings.seed)
                runs[one.name] = _train(f"{name} {one.name}", alone, [one], only, tuning, kept, device, recipe)
                if runs[one.name].stopped:
                    return {}
                models[one.name] = alone.cpu().eval()
        learner.cpu().eval()
    found = Macro(ones, settings, "cpu")
    family = start.family if "recipe" not in (chosen.get("student") or {}) else None
    metrics: dict = {"dev": {}, "joint": {}, "single": {}, "export": {}}
    with new_folder(out) as folder:
        (folder / "extra").mkdir()
        for one in ones:
            judged = found.each[one.name]
            own = models.get(one.name, learner)
            metrics["joint"][one.name] = judged.answers(learner.one(one.name, one.target))[0]
            metrics["dev"][one.name] = judged.answers(own.one(one.name, one.target))[0]
            metrics["single"][one.name] = [single(one, teacher, settings) for teacher in one.teachers]
            metrics["export"][one.name] = export(
                own, one, recipe, start, family, folder / "tasks" / one.name, metrics, settings
            )
        metrics |= _summary(ones, metrics)
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "run.json", {
            "name": name,
            "method": chosen["method"],
            "from": str(chosen.get("from", source)),
            "tasks": {one.name: {"kind": one.settings["kind"], "rows": sizes[one.name], "labels": one.kind.names(),
                                 "teachers": {str(teacher.folder): teacher.identity for teacher in one.teachers}}
                      for one in ones},
            "alpha": alpha,
            "mix": sampler.mix(done.step),
            "parameters": sum(p.numel() for p in learner.body.parameters()),
            "steps": {stage: each.step for stage, each in runs.items()},
            "best_step": {stage: each.best_step for stage, each in runs.items()},
            "tokens": sum(each.tokens for each in runs.values()),
            "seconds": sum(each.seconds for each in runs.values()),
            "wall_seconds": time.monotonic() - began,
            "seed": settings.seed,
            "training": settings.decisive,
            "tokenizer": start.vocabulary.sha256,
        })  # fmt: skip
        curve = on_end({stage: each.curve for stage, each in runs.items()})
        write_curve(folder, curve, "heldout_macro", picture="extra/curve.png")
        for one in ones:
            shutil.copy(folder / "curve.csv", folder / "tasks" / one.name)
    if kept:
        shutil.rmtree(kept, ignore_errors=True)
    shown = ", ".join(f"{one.name} {metrics['dev'][one.name][one.kind.metric]:.4f}" for one in ones)
    print(f"{name}: macro {metrics['macro']:.4f} ({shown}); mix {sampler.mix(done.step)}; {done.seconds:.1f} s")
    return metrics


# ---------------------------------------------------------------- parts of a run


def _body(student: Mapping | None, start: Start) -> tuple[Model, dict]:
    """The shared encoder and its recipe; its target is left behind."""
    student = dict(student or {})
    if "recipe" in student:
        if mixed := sorted(set(student) - {"recipe", "size", "overrides"}):
            raise SettingsError(f"a student of a recipe has no {', '.join(mixed)}; it has recipe, size and overrides")
        size, changes = student.get("size"), student.get("overrides")
        recipe = read_recipe(student["recipe"], size, changes, start.vocabulary.size).model
        if "decoder" in recipe or "dual" in recipe["encoder"]:
            raise SettingsError(f"recipe {student['recipe']} is no single encoder; a shared student is one")
        recipe = retarget(recipe, "cls", _pooling(recipe))
        return assemble(recipe), recipe
    begins = student.pop("start", "cut")
    recipe = student_recipe(start.recipe, **student) if student else start.recipe
    return new_student(recipe, begins, start.state), recipe


def _refuse_longer(recipe: Mapping, length: int) -> None:
    position = recipe["embedding"].get("position") or {}
    room = position.get("length", length) - (position.get("start") or 0) if position else length
    if length > room:
        raise SettingsError(f"length is {length}, but the student has positions for {room} tokens; lower it")


def _learner(body: Model, recipe: Mapping, ones: Sequence[One], way: TaskMethod) -> Learner:
    """A learner with new heads. A pooled head's tanh layer is taken from sentence prediction, which trained it."""
    facts = {key: recipe[key] for key in ("dropout",) if key in recipe}
    pool = {name.removeprefix("targets.sp."): value for name, value in body.state_dict().items() if ".sp.pool" in name}
    heads = {}
    for one in ones:
        told = facts | _pooling(recipe) | one.head
        head = heads[one.name] = new_head(one.target, recipe["width"], told, recipe.get("std", 0.02))
        if head.pool is not None:
            head.load_state_dict(pool, strict=False)
        one.head.update(told)
    return Learner(body, heads, way)


def _copied(learner: Learner, one: One) -> Learner:
    """A task by itself, on gold labels, from what all tasks have learned."""
    way = build("distill.tasks", PLAIN, [one.known(taught=False)])
    return Learner(deepcopy(learner.body), {one.name: deepcopy(learner.heads[one.name])}, way)


def _pooling(recipe: Mapping) -> dict:
    """A recurrent or convolutional student has no first token that reads the others: the mean of all (ours)."""
    return {} if "transformer" in recipe["encoder"] else {"pool": "mean", "transform": False}


def _method(chosen: Mapping, ones: Sequence[One], width: int) -> TaskMethod:
    ((name, settings),) = chosen.items()
    known = [one.known() for one in ones]
    facts = {"width": width} if "width" in signature(method("distill.tasks", name)).parameters else {}
    return build("distill.tasks", name, known, **facts, **(settings or {}))


def _afterwards(chosen: Mapping, way: TaskMethod) -> dict[str, dict]:
    """Tasks that are fine-tuned alone after the joint run, with their training."""
    told = chosen.get("finetune") or {}
    told = dict(told) if isinstance(told, Mapping) else dict.fromkeys(told, {})
    ends = dict.fromkeys(getattr(way, "ends", ()), {})
    for name in (both := ends | told):
        refuse_unknown("finetune", name, list(chosen["tasks"]))
    return {name: dict(training or {}) for name, training in both.items()}


def _train(
    name: str,
    learner: Learner,
    ones: Sequence[One],
    sampler: TaskSampler,
    settings: Engine,
    kept: Path | None,
    device: str,
    recipe: Mapping,
) -> Run:
    way = learner.method
    way.set_total(settings.steps)
    needs = way.needs if any(task.teachers for task in way.tasks.values()) else ()
    source = TaskRows(ones, needs, sampler, settings.batch, settings.seed)
    folder = kept and kept / hash_of([name, source.fingerprint, settings.decisive, dict(recipe), _told(way)])[:16]
    return run(learner, source, settings, Macro(ones, settings, device), folder, name, device)


def _told(way: TaskMethod) -> list:
    """A method by its name, tasks and settings, so that another one starts anew."""
    return [type(way).__name__, {key: value for key, value in vars(way).items() if key[0] != "_" and key != "training"}]


def _summary(ones: Sequence[One], metrics: Mapping) -> dict:
    """The macro mean, and how far the worst task is below its best teacher; None where no task has one."""
    own = {one.name: metrics["dev"][one.name][one.kind.metric] for one in ones}
    behind = {name: max(scores) - own[name] for name, scores in metrics["single"].items() if scores}
    worst = max(behind, key=behind.get) if behind else None
    return {"macro": sum(own.values()) / len(own), "behind": behind[worst] if worst else None, "worst": worst}


# ---------------------------------------------------------------- settings


def _checked(name: str, chosen: Mapping) -> dict:
    for key in chosen:
        refuse_unknown(f"distill.tasks.{name}", key, KEYS)
    if isinstance(chosen.get("method"), str):
        chosen = {**chosen, "method": {chosen["method"]: {}}}
    if not isinstance(chosen.get("method"), Mapping) or len(chosen["method"]) != 1:
        raise SettingsError(f"distill.tasks.{name}: method is one name of models/distill/tasks with its settings; got "
                            f"{chosen.get('method')!r}")  # fmt: skip
    method("distill.tasks", *chosen["method"])
    for key in chosen.get("student") or {}:
        refuse_unknown(f"distill.tasks.{name}.student", key, STUDENT)
    if not chosen.get("tasks"):
        raise SettingsError(f"distill.tasks.{name} has no tasks; name at least one, with its data and kind")
    for task, told in chosen["tasks"].items():
        for key in told:
            refuse_unknown(f"distill.tasks.{name}.tasks.{task}", key, OF_TASK)
        if told.get("kind") not in KINDS or "data" not in told:
            raise SettingsError(f"distill.tasks.{name}.tasks.{task} needs data, and a kind of {', '.join(KINDS)}; got "
                                f"{dict(told)!r}")  # fmt: skip
        if "." in task or "/" in task:
            raise SettingsError(f"a task's name has neither dot nor slash: it names weights and a folder; got {task!r}")
    return dict(chosen)


def _training(chosen: Mapping, ones: Sequence[One]) -> Engine:
    """Epochs are those of all rows together, whatever the mix; each is evaluated, and the best weights are kept."""
    return training_of(chosen, sum(len(one.examples["train"]) for one in ones), EPOCHS)


def _over(training: Mapping, own: Mapping) -> dict:
    """Training settings with a stage's own; its length takes the place of the other's, however either is told."""
    kept = {key: value for key, value in training.items() if not (key in LENGTHS and LENGTHS & set(own))}
    return {**kept, **own}


def main(address: str, name: str, source: str, data: str, teachers: str, out: str, checkpoints: str) -> None:
    """python -m tasks.distill_tasks params.yaml:distill.tasks NAME START DATA TEACHERS OUT CHECKPOINTS"""
    use_threads()
    if not distill_tasks(name, read(f"{address}.{name}"), source, data, teachers, out, checkpoints):
        sys.exit(os.EX_TEMPFAIL)  # stopped early: the flows try again, and it continues


if __name__ == "__main__":
    run_command(main)
