"""A teacher or several, a method or a mix, and data -> a smaller student, what it keeps of the teacher, and its speed.

    python -m tasks.distill params.yaml:distill methods kd TEACHER DATA OUT CHECKPOINTS CACHE
    python -m tasks.distill params.yaml:distill specific shop TEACHER DATA OUT CHECKPOINTS CACHE START

TEACHER is a folder of tasks/finetune.py, tasks/pretrain.py or this unit; for an entry below `several`, the folder of
notes of tasks/lent.py. DATA is an ingested set of labelled rows under a fine-tuned teacher, or tokens under a
pre-trained one. START, of an entry below `specific`, is the folder of a trained model that goes on as the student, with
a new head. The stages of an entry (tasks/curriculum.py) run one after the other, each from the student of the one
before; what only looks inside ends with gold labels, or its head would never be trained.
"""

import hashlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from models import parallel
from models.components._model import Model, assemble
from models.distill._exact import Combined, Exact
from models.distill._inheriting import Inheriting
from models.distill._student import new_student
from models.distill._writing import Writing
from tasks.command import run as run_command
from tasks.curriculum import GOLD, PARTS, Stage, read_entry
from tasks.curve import on_end, write_curve
from tasks.engine import Engine, Run, launched, run
from tasks.fewer_words import cut_rows
from tasks.files import new_folder, write_json
from tasks.finetune import begin
from tasks.lesson_plan import PLACED, Plan, placement_of, planned, precision_of, settings_of
from tasks.lessons import Stepped
from tasks.placement import place, rounding
from tasks.settings import SettingsError, read
from tasks.slots import slot
from tasks.stand_in import StandIn, cache_settings, stand_in, tell
from tasks.teachers import Teacher, TeacherChanged, noted, refuse_changed, told
from tasks.tokenizer import Vocabulary
from tasks.training import use_threads

__all__ = ["GOLD", "PARTS", "Stepped", "TeacherChanged", "distill", "planned"]

TIMED = 15


def distill(
    chosen: Mapping,
    part: str,
    name: str,
    teacher: str | Path | Sequence[str | Path],
    data: str | Path,
    out: str | Path,
    checkpoints: str | Path | None,
    cache: str | Path | None = None,
    start: str | Path | None = None,
) -> dict:
    """Distil, and write the folder `out` whole or not at all.

    Args:
        chosen: {student: {layers, width, heads, inner, start (see models/distill/_student.py)}, training, length,
            precision (of the teacher, float32 or bfloat16), placement (of the teacher, see tasks/placement.py), cache
            ({words, store}, or None for a live teacher), and PARTS}; see tasks/curriculum.py. An entry may have
            `training`, `student`, `placement` and `cache` of its own, `stages` (a list, or {stage: training}), `hard`
            (weight of the gold labels), on text `vocabulary` ({ratio, multiple, similarity}: the student knows fewer
            words), and where models write texts `prompt` (tokens of each row that are given, a quarter of it).
        part: one of PARTS.
        name: of the entry.
        teacher: folder of tasks/finetune.py, tasks/pretrain.py or this unit; several from the smallest to the largest.
        data: folder of tasks/ingest.py or tasks/tokens.py.
        out: takes model/, recipe.json, run.json, metrics.json {"dev", "teacher", "kept", "latency_ms", "export"},
            curve.csv, and extra/: curve.png, and of a task predictions.parquet.
        checkpoints: of the run, emptied when it is done; None keeps none.
        cache: where `chosen["cache"]` says that one is kept: folder of what the teacher said. It stays, for the next
            run.
        start: of an entry below `specific`: folder of the model that the student is before its first step, but for its
            head.

    Returns:
        The metrics; {} if SIGTERM ended the run early, and on all ranks but the first.

    Raises:
        SettingsError, LookupError, ValueError: what cannot work, before any training.
        TeacherChanged: during the run, or since the checkpoint.
    """
    began, plan = time.monotonic(), planned(chosen, part, name, teacher, Path(data), start)
    rows, teachers, precision, where = plan.rows, plan.teachers, precision_of(chosen, plan), placement_of(chosen, plan)
    if (keeps := cache_settings(chosen, plan.entry)) is not None and cache is None:
        raise SettingsError("distill.cache is set, but no folder was given to keep it in; give CACHE")
    torch.manual_seed(plan.stages[0].training.get("seed", Engine.seed))
    student = _first_student(plan)
    known = [part, name, chosen[part][name], plan.entry.own["student"], str(precision), rows.fingerprint]
    known += [where, keeps] if keeps is not None or where != PLACED else []
    known += [plan.begun.content] if plan.begun else []
    kept = _checkpoints(checkpoints, known, teachers)
    runs: dict[str, Run] = {}
    recipe = plan.recipe
    with launched() as own, nullcontext(own) if own else slot() as device:
        taught = [rows.metrics(each.model(), settings_of(plan, plan.stages[-1]))[0] for each in teachers]
        models = [place(each.model(), where, device, precision) for each in teachers]
        stand_ins = {}
        if keeps is not None:
            facts = {"teacher": plan.origin.content, "tokenizer": plan.origin.start.vocabulary.sha256,
                     "precision": str(precision), "rounding": rounding(where)}  # fmt: skip
            stand_ins = {
                stage.name: stand_in(
                    Path(cache) / stage.name, models[-1], rows, stage, settings_of(plan, stage), facts, keeps, device
                )
                for stage in plan.stages
                if not stage.only_gold
            }
            models = []  # and their memory is the student's
        for number, stage in enumerate(plan.stages):
            settings = settings_of(plan, stage)
            instead = stand_ins.get(stage.name)
            source = Stepped(instead.source if instead else rows.source(settings), settings.batch)
            model = _begin(plan, student, models, stage, settings, source, device, instead)
            folder = kept and kept / f"{number}-{stage.name}"
            judge = rows.judge(settings, device, instead and instead.heldout)
            done = run(model, source, settings, judge, folder, f"{name} {stage.name}", device)
            if done.stopped:
                return {}
            runs[stage.name] = done
            if isinstance(model, Inheriting):
                student, recipe = model.finish(recipe)
        if parallel.rank():
            return {}
        student.cpu().eval()
    for each in plan.sources:
        if each.changed():
            raise TeacherChanged(f"{each.folder} was written while its student was being trained; run this again")
    return _write(plan, student, recipe, taught, runs, settings, Path(out), checkpoints, began, chosen)


