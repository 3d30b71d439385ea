"""What does a method add to the two passes that no distillation can do without, and how does TextBrewer compare?

    python benchmarks/distillation_step.py [--rows 16] [--length 128] [--steps 7] [--precisions float32 bfloat16]

A teacher of 6 layers x 384 and a student of 3, one thread, CPU seconds of forward and backward, all sides in turn in
one process, on the same weights and rows. "Bare" is the teacher's forward pass and the student's forward and backward
pass, without any loss. TextBrewer (`pip install textbrewer tensorboardX`; left out where it is absent) matches hidden
states at all levels of the student and attention of all its layers, over transformers' BERT; beside it TinyBERT's inner
loss, which matches the same. bfloat16 is autocast on all sides.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import build
from models.components import pretrained
from models.components._model import Model, assemble
from models.distill._exact import Exact
from models.distill._maths import layer_map
from models.distill._objective import Objective
from models.distill._student import new_student, shape_of, student_recipe

WORDS, BARE, THEIRS = 30522, "two bare passes", "TextBrewer: hidden and attention"
METHODS = {"minilm": {}, "minilmv2": {}, "tinybert": {"stage": "pretrain"}}
RECIPE = {
    "width": 384, "vocabulary": WORDS, "dropout": 0.1, "eps": 1e-12, "act": "gelu", "std": 0.02,
    "embedding": {"word": {}, "position": {"length": 512}, "segment": {"kinds": 2}},
    "encoder": {"transformer": {"layers": 6, "heads": 12, "inner": 1536, "attention_dropout": 0.1}}, "target": {},
}  # fmt: skip
Side = Callable[[], Tensor | None]


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    print(f"{options.rows} x {options.length} tokens, CPU seconds a step: median of {options.steps}; ratios by turns\n"
          "\n| side | precision | s a step | by the bare passes | by TinyBERT's inner loss |\n"
          "|---|---|---|---|---|")  # fmt: skip
    for precision in options.precisions:
        seconds = measure(options, None if precision == "float32" else getattr(torch, precision))
        for name, spent in seconds.items():
            print(f"| {name} | {precision} | {statistics.median(spent):.3f} | {ratio(spent, seconds[BARE])} | "
                  f"{ratio(spent, seconds['tinybert'])} |", flush=True)  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"rows": 16, "length": 128, "steps": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    return parser.parse_args()


def ratio(spent: list[float], other: list[float]) -> str:
    """Median of the turns' ratios, and their quartiles."""
    each = sorted(a / b for a, b in zip(spent, other, strict=True))
    return f"{statistics.median(each):.3f} ({each[len(each) // 4]:.2f} to {each[-1 - len(each) // 4]:.2f})"


def measure(options: argparse.Namespace, precision: torch.dtype | None) -> dict[str, list[float]]:
    """CPU seconds of each step, by side; the order turns with each step."""
    torch.manual_seed(0)
    recipe = RECIPE | {"target": {"cls": {"labels": 2}}}
    teacher, small = assemble(recipe).eval().requires_grad_(False), student_recipe(recipe, 3)
    batch = {"ids": torch.randint(1000, WORDS, (options.rows, options.length)),
             "mask": torch.ones(options.rows, options.length, dtype=torch.bool)}  # fmt: skip
    student = new_student(small, "cut", teacher.state_dict())
    sides: dict[str, Side] = {BARE: bare(teacher, student, batch)}
    for name, settings in METHODS.items():
        method = build("distill", name, shape_of(small), shape_of(recipe), **settings)
        sides[name] = ours(Exact(student, teacher, Objective({name: method})), batch)
    if find_spec("textbrewer"):
        sides[THEIRS] = textbrewer(teacher, small, student, batch)

    def backward(side: Side) -> None:
        with torch.autocast("cpu", precision) if precision else nullcontext():
            loss = side()
        loss.backward()

    return in_turns({name: partial(backward, side) for name, side in sides.items()}, options.steps, student.zero_grad)


def in_turns(
    sides: Mapping[str, Callable[[], None]], steps: int, after: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """CPU seconds of each step, by side; the order turns with each step, and the first, which allocates, is left out.

    Args:
        sides: each takes one step.
        steps: that are counted.
        after: what follows each step of each side, and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(steps + 1):
        names = list(sides)
        for name in names[step % len(names) :] + names[: step % len(names)]:
            torch.manual_seed(step)
            began = time.process_time()
            sides[name]()
            seconds[name].append(time.process_time() - began)
            after()
    return {name: spent[1:] for name, spent in seconds.items()}


def bare(teacher: Model, student: Model, batch: dict) -> Side:
    """Teacher forward, student forward; the sum of the states stands for a loss that costs nothing."""

    def step() -> Tensor:
        with torch.no_grad():
            teacher.encode(**batch)
        return student.train().encode(**batch)[0].sum()

    return step


def ours(model: Exact, batch: dict) -> Side:
    return lambda: model.train()(**batch)[0]


def textbrewer(teacher: Model, small: dict, student: Model, batch: dict) -> Side:
    """A step of its GeneralDistiller: the same weights in transformers' BERT, whose eager attention shows itself."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
    from transformers import BertModel

    def loaded(model: Model, recipe: dict) -> nn.Module:
        state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("targets.")}
        with TemporaryDirectory() as folder:
            pretrained.save(state, {**recipe, "target": {}}, folder, "bert")
            return BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager",
                                             output_hidden_states=True, output_attentions=True)  # fmt: skip

    def adaptor(given: dict, result) -> dict:
        return {"hidden": result.hidden_states, "attention": result.attentions, "inputs_mask": given["attention_mask"]}

    layers = small["encoder"]["transformer"]["layers"]
    ends = layer_map(layers, RECIPE["encoder"]["transformer"]["layers"])
    match = lambda s, t, feature: {"layer_S": s, "layer_T": t, "feature": feature, "weight": 1,
                                   "loss": f"{feature}_mse"}  # fmt: skip
    matches = [match(s, t, "hidden") for s, t in enumerate([0, *ends])]
    matches += [match(s, t - 1, "attention") for s, t in enumerate(ends)]
    recipe = RECIPE | {"target": {"cls": {"labels": 2}}}
    theirs, small_one = loaded(teacher, recipe).eval(), loaded(student, small).train()
    with TemporaryDirectory() as folder:
        training = TrainingConfig(log_dir=None, output_dir=folder, device="cpu")
        config = DistillationConfig(intermediate_matches=matches, kd_loss_weight=0, hard_label_weight=0)
        distiller = GeneralDistiller(training, config, theirs, small_one, adaptor, adaptor)
    given = {"input_ids": batch["ids"], "attention_mask": batch["mask"].long()}

    def step() -> Tensor:
        small_one.zero_grad()
        return distiller.train_on_batch(given, {})[0]

    return step


if __name__ == "__main__":
    main()
