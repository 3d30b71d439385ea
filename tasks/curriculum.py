"""What an entry below `distill` says: methods or a mix, perhaps a way of combining teachers, and the stages that run.

    methods   kd: {temperature: 4}                                     one method under the teacher of all
    mixes     tiny: {tinybert: {stage: inner}, kd: {weight: 0.5}}      several at once, weighted
    chains    third: {teacher: {from: chain, name: half}, data: ingest/listings, of: {kd: {}}}     its teacher, its data
    several   both: {teachers: [small, large], by: {tmkd: {}}, of: {minilm: {}}}        teachers of `distill.teachers`
    specific  shop: {start: {from: chain, name: third}, teacher: {from: finetune, name: category},
                     data: ingest/listings, of: {tinybert: {}}}        a trained student goes on, with a task

An entry of `specific` that has neither `of` nor `by` learns gold labels alone.

`of` is a method or a mix. `by` is a file of models/distill/teachers; in a chain its teachers are all larger models of
the chain, as DGKD has it. Every objective is built here, so that a fault costs no training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from models import build, method
from models.components._closest import refuse_unknown
from models.distill._distillation import Gold
from models.distill._objective import Council, Mix, Objective
from models.distill._sequences import SequenceMethod
from models.distill._signals import Method, Shape
from tasks.settings import SettingsError

__all__ = ["GOLD", "PARTS", "Entry", "Stage", "read_entry", "stages_of"]

PARTS = ("methods", "mixes", "chains", "several", "specific")
ELSEWHERE = (
    "tasks",
    "of_tasks",
    "served",
    "readings",
    "examples",
    "reasons",
    "relevance",
    "languages",
)  # other units read these
KEYS = ("teacher", "teachers", "data", "student", "training", "length", "precision", "placement", "cache", *PARTS,
        *ELSEWHERE, "gates")  # fmt: skip
STUDENT = ("layers", "width", "heads", "inner", "start")
OWN = ("training", "stages", "hard", "student", "vocabulary", "prompt", "placement", "cache", "teacher", "teachers",
       "by", "of")  # fmt: skip
ALLOWED = {"methods": ("by", "of", "teacher", "teachers", "hard"), "mixes": ("by", "of", "teacher", "teachers"),
           "chains": ("teachers",), "several": ("teacher",),
           "specific": ("student", "teachers", "vocabulary")}  # fmt: skip # keys of OWN that a part does not have
PLACES = {"chains": ("data",), "specific": ("data", "start")}  # keys that the graph reads, of these parts alone
TEXT = ("pretrain", "corpus")  # stages that read running text
GOLD = "gold"  # the stage of gold labels alone
COMBINERS = "distill.teachers"


@dataclass(frozen=True)
class Entry:
    """One line below `distill`."""

    part: str
    name: str
    methods: dict[str, dict]  # settings
    weights: dict[str, float] = field(default_factory=dict)
    by: tuple[str, dict] | None = None  # a combiner and its settings
    own: dict = field(default_factory=dict)  # training, stages, hard, student, vocabulary, prompt, teachers

    @property
    def started(self) -> bool:
        """Whether the student is a trained model that goes on, not one that is drawn from its teacher."""
        return self.part == "specific"

    @property
    def single(self) -> str | None:
        """The name of the only method, which may have stages."""
        return next(iter(self.methods)) if len(self.methods) == 1 else None

    @property
    def writes(self) -> bool:
        """Whether it trains on texts that the models write."""
        return any(issubclass(method("distill", name), SequenceMethod) for name in self.methods)

    @property
    def inherits(self) -> bool:
        """Whether the student is the teacher, rebuilt."""
        return any(hasattr(method("distill", name), "attach") for name in self.methods)


@dataclass(frozen=True)
class Stage:
    """One training run of an entry."""

    name: str
    objective: Objective
    training: dict

    @property
    def only_gold(self) -> bool:
        return set(self.objective.methods) == {GOLD}

    @property
    def trains_head(self) -> bool:
        """Whether the task's answers are learned, so that they say which weights are best."""
        return bool({"task", "hard"} & set(self.objective.needs()["student"]))


