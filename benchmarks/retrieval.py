"""Retrieval models: training steps beside the usual designs, a table of quality, and quality against CPU seconds.

    python benchmarks/retrieval.py steps FOLDER [--seconds 10]
    python benchmarks/retrieval.py quality FOLDER [--seconds 20] [--seeds 3] [--methods "bpr,recdcl mf"]
    python benchmarks/retrieval.py curve FOLDER [--seconds 60] [--seeds 1] [--methods als,bpr] [--out FILE]

FOLDER holds a log of users and items (see tasks/datasets/interactions.py). One thread; user and system time.

`steps`: width 64, batch 2,048, one negative, the same batches for both sides, which take turns of five steps; fixed
matrix products before and after tell how busy the machine was. The designs it is compared with are written here from
their publications: LightGCN with COO products that autograd differentiates, BPR-MF with dense gradients, both with
torch's Adam as it is by default; and once more with our side's fused Adam, so that the rest can be seen alone.

`quality`: the settings of each method (GRID) and the weights of each run are chosen on the validation split by NDCG@20;
the test split is ranked once for each run, without the pairs of training and validation. Every setting trains for a
sixth of the seconds with seed 0, the best one goes on; so a setting that starts slowly is at a disadvantage. A run ends
after its CPU seconds, drawing of batches included and ranking not, or in its second half, when 4 of its 12 validations
in a row have brought nothing. Then the methods of WIDE are trained with the same settings at the larger width, and keep
it if seed 0's validation is better.

`curve`: each method trains for so many CPU seconds of its own, fitting included, and is ranked on the test split at
growing intervals; what ranking costs does not count. The last row of a method is its result: the best of a curve would
be chosen on the test.
"""

import argparse
import copy
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._retrieval_steps import steps
from models import build, method
from models.recommend._ranking import rank
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._sampling import Pairs
from tasks.als import fit_als
from tasks.datasets import interactions as dataset
from tasks.interactions import interactions, load

