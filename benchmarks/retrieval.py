"""Retrieval models: training steps beside the usual designs, and quality against CPU seconds.

    python benchmarks/retrieval.py steps FOLDER [--seconds 10]
    python benchmarks/retrieval.py quality FOLDER [--methods als,bpr,lightgcn] [--seconds 60] [--seeds 1] [--out FILE]

FOLDER holds a log of users and items (see tasks/datasets/interactions.py). One thread; user and system time.

`steps`: width 64, batch 2,048, one negative, the same batches for both sides, which take turns of five steps; fixed
matrix products before and after tell how busy the machine was. The designs it is compared with are written here from
their publications: LightGCN with COO products that autograd differentiates, BPR-MF with dense gradients, both with
torch's Adam as it is by default; and once more with our side's fused Adam, so that the rest can be seen alone.

`quality`: each method trains for so many CPU seconds of its own, fitting included, and is ranked on the test split at
growing intervals; what ranking costs does not count. The last row of a method is its result: the best of a curve would
be chosen on the test.
"""

import argparse
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
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.ranking import pace
from models import build, method, names
from models.recommend._ranking import rank
from models.recommend.retrieval._graph import Graph
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._sampling import Pairs
from tasks.als import fit_als
from tasks.datasets import interactions as dataset
from tasks.interactions import interactions, load