def read_entry(chosen: Mapping, part: str, name: str) -> Entry:
    """The entry `distill.<part>.<name>`.

    Raises:
        SettingsError: there is no such entry, or it cannot be so.
        LookupError: a key or a method that is unknown; names the closest.
    """
    for key in chosen:
        refuse_unknown("distill", key, KEYS)
    if part not in PARTS or name not in (chosen.get(part) or {}):
        there = ", ".join(chosen.get(part) or {}) or "nothing"
        raise SettingsError(f"distill.{part} has no {name!r}; it has: {there}")
    entry = dict(chosen[part][name] or {})
    own = {key: entry.pop(key) for key in (*OWN, *PLACES.get(part, ())) if key in entry}
    if wrong := [key for key in ALLOWED[part] if key in own]:
        raise SettingsError(f"distill.{part}.{name} has {', '.join(wrong)}, which {part} do not have")
    own["student"] = {} if part == "specific" else _sizes(chosen.get("student"), own.get("student"))
    methods, by = {name: entry}, None
    if part != "methods":
        listed = own.pop("of", None) if part != "mixes" else entry
        if part != "mixes" and entry:
            raise SettingsError(f"distill.{part}.{name} has {', '.join(entry)}; its methods stand below `of`")
        by = _one_of(f"distill.{part}.{name}.by", own.pop("by")) if own.get("by") else None
        methods = {key: dict(value or {}) for key, value in _listed(listed).items()}
    weights = {key: each.pop("weight") for key, each in methods.items() if part != "methods" and "weight" in each}
    made = Entry(part, name, methods, weights, by, own)
    _refuse(made)
    return made


def _sizes(*told: Mapping | None) -> dict:
    """What all students are, and over it what this one is."""
    sizes = {key: value for each in told for key, value in (each or {}).items()}
    for key in sizes:
        refuse_unknown("distill.student", key, STUDENT)
    if "layers" not in sizes:
        raise SettingsError("distill.student lacks layers: how many of the teacher's the student has")
    return sizes


def _refuse(entry: Entry) -> None:
    at = f"distill.{entry.part}.{entry.name}"
    if entry.part == "several" and not entry.by:
        raise SettingsError(f"{at} lacks by: how its teachers speak as one, such as {{tmkd: {{}}}}")
    only_gold = entry.started and set(entry.own.get("stages") or ()) <= {GOLD}
    if not entry.methods and not entry.by and not only_gold:
        raise SettingsError(f"{at} has no method; give at least one, such as {{kd: {{}}}}")
    if entry.part == "several" and not isinstance(entry.own.get("teachers"), Sequence):
        raise SettingsError(f"{at} lacks teachers: names of distill.teachers, from the smallest to the largest")
    alone = "writes the texts it trains on" if entry.writes else "rebuilds the teacher into the student"
    if (entry.writes or entry.inherits) and (entry.by or len(entry.methods) > 1):
        raise SettingsError(f"{at}: {next(iter(entry.methods))} {alone}, so no other method and no combiner of "
                            f"teachers goes with it; make it a method or a chain of its own")  # fmt: skip
    if "prompt" in entry.own and not entry.writes:
        raise SettingsError(f"{at} has prompt, but writes no texts; take it out")


def stages_of(
    entry: Entry,
    student: Shape,
    teachers: Sequence[Shape],
    on_task: bool,
    training: Mapping,
    keep: Sequence[int] | None = None,
) -> list[Stage]:
    """What runs, in order.

    Args:
        student: sizes.
        teachers: of each.
        on_task: whether rows have labels.
        training: settings of all stages, which the entry's own and a stage's change.
        keep: the teacher's ids of a student's words that knows fewer.

    Raises:
        SettingsError: such data cannot feed the entry.
        ValueError, LookupError, TypeError: a method cannot be built for these shapes; it says why.
    """
    _refuse_data(entry, on_task)
    make = lambda stage: _objective(entry, student, teachers, stage, keep)
    training = _over(training, entry.own.get("training"))
    order = entry.own.get("stages") or _published(entry, make, on_task)
    changes = order if isinstance(order, Mapping) else {}
    made = []
    for stage in order:
        objective = Objective({GOLD: Gold(student, teachers[-1])}) if stage == GOLD else make(stage)
        made.append(Stage(stage, objective, _over(training, changes.get(stage))))
    return made


