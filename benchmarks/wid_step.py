"""What do WID's compactors cost? A step of masked words with them, over the same model's step without.

    python benchmarks/wid_step.py [--layers 4] [--width 256] [--rows 16] [--length 128] [--steps 7]

Forward, backward, what pulls lost entries to zero, and AdamW; one thread, CPU seconds, all sides in turn in one process
on the same rows. "gradual": all that is lost still flows; "sharp": half of the width is gone.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.distillation_step import in_turns, ratio
from models import build
from models.components._model import assemble
from models.distill._inheriting import NEVER, Inheriting
from models.distill._student import shape_of, student_recipe

WORDS, MASKED = 30522, 0.15


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    print("| side | precision | s a step | by the plain step |\n|---|---|---|---|")
    for precision in (None, torch.bfloat16):
        seconds = measure(options, precision)
        for name, spent in seconds.items():
            print(f"| {name} | {'bfloat16' if precision else 'float32'} | {statistics.median(spent):.3f} | "
                  f"{ratio(spent, seconds['plain'])} |", flush=True)  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"layers": 4, "width": 256, "heads": 4, "rows": 16, "length": 128, "steps": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


def measure(options: argparse.Namespace, precision: torch.dtype | None) -> dict[str, list[float]]:
    """CPU seconds of each step, by side; the order turns with each step."""
    torch.manual_seed(0)
    recipe = {
        "width": options.width, "vocabulary": WORDS, "dropout": 0.1, "eps": 1e-12, "act": "gelu",
        "embedding": {"word": {}, "position": {"length": 512}, "segment": {"kinds": 2}},
        "encoder": {"transformer": {"layers": options.layers, "heads": options.heads, "inner": 4 * options.width}},
        "target": {"mlm": {}}, "tie": True,
    }  # fmt: skip
    sides = {"plain": plain(recipe), "WID, gradual": wid(recipe, "gradual"), "WID, sharp": wid(recipe, "sharp")}
    ids = torch.randint(1000, WORDS, (options.rows, options.length))
    labels = ids.masked_fill(torch.rand(ids.shape) >= MASKED, -100)
    batch = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool), "labels_mlm": labels}
    return in_turns({name: partial(side, batch, precision) for name, side in sides.items()}, options.steps)


def plain(recipe: dict) -> Callable:
    model = assemble(recipe).train()
    return stepping(model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True))


def wid(recipe: dict, cut: str) -> Callable:
    small = student_recipe(recipe, width=recipe["width"] // 2)
    method = build("distill", "wid", shape_of(small), shape_of(recipe), every=10, cut=cut)
    model = Inheriting(assemble(recipe), method, 10**4).train()
    method.update(NEVER)  # all that is to be lost is lost
    optimizer = torch.optim.AdamW(model.parameter_groups(5e-5, 0.01), fused=True)
    model.hook_optimizer(optimizer)
    return stepping(model, optimizer)


def stepping(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Callable:
    def step(batch: dict[str, Tensor], precision: torch.dtype | None) -> None:
        with torch.autocast("cpu", precision) if precision else nullcontext():
            loss, _ = model(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