@torch.no_grad()
def latency(models: Mapping[str, tuple[Model, Mapping[str, Tensor]]]) -> dict[str, float]:
    """Milliseconds that each model takes for its batch of one row on the CPU: the median of passes in turns."""
    spent: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(TIMED):
        for name, (model, batch) in models.items():
            at = time.perf_counter()
            hidden, rows = model.encode(**batch)
            if "cls" in model.targets:
                model.targets["cls"].predict(hidden, rows)
            spent[name].append(1000 * (time.perf_counter() - at))
    return {name: statistics.median(times[2:]) for name, times in spent.items()}


# ---------------------------------------------------------------- what is trained


def _first_student(plan: Plan) -> Model | None:
    """The student before its first step; None where it is made of the teacher."""
    if plan.entry.inherits:
        return None
    if plan.begun:
        head = f"targets.{plan.rows.kind.target}."  # a student of another task has one, which says other classes
        state = {name: value for name, value in plan.begun.start.state.items() if not name.startswith(head)}
        return begin(plan.recipe, state, plan.rows.kind.target)
    state = plan.origin.start.state
    return new_student(plan.recipe, plan.begins, state if plan.words is None else cut_rows(state, plan.words))


def _begin(
    plan: Plan,
    student: Model | None,
    teachers: Sequence[Model],
    stage: Stage,
    settings: Engine,
    source: Stepped,
    device: str,
    instead: StandIn | None,
) -> nn.Module:
    """A stage's model, told of its run, and asked once: what cannot be seen should cost no training."""
    _refuse_cuts(stage, settings)
    if plan.entry.inherits:
        masked = _masked(plan)
        method = stage.objective.methods[plan.entry.single]
        return Inheriting(masked, method, settings.steps).to(device)
    if stage.only_gold:
        model = Exact(student, None, stage.objective, vocabulary=plan.words)
    elif plan.entry.by:
        model = Combined(student, teachers, stage.objective)
    elif plan.entry.writes:
        model = _writing(plan, student, teachers[-1], stage)
    elif instead:
        model = Exact(student, None, stage.objective, instead.kept, plan.words)
    else:
        model = Exact(student, teachers[-1], stage.objective, vocabulary=plan.words)
    model.to(device)
    tell(stage, settings, len(source))
    batch = source.rows(range(min(2, len(source))))
    # What a step leaves for the next one, choices or texts, is left by steps of the run alone.
    model.train(type(model) is Exact)(**{name: value.to(device) for name, value in batch.items()})
    return model


