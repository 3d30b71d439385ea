"""What a distillation will take, before it runs: bytes on each device, operations of a step, bytes of a cache.

    bytes = student's states + what its layers keep + a chunk of logits + teacher's weights + what it says
    operations a token = 6 N_s + 2 N_t     (N: parameters read at every token, and attention; see models/flops.py)

A teacher costs a third of a trained model of its size, and no states: it is frozen. Kept on disk it costs nothing but
its signals. Layers of the student that are recomputed cost 2 N_s more. What a chunk of logits and the work of a layer
hold is counted from the implementation; allocators hold some more. Ours, tested on small models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from models.components._model import Model
from models.distill._divergence import LARGE_CHUNK
from models.distill._kept import Kept
from models.flops import flops_of
from models.memory import Sizes, activations, states

__all__ = ["Bill", "Plan", "bill"]

COPIES = 6  # of a chunk's logits in float32: both sides, their log-probabilities, and two terms of the divergence
PLACED = ("device", "offload", "int8", "fsdp", "cache")


@dataclass(frozen=True)
class Plan:
    """How a step is cut and where the teacher is.

    Args:
        rows: that one device computes at once.
        batch: rows of a step, all devices together.
        length: tokens of a row, T.
        wanted: signal -> the teacher's layers, as from Objective.needs.
        teacher: "device", "offload", "int8", "fsdp", or "cache": not there.
        ranks: devices; more than one share the student, and where it is "fsdp" the teacher.
        half: the student's products in bfloat16, by autocast.
        teacher_bytes: of a number of the teacher.
        recompute: the student's layers.
        optimizer: of the student.
        words: k that a cache keeps of a place.
        store: of a cache.
    """

    rows: int
    batch: int
    length: int
    wanted: Mapping[str, Sequence[int]] = field(default_factory=dict)
    teacher: str = "device"
    ranks: int = 1
    half: bool = True
    teacher_bytes: int = 2
    recompute: bool = False
    optimizer: str = "adamw"
    words: int = 64
    store: str = "float16"

    def __post_init__(self):
        if self.teacher not in PLACED:
            raise ValueError(f"a teacher is one of {', '.join(PLACED)}; got {self.teacher!r}")
        if min(self.rows, self.batch, self.length, self.ranks) < 1 or self.batch % (self.rows * self.ranks):
            raise ValueError(f"{self.batch} rows of a step are cut into {self.rows} on each of {self.ranks} devices: "
                             f"they must divide")  # fmt: skip

    @property
    def tokens(self) -> int:
        """That one device computes at once, all places counted as real."""
        return self.rows * self.length


@dataclass(frozen=True)
class Bill:
    """What a plan costs."""

    memory: dict[str, float]  # bytes on each device, by what they are for
    flops: dict[str, float]  # operations of a step of all devices, by who does them
    moved: float  # bytes that a step copies from the CPU to each device
    row: float  # bytes of a cache for a row of T tokens

    @property
    def total(self) -> float:
        """Bytes on each device."""
        return sum(self.memory.values())

    def seconds(self, peak: float, share: float, ranks: int, link: float = 50e9) -> float:
        """Of a step on devices of `peak` operations a second, of which `share` is reached; layers arrive at `link`
        bytes a second, while the device waits. What ranks send each other is not counted."""
        return sum(self.flops.values()) / (peak * share * ranks) + self.moved / link


def bill(student: Model, teacher: Model, plan: Plan) -> Bill:
    """The cost of a plan; both models may be on the meta device, where they take no memory.

    Raises:
        LookupError: a model that is no transformer encoder; a signal that cannot be kept, where there is a cache.
        ValueError: a layer that the teacher does not have.
    """
    small, large = Sizes.of(student), Sizes.of(teacher)
    says = Kept(plan.wanted, large.layers, large.head // large.width, min(plan.words, large.head // large.width or 1),
                store=plan.store)  # fmt: skip
    size = lambda kept, rows: kept.size(
        [plan.length] * rows, large.width, large.heads, large.query_width // large.heads
    )
    memory = {f"student: {name}": value for name, value in
              states(small, plan.optimizer, plan.half, plan.ranks).items()}  # fmt: skip
    memory["student: layers"] = activations(small, plan.tokens, plan.half, plan.recompute)
    memory["student: scores"] = _scores(small, plan, len(plan.wanted.get("scores", ())))
    if "logits" in plan.wanted:
        chunk = min(LARGE_CHUNK, plan.tokens * max(small.head // small.width, 1))
        memory["logits"] = 4 * (COPIES * chunk + 2 * small.head)
    if plan.teacher == "cache":
        memory["teacher: kept"] = size(says, plan.rows)
    else:
        memory["teacher: weights"] = _weights(large, plan)
        memory["teacher: at work"] = plan.tokens * _at_work(large, plan)
        shown = {name: layers for name, layers in plan.wanted.items() if name != "logits"}
        memory["teacher: signals"] = size(Kept(shown, large.layers, store="float32"), plan.rows)
        if "logits" in plan.wanted:
            memory["teacher: signals"] += plan.tokens * large.width * plan.teacher_bytes  # the head reads them later
    moved = 0.0
    if plan.teacher == "offload":
        moved = large.in_layers / large.stored * large.layers * plan.teacher_bytes * plan.batch / plan.rows / plan.ranks
    return Bill(memory, _flops(student, teacher, small, large, plan), moved, size(says, 1))


def _weights(large: Sizes, plan: Plan) -> float:
    """Of the teacher, on each device."""
    each, rest = plan.teacher_bytes, large.parameters - large.in_layers
    one = large.in_layers / large.stored * each
    if plan.teacher == "offload":
        return rest * each + one
    if plan.teacher == "int8":
        return (large.parameters - large.products) * each + large.products
    if plan.teacher == "fsdp" and plan.ranks > 1:
        return rest * each + large.in_layers * each / plan.ranks + one
    return large.parameters * each


def _at_work(large: Sizes, plan: Plan) -> float:
    """Bytes of a token inside the teacher's layer that is being run; the widest is the feed-forward one."""
    inner = (3 if large.gated else 2) * large.inner
    attention = 2 * large.query_width + 2 * large.kv_width
    held = large.heads * plan.length * 8 if plan.wanted.get("scores") else 0
    return plan.teacher_bytes * (2 * large.width + max(inner, attention)) + held


def _scores(small: Sizes, plan: Plan, layers: int) -> float:
    """What attention that shows its scores keeps besides: scores and shares in float32, and the loss's two."""
    return plan.tokens * plan.length * small.heads * 16 * min(layers, small.layers)


def _flops(student: Model, teacher: Model, small: Sizes, large: Sizes, plan: Plan) -> dict[str, float]:
    tokens = plan.batch * plan.length
    bodies = [flops_of(model, plan.length) - 6.0 * sizes.head * ("lm" in model.targets)
              for model, sizes in ((student, small), (teacher, large))]  # fmt: skip
    words = "logits" in plan.wanted or "lm" in student.targets
    found = {"student": tokens * (bodies[0] + 6.0 * small.head * words)}
    if plan.recompute:
        found["student again"] = tokens * bodies[0] / 3
    if plan.teacher != "cache":
        found["teacher"] = tokens * (bodies[1] / 3 + 2.0 * large.head * ("logits" in plan.wanted))
    return found
