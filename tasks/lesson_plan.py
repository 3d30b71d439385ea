"""All that is known of a student before anything is trained: teachers, rows, shape and stages; and what cannot be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.distill._student import shape_of, student_recipe
from models.distill._vocabulary import Vocabulary as Words
from tasks.curriculum import Entry, Stage, read_entry, stages_of
from tasks.engine import Engine
from tasks.finetune import retarget
from tasks.lessons import OnTask, OnText, open_lessons
from tasks.placement import HOW
from tasks.settings import SettingsError
from tasks.stand_in import cache_settings, refuse_live
from tasks.teachers import Teacher, larger_ones, load_begun, load_teachers

__all__ = ["PLACED", "Plan", "placement_of", "planned", "precision_of", "settings_of"]

PLACED = "device"
Lessons = OnTask | OnText


@dataclass(frozen=True)
class Plan:
    """All that is known of a student before anything is trained."""

    entry: Entry
    teachers: list[Teacher]
    rows: Lessons
    recipe: dict  # of the student; where it inherits, of the teacher that is narrowed
    begins: str | list[int]  # how the student is drawn from the teacher
    begun: Teacher | None  # the trained model that it is instead, before its first step
    words: Words | None  # that the student keeps; None for all
    stages: list[Stage]

    @property
    def origin(self) -> Teacher:
        """The teacher from whose recipe the student is drawn: the last, which is the largest."""
        return self.teachers[-1]

    @property
    def sources(self) -> list[Teacher]:
        """All models whose files must stay as they are while the student is trained."""
        return [*self.teachers, *([self.begun] if self.begun else [])]


def planned(
    chosen: Mapping,
    part: str,
    name: str,
    teacher: str | Path | Sequence[str | Path],
    data: str | Path,
    start: str | Path | None = None,
) -> Plan:
    """What `distill` would run, without a run; refuses what it would refuse before training."""
    entry = read_entry(chosen, part, name)
    folders = [teacher] if isinstance(teacher, str | Path) else list(teacher)
    if entry.started != (start is not None):
        said = "begins from a trained model; give START" if entry.started else "draws its student; take out START"
        raise SettingsError(f"distill.{part}.{name} {said}, the folder of what entries of distill.specific begin from")
    if entry.by and part != "several":
        folders = [above for folder in folders for above in larger_ones(folder)]
    teachers = load_teachers(folders)
    begun = None if start is None else load_begun(start, teachers)
    rows = open_lessons(teachers, Path(data), chosen, begun)
    sizes = dict(entry.own["student"])
    begins, words = sizes.pop("start", "cut"), rows.words(entry.own.get("vocabulary"))
    wide = _masked_only(teachers[-1]) if entry.inherits and not rows.on_task else teachers[-1].start.recipe
    recipe = student_recipe(wide, **sizes) if begun is None else _with_head(begun, rows.kind.target, wide)
    if words is not None:
        recipe["vocabulary"] = len(words.keep)
    taught = [shape_of(each.start.recipe) for each in teachers[:-1]] + [shape_of(wide)]
    if entry.inherits:
        entry.methods[entry.single].setdefault("inner", _inner(wide))
    keep = None if words is None else words.keep.tolist()
    training = dict(chosen.get("training") or {})
    stages = stages_of(entry, shape_of(recipe), taught, rows.on_task, training, keep)
    recipe = dict(wide) if entry.inherits else recipe
    plan = Plan(entry, teachers, rows, recipe, begins, begun, words, stages)
    if (how := cache_settings(chosen, entry)) is not None:
        asked = [(stage, settings_of(plan, stage)) for stage in stages]
        refuse_live(entry, asked, teachers[-1], rows, recipe, words, how)
    return plan


def precision_of(chosen: Mapping, plan: Plan) -> torch.dtype:
    """Of the teacher's weights."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if (asked := chosen.get("precision", "float32")) not in known:
        raise SettingsError(f"distill.precision, the teacher's, is one of {', '.join(known)}; got {asked!r}")
    for stage in plan.stages:
        lends = any(place.startswith("student.layer") for place in stage.objective.edits())
        if lends and asked != "float32":
            raise SettingsError(f"{stage.name} runs the teacher's layers inside the student; set precision: float32")
    return known[asked]


def placement_of(chosen: Mapping, plan: Plan) -> str:
    """A word of tasks/placement.py."""
    if (asked := plan.entry.own.get("placement", chosen.get("placement", PLACED))) not in HOW:
        raise SettingsError(f"distill.placement, the teacher's, is one of {', '.join(HOW)}; got {asked!r}")
    for stage in plan.stages:
        lends = any(place.startswith("student.layer") for place in stage.objective.edits())
        if lends and asked != PLACED:
            raise SettingsError(f"{stage.name} runs the teacher's layers inside the student; set placement: {PLACED}")
    return asked


def settings_of(plan: Plan, stage: Stage) -> Engine:
    """Of a stage's run."""
    settings = plan.rows.training(stage.training, stage.trains_head)
    if settings.activations != "none" or settings.compile:
        raise SettingsError("distillation reads layers as they run; set activations: none and compile: false")
    if plan.entry.inherits and settings.patience:
        raise SettingsError(f"{stage.name} ends with the student's width, not with the best loss; take out patience")
    return settings


def _masked_only(teacher: Teacher) -> dict:
    """A teacher's recipe with its masked-word head alone.

    Raises:
        LookupError: it has none.
    """
    if "mlm" not in (targets := teacher.start.recipe["target"]):
        raise LookupError(f"wid narrows a masked language model, but {teacher.folder} only has {', '.join(targets)}")
    return {**teacher.start.recipe, "target": {"mlm": targets["mlm"]}}


def _with_head(begun: Teacher, target: str, teacher: Mapping) -> dict:
    """The recipe of a trained model with a head like its teacher's."""
    return retarget(begun.start.recipe, target, teacher["target"][target])


def _inner(recipe: Mapping) -> int:
    return recipe["encoder"]["transformer"].get("inner", 4 * recipe["width"])