def _over(training: Mapping, own: Mapping | None) -> dict:
    """Settings of all, and those of one over them: its steps replace their epochs, its epochs their steps."""
    own = dict(own or {})
    gone = {other for key, other in (("steps", "epochs"), ("epochs", "steps")) if key in own}
    return {key: value for key, value in training.items() if key not in gone} | own


def _refuse_data(entry: Entry, on_task: bool) -> None:
    if on_task and (entry.writes or entry.inherits or entry.own.get("vocabulary")):
        name = entry.single
        what = f"{name} lets models write" if entry.writes else f"{name} narrows a pre-trained model"
        what = "a smaller vocabulary is chosen" if entry.own.get("vocabulary") else what
        raise SettingsError(f"{what} on running text, but the data are labelled rows; give tokens and a pre-trained "
                            f"teacher, and fine-tune what comes out")  # fmt: skip


def _objective(entry: Entry, student: Shape, teachers: Sequence[Shape], stage: str | None, keep) -> Objective:
    """What one stage learns by; the stage is that of the combiner, or of the only method."""
    hard = entry.own.get("hard")
    if entry.by is None:
        staged = {"stage": stage} if stage in _staged(entry) else {}
        return Objective(_methods(entry, student, teachers[-1], staged, keep), entry.weights, hard)
    name, settings = entry.by
    staged = {"stage": stage} if stage in _staged(entry) else {}
    one = {} if not entry.methods else {"method": lambda ours, theirs: _mix(entry, ours, theirs, keep)}
    return Council(name, build(COMBINERS, name, student, list(teachers), **one, **settings, **staged), hard)


def _methods(entry: Entry, student: Shape, teacher: Shape, staged: Mapping, keep) -> dict[str, Method]:
    more = lambda name: {"keep": keep} if keep is not None and name == "glmd" else {}
    return {name: build("distill", name, student, teacher, **settings, **staged, **more(name))
            for name, settings in entry.methods.items()}  # fmt: skip


def _mix(entry: Entry, student: Shape, teacher: Shape, keep) -> Method:
    built = _methods(entry, student, teacher, {}, keep)
    return built[entry.single] if entry.single and not entry.weights else Mix(student, teacher, built, entry.weights)


def _staged(entry: Entry) -> tuple[str, ...]:
    """The published stages of what has them here: the combiner, or the only method."""
    if entry.by:
        settings, stages = entry.by[1], method(COMBINERS, entry.by[0]).stages
    elif entry.single and entry.part != "mixes":
        settings, stages = entry.methods[entry.single], method("distill", entry.single).stages
    else:
        return ()
    return stages if len(stages) > 1 and "stage" not in settings else ()


def _published(entry: Entry, make: Callable[[str | None], Objective], on_task: bool) -> list[str]:
    """The stages that such data can feed, in the published order; gold labels last where nothing trains the head."""
    if not entry.methods and not entry.by:
        return [GOLD]
    wants = lambda stage: set(make(stage).needs()["student"])
    if not (stages := _staged(entry)):
        name = entry.by[0] if entry.by else entry.name if entry.part == "mixes" else entry.single or entry.name
        settings = entry.by[1] if entry.by else entry.methods.get(name, {})
        fitting, needs = [settings.get("stage", name)], wants(None)
    else:
        needs_of = {stage: wants(stage) for stage in stages}
        text = [stage for stage in stages if stage in TEXT]
        if on_task:
            fitting = [stage for stage in stages if stage not in TEXT and "logits" not in needs_of[stage]]
        else:
            fitting = text or [stage for stage in stages if "task" not in needs_of[stage]]
        needs = set().union(*(needs_of[stage] for stage in fitting))
    if not fitting:
        raise SettingsError(f"{entry.name} has no stage for such data; its stages: {', '.join(stages)}")
    return fitting + [GOLD] * (on_task and not needs & {"task", "hard", "logits"})


def _one_of(at: str, value) -> tuple[str, dict]:
    """A name, or {name: settings}."""
    listed = _listed(value)
    if len(listed) != 1:
        raise SettingsError(f"{at} names one way of combining teachers, got {len(listed)}: {', '.join(listed)}")
    ((name, settings),) = listed.items()
    return name, dict(settings or {})


def _listed(value) -> dict:
    return {value: {}} if isinstance(value, str) else dict(value or {})
