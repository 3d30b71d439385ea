"""RecDCL: a training step against the published code's design, equal losses, CPU seconds side by side.

    python benchmarks/recdcl_step.py SEQUENCES [--widths 64 256 2048] [--steps 3] [--rounds 3]

SEQUENCES is a Parquet file with columns user and items (a list), such as the Beauty log's. The published design: the
whole graph is propagated as a COO product, its layers stacked and averaged; both histories are cloned whole; the
projector runs four times; all D x D matrices are formed; plain Adam. Both sides start from the same numbers, take the
same steps in turn, one thread, and must have equal losses. A step is forward, backward and Adam. A fixed matrix product
is timed before and after, to show how steady the machine was.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.recommend.retrieval._log import Log
from models.recommend.retrieval.recdcl import RecDCL

SETTINGS = {"layers": 2, "beta": 5.0, "tau": 0.1}  # the paper's for Beauty
BATCH, DECAY = 256, 1e-7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sequences")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 2048])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    log = read(given.sequences)
    print(f"{log.users:,} users, {log.items:,} items, {len(log):,} pairs; batch {BATCH}; torch {torch.__version__}")
    print("\n| width | published design, CPU s a step | ours | ratio (least to greatest) | relative difference of the "
          "losses: first step, largest | fixed product before, after, ms |\n|---|---|---|---|---|---|")  # fmt: skip
    for width in given.widths:
        print(measure(log, width, given.steps, given.rounds), flush=True)


def read(path: str) -> Log:
    pairs = pl.read_parquet(path).explode("items").select(pl.all().cast(pl.Int64).rank("dense") - 1)
    return Log.of(torch.from_numpy(pairs["user"].to_numpy().copy()).long(),
                  torch.from_numpy(pairs["items"].to_numpy().copy()).long())  # fmt: skip


def measure(log: Log, width: int, steps: int, rounds: int) -> str:
    torch.manual_seed(0)
    ours = RecDCL(log, width, **SETTINGS).train()
    theirs = Published(ours, log)
    sides = {
        "theirs": (theirs, torch.optim.Adam(theirs.parameters(), lr=1e-3, weight_decay=DECAY)),
        "ours": (ours, torch.optim.Adam(ours.parameters(), lr=1e-3, weight_decay=DECAY, fused=True)),
    }
    draw = torch.Generator().manual_seed(1)
    before, apart, seconds = product(), [], {"theirs": [], "ours": []}
    for turn in range(rounds + 1):
        batches = [torch.randint(len(log), (BATCH,), generator=draw) for _ in range(steps if turn else 1)]
        losses = {}
        for name in ("theirs", "ours") if turn % 2 else ("ours", "theirs"):
            start = time.process_time()
            losses[name] = [step(*sides[name], log.user[batch], log.item[batch]) for batch in batches]
            seconds[name].append((time.process_time() - start) / len(batches))
        apart += [abs(a - b) / abs(a) for a, b in zip(losses["theirs"], losses["ours"], strict=True)]
    old, new = seconds["theirs"][1:], seconds["ours"][1:]  # the first round makes Adam's state
    ratios = [a / b for a, b in zip(old, new, strict=True)]
    return (f"| {width} | {statistics.median(old):.4f} | {statistics.median(new):.4f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
            f"{apart[0]:.1e}, {max(apart):.1e} | {before:.1f}, {product():.1f} |")  # fmt: skip


def step(model: nn.Module, optimizer: torch.optim.Optimizer, user: Tensor, item: Tensor) -> float:
    optimizer.zero_grad()
    loss, _ = model(user, item)
    loss.backward()
    optimizer.step()
    return loss.item()


def product() -> float:
    """Milliseconds of a fixed matrix product."""
    x, taken = torch.ones(1024, 1024), []
    for _ in range(5):
        start = time.process_time()
        x @ x
        taken.append(1000 * (time.process_time() - start))
    return statistics.median(taken)


class Published(nn.Module):
    """The published code's design, from its description: same loss, whole tables every step."""

    def __init__(self, model: RecDCL, log: Log):
        super().__init__()
        dim, self.log = model.encoder.table.shape[1], log
        users, items = model.encoder.split(model.encoder.table.detach())
        self.user, self.item = (nn.Embedding.from_pretrained(part.clone(), freeze=False) for part in (users, items))
        self.projector = nn.Sequential(
            nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False),
        )  # fmt: skip
        for place, linear in zip((0, 3, 6), model.projector.linears, strict=True):
            self.projector[place].weight.data.copy_(linear.weight)
        self.bn = nn.BatchNorm1d(dim, affine=False)
        self.predictor = nn.Linear(dim, dim)
        self.predictor.load_state_dict(model.predictor.state_dict())
        self.user_last, self.item_last = model.user_history.last.clone(), model.item_history.last.clone()
        degree = torch.cat([log.user_degree, log.item_degree]).clamp(min=1).float().rsqrt()
        row, column = torch.cat([log.user, log.item + log.users]), torch.cat([log.item + log.users, log.user])
        size = log.users + log.items
        self.graph = torch.sparse_coo_tensor(torch.stack([row, column]), degree[row] * degree[column], (size, size))
        self.graph = self.graph.coalesce()
        self.layers, self.tau = model.encoder.layers, model.tau
        self.gamma, self.alpha, self.beta = model.gamma, model.alpha, model.beta

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor, dict]:
        layer = torch.cat([self.user.weight, self.item.weight])
        kept = [layer]
        for _ in range(self.layers):
            layer = torch.sparse.mm(self.graph, layer)
            kept.append(layer)
        users, items = torch.stack(kept, 1).mean(1).split([self.log.users, self.log.items])
        e_u, e_i = users[user], items[item]
        with torch.no_grad():
            t_u = self.user_last.clone()[user] * self.tau + e_u * (1 - self.tau)
            t_i = self.item_last.clone()[item] * self.tau + e_i * (1 - self.tau)
            self.user_last[user], self.item_last[item] = e_u.clone(), e_i.clone()
        unit_u, unit_i = F.normalize(e_u, dim=-1), F.normalize(e_i, dim=-1)
        cosine = lambda h, t: F.cosine_similarity(h, t, dim=-1).mean() / 2
        loss = self.cross(unit_u, unit_i) + self.alpha * (self.kernel(unit_u) + self.kernel(unit_i)) / 2
        return loss - self.beta * (cosine(self.predictor(e_u), t_i) + cosine(self.predictor(e_i), t_u)), {}

    def cross(self, u: Tensor, i: Tensor) -> Tensor:
        c = self.bn(self.projector(u)).T @ self.bn(self.projector(i)) / len(u)
        width = len(c)
        off = c.flatten()[:-1].view(width - 1, width + 1)[:, 1:].flatten()
        return (c.diagonal() - 1).pow(2).sum() / width + self.gamma * off.pow(2).sum() / width

    def kernel(self, x: Tensor) -> Tensor:
        projected = self.projector(x)
        return ((self.bn(projected).T @ self.bn(projected) + 1e-7) ** 4).mean().log()


if __name__ == "__main__":
    main()
