"""Will it fit, and how long will it take? A distillation on paper: memory, time and cache, before any of it is spent.

    python -m tasks.estimate                      a teacher of 100 billion parameters and a student of 7, on paper
    python -m tasks.estimate params.yaml:KEY      the same table for {teacher, student, ...}, see `Question`

Both models are put together without memory, so their parameters are exact; the rest follows from models/memory.py and
models/distill/_estimate.py. Times are operations over the share of the device's peak that training reaches, a guess
that `mfu` changes; what devices send each other is not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from models import build
from models.components._model import assemble
from models.distill._estimate import PLACED, Bill, Plan, bill
from models.distill._kept import wanted_by
from models.distill._objective import Objective
from models.distill._student import shape_of
from models.flops import peak
from models.memory import capacity
from tasks.command import run
from tasks.files import read_json
from tasks.recipes import read_recipe
from tasks.settings import SettingsError, fill, read

__all__ = ["PAPER", "Question", "answer", "main"]

COLUMNS = ("teacher", "devices", "teacher's", "states", "layers", "logits", "all", "fits", "s a step",
           "for the teacher", "hours")  # fmt: skip
ROOM = 0.9  # of the device's memory: the allocator's gaps and the libraries take the rest (ours)


@dataclass(frozen=True)
class Question:
    """What is asked.

    Args:
        teacher: a folder with recipe.json, or {recipe, size, overrides} as in tasks/recipes.py.
        student: likewise.
        method: of models/distill, with its `settings`; or none, and `signals`: {name: the teacher's layers}.
        devices: names, as models/flops.py knows them.
        ranks: numbers of devices.
        placed: where the teacher is: words of tasks/placement.py, and "cache".
        rows: that a device computes at once.
        batch: rows of a step.
        length: tokens of a row.
        steps: of the run.
        precision: of both models' products: "bfloat16" or "float32".
        recompute: the student's layers.
        optimizer: "adamw", "muon" or "adafactor".
        words: that a cache keeps of each place.
        mfu: share of the peak that is reached, in 0..1.
    """

    teacher: str | Mapping
    student: str | Mapping
    method: str | None = None
    settings: Mapping = field(default_factory=dict)
    signals: Mapping = field(default_factory=dict)
    devices: tuple[str, ...] = ("H100", "H200")
    ranks: tuple[int, ...] = (1,)
    placed: tuple[str, ...] = PLACED
    rows: int = 1
    batch: int = 32
    length: int = 512
    steps: int = 1000
    precision: str = "bfloat16"
    recompute: bool = False
    optimizer: str = "adamw"
    words: int = 64
    mfu: float = 0.4

    def __post_init__(self):
        if (self.method is None) == (not self.signals):
            raise SettingsError("give either a method of models/distill or the signals that the teacher shows")
        if unknown := [name for name in self.devices if peak(name) is None or capacity(name) is None]:
            raise SettingsError(f"peak and memory of {', '.join(unknown)} are not known; models/flops.py and "
                                f"models/memory.py hold those that are")  # fmt: skip
        if self.precision not in ("float32", "bfloat16") or not 0 < self.mfu <= 1:
            raise SettingsError(
                f"precision is float32 or bfloat16, and mfu in 0..1; got {self.precision!r} and {self.mfu}"
            )

    @classmethod
    def read(cls, chosen: Mapping) -> "Question":
        """From params.yaml; a name that is not a setting is refused."""
        told = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
        return fill(cls, told, "an estimate")


PAPER = Question(
    teacher={"recipe": "llama3", "overrides": {"width": 10240, "encoder": {"transformer": {
        "layers": 88, "heads": 80, "inner": 28672}}}},  # 100 billion parameters
    student={"recipe": "llama3", "overrides": {"width": 4096, "encoder": {"transformer": {"layers": 27}}}},  # 7 billion
    signals={"logits": []}, ranks=(1, 8, 32), rows=1, batch=256, length=2048, steps=10_000, recompute=True,
)  # fmt: skip


def answer(asked: Question) -> str:
    """A Markdown table, a line for each place, device and number of devices, under a line on the two models."""
    recipes = [_recipe(one) for one in (asked.student, asked.teacher)]
    with torch.device("meta"):
        student, teacher = (assemble(one) for one in recipes)
    wanted = dict(asked.signals)
    if asked.method:
        method = build("distill", asked.method, *(shape_of(one) for one in recipes), **asked.settings)
        wanted = wanted_by(Objective({asked.method: method}), 1)
    count = lambda model: sum(p.numel() for p in model.parameters())
    half = asked.precision == "bfloat16"
    lines = [f"Teacher {count(teacher):,} parameters, student {count(student):,}; {asked.batch} rows x {asked.length} "
             f"tokens a step, {asked.rows} at once on a device, {asked.precision}, {asked.optimizer}, layers "
             f"{'recomputed' if asked.recompute else 'kept'}; {asked.mfu:.0%} of the peak reached. GB a device.", "",
             f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]  # fmt: skip
    costs = []
    for placed in asked.placed:
        for ranks in asked.ranks:
            if placed == "fsdp" and ranks == 1:
                continue
            plan = Plan(asked.rows, asked.batch, asked.length, wanted, placed, ranks, half, 2 if half else 4,
                        asked.recompute, asked.optimizer, asked.words)  # fmt: skip
            cost = bill(student, teacher, plan)
            costs.append(cost)
            lines += [_line(asked, cost, placed, ranks, device) for device in asked.devices]
    if "cache" in asked.placed:
        lines += ["", _cache(asked, costs[-1].row, bill(student, teacher, replace(plan, teacher="device")))]
    return "\n".join(lines) + "\n"


def _cache(asked: Question, row: float, live: Bill) -> str:
    rows, device = asked.steps * asked.batch, asked.devices[0]
    hours = asked.steps * live.flops["teacher"] / (peak(device) * asked.mfu) / 3600
    return (f"A cache of {rows:,} rows that all differ takes {_bytes(rows * row)}, {row / asked.length:,.0f} bytes a "
            f"token, and {hours:,.0f} hours of one {device} to fill, once; rows that come again cost nothing "
            f"more.")  # fmt: skip


def _line(asked: Question, cost: Bill, placed: str, ranks: int, device: str) -> str:
    part = lambda *stems: sum(value for name, value in cost.memory.items() if name.startswith(stems)) / 1e9
    layers = part("student: layers", "student: scores")
    fits = "yes" if cost.total <= ROOM * capacity(device) else "no"
    seconds = cost.seconds(peak(device), asked.mfu, ranks)
    alone = sum(value for name, value in cost.flops.items() if name != "teacher") / (peak(device) * asked.mfu * ranks)
    sizes = (part("teacher"), part("student") - layers, layers, part("logits"), cost.total / 1e9)
    cells = [placed, f"{ranks} x {device}", *(f"{size:,.1f}" for size in sizes), fits, f"{seconds:,.2f}",
             f"{1 - alone / seconds:.0%}", f"{seconds * asked.steps / 3600:,.1f}"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _recipe(told: str | Mapping) -> Mapping:
    """What `assemble` takes."""
    if isinstance(told, Mapping):
        if "recipe" not in told:
            raise SettingsError(f"a model is a folder, or {{recipe, size, overrides}}; got {dict(told)}")
        return read_recipe(told["recipe"], told.get("size"), told.get("overrides")).model
    if not (Path(told) / "recipe.json").is_file():
        raise SettingsError(f"{told} has no recipe.json; give a folder that holds a model of ours, or a recipe")
    return read_json(Path(told) / "recipe.json")["model"]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.1f} {unit}"
        count /= 1000


def main(address: str | None = None) -> None:
    """python -m tasks.estimate [params.yaml:KEY]"""
    print(answer(Question.read(read(address)) if address else PAPER))


if __name__ == "__main__":
    run(main)