WIDTH = 64
TRAINING = {"rate": 1e-3, "batch": 2048}  # where a method's settings do not say
# Settings to choose from; the first word is the method.
GRID = {
    "popularity": {},
    "item_knn": {"neighbours": [20, 100, 400], "shrink": [5.0, 20.0]},
    "als": {"alpha": [3.0, 10.0, 30.0, 100.0], "regularization": [1.0, 30.0]},
    "bpr": {"rate": [2e-3, 1e-2], "penalty": [1e-4, 1e-2], "batch": [1024]},
    "directau": {"rate": [2e-3, 1e-2], "gamma": [1.0, 5.0], "batch": [512]},
    "recdcl mf": {"encoder": ["mf"], "rate": [2e-3, 1e-2], "beta": [5.0], "tau": [0.1], "batch": [512]},
    "recdcl": {"rate": [2e-3, 1e-2], "beta": [5.0], "tau": [0.1], "batch": [1024]},
    "lightgcn": {"rate": [5e-3, 2e-2], "batch": [2048]},
    "buir": {"rate": [2e-3, 1e-2], "momentum": [0.95, 0.995], "batch": [1024]},
    "cml": {"rate": [2e-3, 1e-2], "margin": [0.5, 1.9], "batch": [1024]},
    "clrec": {"rate": [2e-3, 1e-2], "queue": [1024], "batch": [256]},
}
WIDE = {label: 256 for label in GRID if label not in ("popularity", "item_knn")}
VALIDATIONS, PATIENCE, VALIDATED = 12, 4, 2000  # of a run, without gain, and users of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("steps", "quality", "curve"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60, help="for each pair of sides, or for each method and seed")
    parser.add_argument("--methods", default=",".join(GRID))
    parser.add_argument("--wide", default=",".join(WIDE), help="methods that are tried at the larger width too")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--settings", type=json.loads, default={}, help='of the curve: {"lightgcn": {"rate": 0.005}}')
    parser.add_argument("--out", type=Path, help="rows are added to this file of JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        validation = 0.1 if args.what == "quality" else 0.0
        interactions(dataset.read(args.folder), Path(folder) / "pairs", val=validation)
        logs = load(Path(folder) / "pairs")
    if args.what == "steps":
        steps(logs["train"], args.seconds, args.methods.split(","))
    else:
        {"quality": quality, "curve": curve}[args.what](logs, args)


# ---------------------------------------------------------------- quality


class Run:
    """One model, its optimiser and batches, and the CPU seconds they took; or a fitted one, that took them at once."""

    def __init__(self, label: str, settings: dict, log: Log, seed: int):
        torch.manual_seed(seed)
        self.label, self.settings, self.seed = label, settings, seed
        own = {name: value for name, value in settings.items() if name not in TRAINING}
        start = time.process_time()
        self.model = build("recommend.retrieval", label.split()[0], log, **own)
        if label == "als":
            fit_als(self.model, log, seed=seed)
        self.seconds, self.epochs, self.best = time.process_time() - start, 0.0, -1.0
        if self.model.fitted:
            return
        trained = TRAINING | {name: value for name, value in settings.items() if name in TRAINING}
        self.pairs = Pairs(log, trained["batch"], self.model.negatives, seed)
        self.batches, self.optimizer = iter(self.pairs), self.model.optimizer(trained["rate"])

    def until(self, seconds: float) -> None:
        """Train until it has taken so many in all."""
        if self.model.fitted:
            return
        self.model.train()
        while self.seconds < seconds:
            start = time.process_time()
            self.optimizer.zero_grad()
            self.model(**next(self.batches))[0].backward()
            self.optimizer.step()
            self.model.after_step()
            self.seconds += time.process_time() - start
        self.epochs = self.pairs.step / len(self.pairs)
        self.model.eval()

    def advance(self, logs: dict, first: int, last: int, seconds: float) -> "Run":
        """Train through validations `first` to `last` of VALIDATIONS, unless it stops before; the best is kept."""
        for number in range(first, last + 1):
            if self.best >= 0 and (self.model.fitted or number > max(VALIDATIONS // 2, self.kept_at + PATIENCE)):
                break
            self.until(seconds * number / VALIDATIONS)
            found = validated(self.model, logs)
            if found > self.best:
                self.best, self.kept_at, self.kept = found, number, copy.deepcopy(self.model.state_dict())
                self.kept_seconds, self.kept_epochs = self.seconds, self.epochs
        return self

    def tested(self, logs: dict) -> dict:
        self.model.load_state_dict(self.kept)
        return judged(self.model, logs) | {
            "seconds": self.kept_seconds,
            "epochs": self.kept_epochs,
            "run": self.seconds,
        }


def quality(logs: dict, args: argparse.Namespace) -> None:
    print(f"{logs['train'].users} users, {logs['train'].items} items; pairs: "
          + ", ".join(f"{split} {len(log)}" for split, log in logs.items()))  # fmt: skip
    print("\n| method | width | Recall@20 | NDCG@20 | CPU seconds to the kept weights, of the run | epochs kept | "
          "chosen |\n|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
    for label in args.methods.split(","):
        best = searched(label, logs, args.seconds)
        reported(best, logs, args)
        if label in args.wide.split(","):
            settings = best.settings | {"width": WIDE[label]}
            wide = Run(label, settings, logs["train"], 0).advance(logs, 1, VALIDATIONS, args.seconds)
            if wide.best > best.best:
                reported(wide, logs, args)
            else:
                print(f"| {label} | {WIDE[label]} | validation {wide.best:.4f}, at {WIDTH} {best.best:.4f} ||||| ")


def searched(label: str, logs: dict, seconds: float) -> Run:
    """Seed 0's run of the settings that are best on validation after a sixth of the time."""
    model = method("recommend.retrieval", label.split()[0])
    width = {} if label in ("popularity", "item_knn") else {"width": WIDTH}
    names, values = list(GRID[label]), itertools.product(*GRID[label].values())
    found = None
    for each in values:
        run = Run(label, width | dict(zip(names, each, strict=True)), logs["train"], 0)
        run.advance(logs, 1, VALIDATIONS // 6, seconds)
        found = run if found is None or run.best > found.best else found
    return found if model.fitted else found.advance(logs, VALIDATIONS // 6 + 1, VALIDATIONS, seconds)


def reported(first: Run, logs: dict, args: argparse.Namespace) -> None:
    """A row: these settings with every seed."""
    found, drawn = [first.tested(logs)], first.label == "als" or not first.model.fitted
    for seed in range(1, args.seeds if drawn else 1):
        run = Run(first.label, first.settings, logs["train"], seed)
        found.append(run.advance(logs, 1, VALIDATIONS, args.seconds).tested(logs))
    mean = {name: statistics.mean(row[name] for row in found) for name in found[0]}
    spread = lambda name: (
        f"{mean[name]:.4f}"
        + (
            f" ({min(row[name] for row in found):.4f} to {max(row[name] for row in found):.4f})"
            if len(found) > 1
            else ""
        )
    )
    chosen = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in first.settings.items()
                       if k not in ("width", "encoder"))  # fmt: skip
    print(f"| {first.label} | {first.settings.get('width', '')} | {spread('recall@20')} | {spread('ndcg@20')} | "
          f"{mean['seconds']:.1f}, {mean['run']:.1f} | {mean['epochs']:.1f} | {chosen} |", flush=True)  # fmt: skip
    if args.out:
        with args.out.open("a") as file:
            for seed, row in enumerate(found):
                known = {"data": args.folder.name, "method": first.label, "seed": seed, "settings": first.settings}
                file.write(json.dumps(known | {"validation": first.best} | row) + "\n")


def validated(model: nn.Module, logs: dict) -> float:
    """NDCG@20 on the validation split, of at most VALIDATED users, always the same."""
    users = logs["val"].user_degree.nonzero().flatten()
    users = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(0))[:VALIDATED]].sort().values
    return means(model, users, logs["train"], logs["val"])["ndcg@20"]


def judged(model: nn.Module, logs: dict) -> dict[str, float]:
    """Recall and NDCG on the test split."""
    seen = logs["train"]
    if logs["val"] is not None:  # what was validated on is not recommended either
        both = [torch.cat([getattr(logs[split], part) for split in ("train", "val")]) for part in ("user", "item")]
        seen = Log.of(*both, seen.users, seen.items)
    return means(model, None, seen, logs["test"])


def means(model: nn.Module, users: Tensor | None, seen: Log, truth: Log) -> dict[str, float]:
    found = rank(model.vectors() if model.product else model.score, users, seen, truth, at=(20,)).metrics
    return {name: found[name].double().mean().item() for name in ("recall@20", "ndcg@20")}


# ---------------------------------------------------------------- curve


def curve(logs: dict, args: argparse.Namespace) -> None:
    print("| method | seed | CPU seconds | epochs | Recall@20 | NDCG@20 |\n|---|---|---|---|---|---|", flush=True)
    for label in args.methods.split(","):
        for seed in range(args.seeds):
            run, due = Run(label, args.settings.get(label, {}), logs["train"], seed), args.seconds / 16
            while True:
                run.until(min(due, args.seconds))
                row = {"seconds": run.seconds, "epochs": run.epochs} | judged(run.model, logs)
                print(f"| {label} | {seed} | {row['seconds']:.1f} | {row['epochs']:.2f} | {row['recall@20']:.4f} | "
                      f"{row['ndcg@20']:.4f} |", flush=True)  # fmt: skip
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps({"data": args.folder.name, "method": label, "seed": seed} | row) + "\n")
                if due >= args.seconds or run.model.fitted:
                    break
                due *= 2
            if run.model.fitted and label != "als":
                break  # no draw in it


if __name__ == "__main__":
    main()
