"""Full ranking with exact masks and metrics: users per CPU second, beside a bare product and the usual ways.

    python benchmarks/ranking.py FOLDER [--width 64] [--users 4096] [--repeats 5] [--vectors als|random]

FOLDER holds a log of users and items (see tasks/datasets/interactions.py), such as shared/data/graph/gowalla. One
thread, user and system time, all ways in turn within each repeat, K = 50. Fixed matrix products before and after tell
how busy the machine was.

    product    u V^T in float32 and nothing else
    ours       models/recommend/_ranking.py with its defaults: lists, masks, 15 metrics per user
    ours f32   the same with float32 for the rough product
    plain      product, seen items to -inf, torch.topk; recall and NDCG at 10, 20 and 50
    implicit   its own recommend() of 50 items, seen ones filtered, without metrics
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import build
from models.recommend._ranking import rank
from models.recommend.retrieval._log import Log
from tasks.als import fit_als
from tasks.datasets import interactions as dataset
from tasks.interactions import interactions, load

AT = (10, 20, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, value in {"width": 64, "users": 4096, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--vectors", choices=("als", "random"), default="als")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        interactions(dataset.read(args.folder), Path(folder) / "pairs")
        logs = load(Path(folder) / "pairs")
    train, truth = logs["train"], logs["test"]
    vectors = made(train, args.width, args.vectors)
    users = truth.user_degree.nonzero().flatten()[: args.users]
    print(f"{train.users} users, {train.items} items, {len(train)} pairs; {len(users)} users ranked, width "
          f"{args.width}, {args.vectors} vectors")  # fmt: skip
    ways = {
        "product": lambda: bare(vectors, users),
        "ours": lambda: rank(vectors, users, train, truth, AT),
        "ours f32": lambda: rank(vectors, users, train, truth, AT, rough=torch.float32),
        "plain": lambda: plain(vectors, users, train, truth),
        "implicit": library(vectors, users, train),
    }
    before = pace()
    rates = {name: [] for name in ways}
    for repeat in range(args.repeats + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if repeat:  # the first round warms the caches
                rates[name].append(len(users) / (time.process_time() - start))
    print(f"fixed products: {before:.1f} and {pace():.1f} GFLOP/s\n")
    print("| way | users per CPU second | range | over product |\n|---|---|---|---|")
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, rates["product"], strict=True))
        print(f"| {name} | {statistics.median(found):,.0f} | {min(found):,.0f} to {max(found):,.0f} | {ratio:.2f} |")
    print(f"\n{compared(vectors, users, train, truth)}")


def made(train: Log, width: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    if kind == "random":
        draw = torch.Generator().manual_seed(0)
        return torch.randn(train.users, width, generator=draw), torch.randn(train.items, width, generator=draw)
    model = build("recommend.retrieval", "als", train, width=width)
    fit_als(model, train, iterations=5)
    return model.vectors()


def bare(vectors, users) -> None:
    out = torch.empty(128, len(vectors[1]))
    for part in users.split(128):
        torch.mm(vectors[0][part], vectors[1].mT, out=out[: len(part)])


def plain(vectors, users, train: Log, truth: Log) -> tuple[torch.Tensor, torch.Tensor]:
    lists, sums = [], torch.zeros(6)
    discount = 1 / torch.arange(2, 52).log2()
    for part in users.split(128):
        score = vectors[0][part] @ vectors[1].mT
        score[train.of_users(part)] = -torch.inf
        best = score.topk(50).indices
        true = torch.zeros_like(score, dtype=torch.bool)
        true[truth.of_users(part)] = True
        hit, count = true.gather(1, best).float(), true.sum(1)
        for place, k in enumerate(AT):
            ideal = discount.cumsum(0)[count.clamp(max=k) - 1]
            sums[place] += (hit[:, :k].sum(1) / count).sum()
            sums[3 + place] += (hit[:, :k] @ discount[:k] / ideal).sum()
        lists.append(best)
    return torch.cat(lists), sums / len(users)


def library(vectors, users, train: Log):
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    model = AlternatingLeastSquares(factors=vectors[0].shape[1], num_threads=1)
    model.user_factors, model.item_factors = (part.numpy() for part in vectors)
    pairs = np.ones(len(train), np.float32), train.item.numpy(), train.starts.numpy()
    chosen, seen = users.numpy(), csr_matrix(pairs, (train.users, train.items))[users.numpy()]
    return lambda: model.recommend(chosen, seen, N=50, filter_already_liked_items=True)


def compared(vectors, users, train: Log, truth: Log) -> str:
    """How far our lists and metrics are from the plain ones."""
    ours, (lists, means) = rank(vectors, users, train, truth, AT), plain(vectors, users, train, truth)
    found = torch.stack([ours.metrics[f"{name}@{k}"].mean() for name in ("recall", "ndcg") for k in AT])
    other = (ours.items != lists).any(1)
    return (f"lists that differ from the plain ones, by rounding or ties: {int(other.sum())} of {len(users)}; "
            f"largest difference of a mean metric: {(found - means).abs().max():.1e}")  # fmt: skip


def pace(seconds: float = 1.0) -> float:
    a = torch.randn(1024, 1024)
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        a @ a
        count += 1
    return count * 2 * 1024**3 / (time.process_time() - start) / 1e9


if __name__ == "__main__":
    main()
