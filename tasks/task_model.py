"""One task of a student of several, as a model of its own: written, and held against its teachers."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.components._model import assemble
from models.distill.tasks._learner import Learner
from tasks.distill import latency
from tasks.engine import Engine
from tasks.files import digest, write_json
from tasks.finetune import Evaluation, Start, kind_of, retarget, save_model
from tasks.task_rows import One
from tasks.teachers import files_of
from tasks.teaching import Teacher

__all__ = ["export", "single"]


def export(
    learner: Learner,
    one: One,
    recipe: Mapping,
    start: Start,
    family: str | None,
    folder: Path,
    metrics: Mapping,
    settings: Engine,
) -> dict:
    """tasks/<name>: a model of this task alone, as tasks/finetune.py would have written it, and what a gate asks.

    Args:
        learner: of all tasks, or of this one alone.
        recipe: of the shared body.
        start: of the tokenizer.
        family: of transformers' models; None where it has no such model.
        folder: takes model/, recipe.json, run.json and metrics.json {"dev", "export", "kept": share of the best
            teacher's metric, "latency_ms"}.
        metrics: of the run so far, "dev" and "single" by task.

    Returns:
        How the saved model compares with this one, see tasks/finetune.py, `save_model`.
    """
    told = retarget(recipe, one.target, one.head)
    model = assemble(told)
    model.load_state_dict(learner.state(one.name, one.target))
    begun = Start(told, {}, family, start.tokenizer, start.vocabulary, start.config, start.digest)
    saved, _ = save_model(model.eval(), told, begun, one.kind, one.examples["dev"], folder / "model")
    write_json(folder / "recipe.json", {"model": told, "transformers": family})
    found, numbers = metrics["dev"][one.name], sum(p.numel() for p in model.parameters())
    best = _best(one, metrics["single"][one.name])
    told = {"kept": None, "latency_ms": latency({"student": (model, one.kind.collate(one.examples["dev"][:1]))})}
    beside: dict = {}
    if best is not None:
        teacher, score = best
        told["kept"] = found[one.kind.metric] / score if score > 0 else None
        size = sum(tensor.numel() for tensor in teacher.start.state.values())
        beside = {"teacher": str(teacher.folder), "teacher_content": digest(files_of(teacher.folder)),
                  "teacher_parameters": size, "ratio": numbers / size}  # fmt: skip
    write_json(folder / "metrics.json", {"dev": dict(found), "export": saved} | told)
    write_json(folder / "run.json", {
        "name": one.name,
        "kind": one.settings["kind"],
        "family": family,
        "labels": one.kind.names(),
        "parameters": numbers,
        "evaluated_rows": len(one.rows["dev"]),
        "fingerprint": hashlib.sha256(one.rows["dev"].write_ndjson().encode()).hexdigest(),
        "trained_on": one.fingerprint,
        "training": settings.decisive,
        "tokenizer": start.vocabulary.sha256,
    } | beside)  # fmt: skip
    return saved


def _best(one: One, scores: Sequence[float]) -> tuple[Teacher, float] | None:
    """The best teacher of a task; None without one."""
    return max(zip(one.teachers, scores, strict=True), key=lambda pair: pair[1], default=None)


def single(one: One, teacher: Teacher, settings: Engine) -> float:
    """The metric of a teacher on the dev rows: what the student must not fall far below."""
    model = assemble(teacher.start.recipe)
    model.load_state_dict(teacher.start.state)
    told = one.settings | {"length": teacher.length}
    kind = kind_of(told, teacher.start, one.rows)
    examples = kind.encode(one.rows["dev"], "dev")
    return Evaluation(kind, one.rows["dev"], examples, settings, "cpu").answers(model.eval())[0][kind.metric]
