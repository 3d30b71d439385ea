"""Training steps of retrieval models, one by one beside the usual designs."""

import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ranking import pace
from models import build
from models.recommend.retrieval._graph import Graph
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._sampling import Pairs

__all__ = ["steps"]

TURN = 5  # steps of one side before the other's


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