def _writing(plan: Plan, student: Model, teacher: Model, stage: Stage) -> Writing:
    known, name = plan.origin.start.vocabulary, plan.entry.single
    length = plan.rows.length
    prompt = plan.entry.own.get("prompt", max(1, length // 4))
    if known.end is None:
        raise SettingsError(f"{name} writes texts up to their end, but this tokenizer has no token for it")
    position = plan.origin.start.recipe["embedding"].get("position") or {}
    new = stage.objective.methods[name].how.new_tokens
    if "length" in position and prompt + new > (most := position["length"] - (position.get("start") or 0)):
        raise SettingsError(f"{name} writes {new} tokens after a prompt of {prompt}, but the models have positions for "
                            f"{most}; set new_tokens to {most - prompt} at most, or a shorter prompt")  # fmt: skip
    return Writing(student, teacher, stage.objective, known.end, known.filler, prompt)


def _masked(plan: Plan) -> Model:
    """The teacher with its masked-word head alone."""
    model = assemble(plan.recipe)
    model.load_state_dict({name: plan.origin.start.state[name] for name in model.state_dict()})
    return model


def _refuse_cuts(stage: Stage, settings: Engine) -> None:
    """What compares rows of a batch would compare others in a micro-batch."""
    ranks, names = parallel.world(), ", ".join(stage.objective.methods)
    if not getattr(stage.objective, "uncut", False):
        return
    if ranks > 1 or (settings.micro or settings.batch) < settings.batch:
        cut = f"{ranks} ranks" if ranks > 1 else f"micro-batches of {settings.micro} of {settings.batch} rows"
        raise SettingsError(f"{stage.name}: {names} looks at a step's rows together, so {cut} would be another method; "
                            f"leave out micro and train on one device, or take another method")  # fmt: skip


def _checkpoints(folder: str | Path | None, known: Sequence, teachers: Sequence[Teacher]) -> Path | None:
    """This run's checkpoints; they are of its teachers."""
    if folder is None:
        return None
    kept = Path(folder) / hashlib.sha256(repr(known).encode()).hexdigest()[:16]
    refuse_changed(kept, teachers)
    return kept


# ---------------------------------------------------------------- what is written


def _write(
    plan: Plan,
    student: Model,
    recipe: Mapping,
    taught: Sequence[dict],
    runs: Mapping[str, Run],
    settings: Engine,
    out: Path,
    checkpoints: str | Path | None,
    began: float,
    chosen: Mapping,
) -> dict:
    """The folder `out`, and the metrics."""
    rows, words, name = plan.rows, plan.words, plan.entry.name
    found, answers = rows.metrics(student, settings, words)
    whole = plan.origin.model()
    times = latency({"student": (student, rows.one(words)), "teacher": (whole, rows.one())})
    numbers = [sum(p.numel() for p in one.parameters()) for one in (student, whole)]
    shares = [share for each in taught if (share := rows.kept(found, each)) is not None]
    with new_folder(out) as folder:
        (folder / "extra").mkdir()
        saved = rows.save(student, recipe, folder / "model", words)
        metrics = {"dev": found, "teacher": taught[-1], "kept": min(shares, default=None), "latency_ms": times}
        metrics |= {"export": saved} | ({"teachers": list(taught)} if len(taught) > 1 else {})
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "recipe.json", rows.recipe(recipe))
        write_json(folder / "run.json", rows.about(settings) | told(plan.teachers, plan.begun) | {
            "name": name,
            "part": plan.entry.part,
            "family": rows.start.family,
            "stages": [stage.name for stage in plan.stages],
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
            "placement": placement_of(chosen, plan),
            "cache": cache_settings(chosen, plan.entry),
            "tokenizer": Vocabulary.open(folder / "model").sha256,
            "words": None if words is None else words.merged() | {"kept": len(words.keep)},
        })  # fmt: skip
        if answers is not None:
            answers.write_parquet(folder / "extra/predictions.parquet")
        curve = on_end({stage: each.curve for stage, each in runs.items()})
        write_curve(folder, curve, picture="extra/curve.png")
    if checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)
    share = "unknown" if metrics["kept"] is None else f"{metrics['kept']:.3f}"
    shown = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
    print(f"{name}: {numbers[0]:,} of {numbers[1]:,} parameters, kept {share} of the teacher, "
          f"{times['student']:.2f} ms instead of {times['teacher']:.2f}; {shown}")  # fmt: skip
    return metrics


def main(
    address: str, part: str, name: str, teacher: str, data: str, out: str, checkpoints: str, cache: str,
    start: str | None = None,
) -> None:  # fmt: skip
    """python -m tasks.distill params.yaml:distill PART NAME TEACHER DATA OUT CHECKPOINTS CACHE [START]"""
    use_threads()
    chosen = read(address)
    entry = read_entry(chosen, part, name)
    by = noted(teacher, entry.own["teachers"]) if part == "several" else teacher
    if not distill(chosen, part, name, by, data, out, checkpoints, cache, start) and not parallel.rank():
        sys.exit(os.EX_TEMPFAIL)  # stopped early: the flows try again, and it continues


if __name__ == "__main__":
    run_command(main)
