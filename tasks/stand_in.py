"""What stands in for a live teacher while a student is trained: for each stage, what it said, read from a disk.

A cache is made by the first run that needs it and serves the next ones; it may be deleted at any time. One that was
made of other files, rows or settings is named, deleted and made anew; one that is truncated is refused.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.components._closest import refuse_unknown
from models.components._model import assemble
from models.distill._exact import Exact
from models.distill._kept import Kept
from models.distill._signals import Method
from models.distill._vocabulary import Vocabulary as Words
from tasks.ask_teacher import InOrder, fill, taught_by
from tasks.curriculum import Entry, Stage
from tasks.engine import Engine
from tasks.lessons import OnTask, OnText
from tasks.settings import SettingsError
from tasks.teacher_cache import Taught
from tasks.teachers import Teacher

__all__ = ["StandIn", "cache_settings", "refuse_live", "stand_in", "tell"]

CACHE = ("words", "store")  # settings of models/distill/_kept.py


@dataclass(frozen=True)
class StandIn:
    """What a stage takes in place of its teacher."""

    kept: Kept
    source: Taught  # its training rows, with what the teacher said of them
    heldout: Taught | None  # the same of held-out rows; None where the task judges the student alone


def cache_settings(chosen: Mapping, entry: Entry) -> dict | None:
    """The entry's own `cache`, or else that of all; None for a live teacher.

    Raises:
        SettingsError, LookupError: it is no mapping, or has a key that is unknown.
    """
    if (asked := entry.own.get("cache", chosen.get("cache"))) is None:
        return None
    if not isinstance(asked, Mapping):
        raise SettingsError(
            f"distill.cache is {{words: 64, store: float16}}, or null for a live teacher; got {asked!r}"
        )
    for key in asked:
        refuse_unknown("distill.cache", key, CACHE)
    return dict(asked)


def refuse_live(
    entry: Entry,
    stages: Sequence[tuple[Stage, Engine]],
    teacher: Teacher,
    rows: OnTask | OnText,
    recipe: Mapping,
    words: Words | None,
    how: Mapping,
) -> None:
    """Raise LookupError for what needs its teacher to run, before anything is trained; it names the method.

    Args:
        recipe: of the student.
        words: that the student keeps.
        how: of `cache_settings`.
    """
    at = f"distill.{entry.part}.{entry.name}"
    if entry.by:
        raise LookupError(f"{at}: {entry.by[0]} combines teachers, of which it asks what depends on the student; "
                          f"only what one teacher says is kept. Use live teachers: cache: null")  # fmt: skip
    if entry.writes or entry.inherits:
        does = "asks its teacher about texts that the models write" if entry.writes else "rebuilds its teacher"
        raise LookupError(f"{at}: {entry.single} {does}, so nothing can be kept beforehand; use a live teacher: "
                          f"cache: null")  # fmt: skip
    with torch.device("meta"):
        model, student = assemble(teacher.start.recipe), assemble(recipe)
    for stage, settings in stages:
        if not stage.only_gold:
            tell(stage, settings, len(rows.source(settings)))
            Exact(student, None, stage.objective, Kept.of_run(stage.objective, settings.steps + 1, model, **how), words)


def stand_in(
    folder: Path,
    teacher: nn.Module,
    rows: OnTask | OnText,
    stage: Stage,
    settings: Engine,
    facts: Mapping[str, str],
    how: Mapping,
    device: str,
) -> StandIn:
    """Ask the teacher what a stage will ask it, where that is not yet on disk.

    Args:
        folder: of the stage's cache.
        teacher: as it teaches.
        facts: that the cache is bound to, see tasks/ask_teacher.py, `fill`.
        how: of `cache_settings`.
    """
    source = rows.source(settings)
    tell(stage, settings, len(source))
    order = InOrder(rows.kind, rows.examples["train"], rows.fingerprint) if rows.on_task else None
    kept, taught = taught_by(
        folder / "train", teacher, stage.objective, source, settings, facts, order, device, anew=True, **how
    )
    if rows.on_task:
        return StandIn(kept, taught, None)
    count = min(len(rows.heldout), settings.evaluate_rows)
    said = fill(folder / "heldout", teacher, rows.heldout, kept, facts, count, True, device=device, anew=True)
    return StandIn(kept, taught, Taught(rows.heldout, said))


def tell(stage: Stage, settings: Engine, rows: int) -> None:
    """An objective learns of its run before its first step: what it asks for may depend on it.

    Args:
        rows: of an epoch.
    """
    stage.objective.set_total(settings.steps, math.ceil(settings.steps * settings.batch / rows))
    for each in stage.objective.modules():
        if isinstance(each, Method):
            each.seed.fill_(settings.seed)