TURN = 5  # steps of one side before the other's
# Learning rate and batch of each method where they are not 1e-3 and 2,048.
TRAINING = {"recdcl": (1e-3, 256), "cml": (1e-3, 2048)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("steps", "quality"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60, help="for each pair of sides, or for each method and seed")
    parser.add_argument("--methods", default=",".join(names("recommend.retrieval")))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--settings", type=json.loads, default={}, help='{"lightgcn": {"layers": 2}}')
    parser.add_argument("--training", type=json.loads, default={}, help='{"lightgcn": [0.005, 4096]}: rate and batch')
    parser.add_argument("--out", type=Path, help="rows are added to this file of JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        interactions(dataset.read(args.folder), Path(folder) / "pairs")
        logs = load(Path(folder) / "pairs")
    steps(logs["train"], args.seconds, args.methods.split(",")) if args.what == "steps" else quality(logs, args)


# ---------------------------------------------------------------- steps


class CooLightGCN(nn.Module):
    """The design of LightGCN's PyTorch code: a COO product a layer, layers stacked, gradients by autograd."""

    def __init__(self, ours: nn.Module, log: Log):
        super().__init__()
        self.layers, self.penalty, self.users = ours.layers, ours.penalty, log.users
        self.user = nn.Parameter(ours.table.detach()[: log.users].clone())
        self.item = nn.Parameter(ours.table.detach()[log.users :].clone())
        node = torch.cat([log.user, log.item + log.users]), torch.cat([log.item + log.users, log.user])
        root = node[0].bincount(minlength=log.users + log.items).float().rsqrt()
        size = (log.users + log.items,) * 2
        self.a = torch.sparse_coo_tensor(torch.stack(node), root[node[0]] * root[node[1]], size).coalesce()

    def forward(self, user: Tensor, item: Tensor, negative: Tensor) -> tuple[Tensor, dict]:
        every = [torch.cat([self.user, self.item])]
        for _ in range(self.layers):
            every.append(torch.sparse.mm(self.a, every[-1]))
        users, items = torch.stack(every, 1).mean(1).split([self.users, len(self.item)])
        negative = negative.flatten()
        seen, unseen = (users[user] * items[item]).sum(1), (users[user] * items[negative]).sum(1)
        own = self.user[user], self.item[item], self.item[negative]
        penalty = sum(part.norm(2).pow(2) for part in own) / 2 / len(user)
        return F.softplus(unseen - seen).mean() + self.penalty * penalty, {}


class DenseBPR(nn.Module):
    """The design of RecBole's BPR: two embeddings with dense gradients."""

    def __init__(self, ours: nn.Module, log: Log):
        super().__init__()
        self.user = nn.Embedding.from_pretrained(ours.user.detach().clone(), freeze=False)
        self.item = nn.Embedding.from_pretrained(ours.item.detach().clone(), freeze=False)

    def forward(self, user: Tensor, item: Tensor, negative: Tensor) -> tuple[Tensor, dict]:
        e = self.user(user)
        gap = (e * self.item(item)).sum(1) - (e * self.item(negative.flatten())).sum(1)
        return -torch.log(1e-10 + torch.sigmoid(gap)).mean(), {}


def steps(log: Log, seconds: float, chosen: list[str]) -> None:
    took, memory = graph_cost(log)
    print(f"{log.users} users, {log.items} items, {len(log)} pairs\n\nThe normalised graph: {took:.2f} CPU seconds, "
          f"{memory:.2f} GiB on top of the log")  # fmt: skip
    before = pace()
    print("\n| ours | beside | steps per CPU second | theirs | ours / theirs | range | gradients differ by |")
    print("|---|---|---|---|---|---|---|")
    plain = lambda model: torch.optim.Adam(model.parameters(), 1e-3)
    fused = lambda model: torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    rows = [
        ("lightgcn", {}, CooLightGCN, plain, "COO products, Adam"),
        ("lightgcn", {}, CooLightGCN, fused, "COO products, fused Adam"),
        ("bpr", {"penalty": 0.0}, DenseBPR, plain, "dense, Adam"),
        ("bpr", {"penalty": 0.0}, DenseBPR, fused, "dense, fused Adam"),
        ("bpr", {"penalty": 0.0, "update": "lazy"}, DenseBPR, plain, "dense, Adam"),
    ]
    for name, settings, design, optimizer, words in (row for row in rows if row[0] in chosen):
        torch.manual_seed(0)
        ours = build("recommend.retrieval", name, log, **settings)
        theirs = design(ours, log)
        lazy = ", lazy Adam (another algorithm)" if settings.get("update") == "lazy" else ""
        speeds, gap = race(log, (ours, ours.optimizer(1e-3)), (theirs, optimizer(theirs)), seconds, not lazy)
        ratios = [a / b for a, b in speeds]
        a, b = (statistics.median(side) for side in zip(*speeds, strict=True))
        print(f"| {name}{lazy} | {words} | {a:.1f} | {b:.1f} | **{statistics.median(ratios):.2f}** | "
              f"{min(ratios):.2f} to {max(ratios):.2f} | {gap:.1e} |", flush=True)  # fmt: skip
    print(f"\nfixed products: {before:.1f} and {pace():.1f} GFLOP/s; drawing a batch with its negatives: "
          f"{drawing(log) * 1e3:.1f} CPU milliseconds, in none of the rates")  # fmt: skip


def race(log: Log, ours, theirs, seconds: float, equal: bool) -> tuple[list[tuple[float, float]], float]:
    """(ours, theirs) steps per CPU second, turn by turn; and how far the gradients of the first batch are apart.

    Raises:
        AssertionError: they differ by more than rounding.
    """
    speeds, batches, spent = [], iter(Pairs(log, 2048, 1)), 0.0
    gap = apart(ours[0], theirs[0], next(batches))
    assert not equal or gap < 1e-5, f"the two sides are not the same computation: gradients differ by {gap}"
    while spent < seconds or len(speeds) < 4:
        turn, rates = [next(batches) for _ in range(TURN)], []
        for model, optimizer in (ours, theirs):
            start = time.process_time()
            for batch in turn:
                optimizer.zero_grad()
                model(**batch)[0].backward()
                optimizer.step()
            took = time.process_time() - start
            spent += took
            rates.append(TURN / took)
        speeds.append(tuple(rates))
    return speeds[1:], gap  # the first turn allocates


def apart(ours: nn.Module, theirs: nn.Module, batch: dict) -> float:
    """Norm of the difference of the two sides' gradients, over the norm."""
    grads = []
    for model in (ours, theirs):
        model(**batch)[0].backward()
        grads.append(torch.cat([parameter.grad.to_dense() for parameter in model.parameters()]))
        model.zero_grad()
    return ((grads[0] - grads[1]).norm() / grads[1].norm()).item()


def graph_cost(log: Log) -> tuple[float, float]:
    """CPU seconds, and GiB of memory at the peak above what was there before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    held, start = memory("VmRSS"), time.process_time()
    graph = Graph(log)
    took = time.process_time() - start
    assert graph.nodes == log.users + log.items
    return took, (memory("VmHWM") - held) / 2**20


def memory(what: str) -> int:
    """KiB."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if what in line).split()[1])


def drawing(log: Log, count: int = 20) -> float:
    batches = iter(Pairs(log, 2048, 1))
    next(batches)
    start = time.process_time()
    for _ in range(count):
        next(batches)
    return (time.process_time() - start) / count


# ---------------------------------------------------------------- quality


def quality(logs: dict, args: argparse.Namespace) -> None:
    print("| method | seed | CPU seconds | epochs | Recall@20 | NDCG@20 |\n|---|---|---|---|---|---|")
    for name in args.methods.split(","):
        for seed in range(args.seeds):
            for row in trained(name, logs, seed, args):
                print(f"| {name} | {seed} | {row['seconds']:.1f} | {row['epochs']:.2f} | {row['recall@20']:.4f} | "
                      f"{row['ndcg@20']:.4f} |", flush=True)  # fmt: skip
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps({"method": name, "seed": seed, "data": args.folder.name} | row) + "\n")
            if method("recommend.retrieval", name).fitted and name != "als":
                break  # no draw in it


def trained(name: str, logs: dict, seed: int, args: argparse.Namespace):
    """Rows of one method's curve."""
    torch.manual_seed(seed)
    start = time.process_time()
    model = build("recommend.retrieval", name, logs["train"], **args.settings.get(name, {}))
    if name == "als":
        fit_als(model, logs["train"], seed=seed)
    spent = time.process_time() - start
    if model.fitted:
        yield {"seconds": spent, "epochs": 0.0} | judged(model, logs)
        return
    rate, batch = args.training.get(name) or TRAINING.get(name, (1e-3, 2048))
    pairs, optimizer, due = Pairs(logs["train"], batch, model.negatives, seed), model.optimizer(rate), args.seconds / 16
    batches = iter(pairs)
    while spent < args.seconds:
        start = time.process_time()
        optimizer.zero_grad()
        loss, _ = model.train()(**next(batches))
        loss.backward()
        optimizer.step()
        model.after_step()
        spent += time.process_time() - start
        if spent >= min(due, args.seconds):
            due *= 2
            yield {"seconds": spent, "epochs": pairs.step / len(pairs)} | judged(model.eval(), logs)


def judged(model: nn.Module, logs: dict) -> dict[str, float]:
    seen = logs["train"]
    if logs["val"] is not None:  # what was validated on is not recommended either
        both = [torch.cat([getattr(logs[split], part) for split in ("train", "val")]) for part in ("user", "item")]
        seen = Log.of(*both, seen.users, seen.items)
    found = rank(model.vectors() if model.product else model.score, None, seen, logs["test"], at=(20,)).metrics
    return {name: found[name].double().mean().item() for name in ("recall@20", "ndcg@20")}


if __name__ == "__main__":
    main()
