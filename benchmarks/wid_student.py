"""Half as wide by inheritance, or from scratch? WID and a fresh student of the same size, with equal steps and rows.

    python benchmarks/wid_student.py MODEL TEXTS [--width 192] [--steps 240] [--every 8] [--seeds 1] [--out FILE.md]

MODEL is a folder of transformers with a BERT, TEXTS Parquet files of sentences (`text` or `sentence`). The objective is
masked words, and the head for them is fresh, tied to MODEL's word table: sentence encoders have none, so WID learns one
as the fresh student does. Masks cut at once (`cut: sharp`): in a few hundred steps nothing can fade. Held-out rows are
masked the same way for all; the loss of the words' frequencies alone is the floor.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.real_teacher import encode, sentences_of
from models import build
from models.components._model import Model, assemble
from models.distill._inheriting import Inheriting
from models.distill._student import shape_of, student_recipe
from tasks.engine import Engine, HeldOut, run
from tasks.files import write_text
from tasks.finetune import begin, load_start, retarget
from tasks.lessons import Stepped
from tasks.training import use_threads

SHARE, REPLACED, KEPT = 0.15, 0.8, 0.9  # of the tokens; of those masked, and masked or replaced by any word
SPECIAL = 999  # BERT's words begin behind


class Masked:
    """Rows of running text without borders; which words are hidden is a function of the row's number alone."""

    def __init__(self, ids: np.ndarray, mask: int, vocabulary: int, seed: int):
        self.ids, self.mask, self.vocabulary, self.seed = ids, mask, vocabulary, seed
        self.fingerprint = f"{ids.shape}"

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, indices) -> dict[str, Tensor]:
        shown, labels = zip(*(self._row(index) for index in indices), strict=True)
        ids = torch.from_numpy(np.stack(shown))
        return {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool),
                "labels_mlm": torch.from_numpy(np.stack(labels))}  # fmt: skip

    def _row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        draw, row = np.random.default_rng([self.seed, index]), self.ids[index % len(self.ids)]
        hidden = (draw.random(len(row)) < SHARE) & (row > SPECIAL)
        how, other = draw.random(len(row)), draw.integers(SPECIAL + 1, self.vocabulary, len(row))
        shown = np.where(hidden & (how < REPLACED), self.mask, row)
        shown = np.where(hidden & (how >= REPLACED) & (how < KEPT), other, shown)
        return shown, np.where(hidden, row, -100)


def main() -> None:
    options = parse()
    use_threads()
    start = load_start(options.model)
    recipe = retarget(start.recipe, "mlm", {}) | {"tie": True}
    mask, (train, heldout) = _mask_id(options), sentences_of(options)
    words = [_rows(encode(start, texts, 512), options.length) for texts in (train, heldout)]
    judged = Masked(words[1], mask, recipe["vocabulary"], seed=0)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        source = Stepped(Masked(words[0], mask, recipe["vocabulary"], seed + 1), options.batch)
        for name, (model, spent) in students(options, start, recipe, source, seed).items():
            with torch.no_grad():
                metrics = HeldOut(judged, Engine(batch=64, evaluate_rows=options.heldout_rows))(model.eval())
            found.setdefault(name, []).append({
                "loss": metrics["loss"], "correct": metrics["mlm_correct"], "seconds": spent,
                "parameters": sum(p.numel() for p in model.parameters())})  # fmt: skip
            print(f"seed {seed}, {name}: {found[name][-1]}", flush=True)
    floor = frequencies(words[0], judged, options.heldout_rows, recipe["vocabulary"])
    text = table(options, recipe, found, floor)
    print(text)
    if options.out:
        write_text(options.out, text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    for name, value in {"width": 192, "steps": 240, "every": 8, "batch": 32, "length": 32, "seeds": 1,
                        "heldout": 2000, "heldout-rows": 512}.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=2e-3, help="of WID's compactors; what is inherited has a fiftieth")
    parser.add_argument("--scratch-lr", type=float, default=1e-3)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def students(options: argparse.Namespace, start, recipe: dict, source, seed: int) -> dict[str, tuple[Model, float]]:
    """By name, each with the CPU seconds of its run."""
    wide, inner = shape_of(recipe), recipe["encoder"]["transformer"]["inner"]
    torch.manual_seed(seed + 1)
    method = build("distill", "wid", shape_of(student_recipe(recipe, wide.layers, options.width)), wide, inner=inner,
                   every=options.every, cut="sharp")  # fmt: skip
    inheriting = Inheriting(begin(recipe, start.state, "mlm"), method, options.steps)
    spent = trained(options, inheriting, source, options.lr, seed)
    narrow, small = inheriting.finish(recipe)
    torch.manual_seed(seed + 1)
    fresh = assemble(small)
    return {"WID": (narrow, spent), "from scratch": (fresh, trained(options, fresh, source, options.scratch_lr, seed))}


def trained(options: argparse.Namespace, model: nn.Module, source, lr: float, seed: int) -> float:
    settings = Engine(steps=options.steps, batch=options.batch, lr=lr, schedule="linear", warmup=0.1,
                      betas=(0.9, 0.999), weight_decay=0.01, precision=options.precision, seed=seed + 1)  # fmt: skip
    given, began = source if isinstance(model, Inheriting) else source.source, time.process_time()
    if run(model, given, settings, name=f"{type(model).__name__} {seed}").stopped:
        sys.exit("stopped: a student of fewer steps would be told as one of all")
    return time.process_time() - began


def frequencies(train: np.ndarray, judged: Masked, count: int, vocabulary: int) -> float:
    """Loss of a model that knows how frequent each word is, and nothing else."""
    often = np.bincount(train.ravel(), minlength=vocabulary) + 1.0
    labels = judged.rows(range(count))["labels_mlm"].numpy()
    return float(-np.log(often / often.sum())[labels[labels >= 0]].mean())


def table(options: argparse.Namespace, recipe: dict, found: dict, floor: float) -> str:
    lines = [f"Width {recipe['width']} to {options.width}, {recipe['encoder']['transformer']['layers']} layers; "
             f"{options.steps} steps of {options.batch} rows of {options.length} tokens, {options.precision}, "
             f"{options.seeds} seeds; {options.heldout_rows} held-out rows.", "",
             "| student | held-out loss | words right | parameters | CPU s of training |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, runs in found.items():
        losses = [one["loss"] for one in runs]
        spread = f" ({min(losses):.3f} to {max(losses):.3f})" if len(runs) > 1 else ""
        mean = lambda key, runs=runs: statistics.mean(one[key] for one in runs)
        lines.append(f"| {name} | {mean('loss'):.3f}{spread} | {mean('correct'):.3f} | {runs[0]['parameters']:,} | "
                     f"{mean('seconds'):.0f} |")  # fmt: skip
    return "\n".join([*lines, f"| the words' frequencies alone | {floor:.3f} | | | |", ""])


def _rows(sentences: list[list[int]], length: int) -> np.ndarray:
    stream = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in sentences])
    return stream[: len(stream) // length * length].reshape(-1, length)


def _mask_id(options: argparse.Namespace) -> int:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(options.model).mask_token_id


if __name__ == "__main__":
    main()
