"""Does a student that sees no positions undo what they did to the clicks? A world of known relevance, then real clicks.

    python benchmarks/position_bias.py --data DATA [--seeds 3] [--out FILE.md]

World: a ranker with prejudices fills 8 places from 60 items for visitors of 6 kinds; a click needs an item to be seen,
with chance place^-eta, and to be relevant. Scores are compared with the true relevance by Kendall's tau. DATA holds
random.parquet and bts.parquet of the Open Bandit Dataset's women's campaign (3 places): learned of one log, judged on
the other. The click model is a DeepFM throughout, with equal sizes, steps and seeds; nothing was tuned.
"""

import argparse
import sys
import time
from pathlib import Path

import polars as pl
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from quality import spread

from models import build
from models.fit import fit
from models.metrics import auc, paired_bootstrap
from models.recommend.ctr._ctr import click_loss
from models.recommend.ctr._position import ipw_weight, pal_logit, pauc
from tasks.bandit import Columns, Encoder
from tasks.files import write_text
from tasks.training import use_threads

KINDS, ITEMS, PLACES, LISTS = 6, 60, 8, 2000
CLICK_MODEL = {"embedding": 8, "method": "deepfm", "settings": {"deep": [16], "dropout": 0.0}}
CONTEXT = ["user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3", "user_item_affinity"]
COLUMNS = {"action": "item_id", "propensity": "propensity_score", "reward": ["click"], "context": CONTEXT}
PLAIN, SAMPLES = "plain click model", 1000
WAYS = {
    PLAIN: {"kind": "plain"},
    "the place as a feature, place 1 when served": {"kind": "feature"},
    "PAL": {"kind": "pal"},
    "IPW": {"kind": "ipw"},
    "distilled, factual": {"teach": "factual"},
    "distilled, counterfactual": {},
    "distilled, counterfactual, alpha 1": {"alpha": 1.0},
}


class Corrected(nn.Module):
    """A click model with a classic correction, or none."""

    def __init__(self, kind: str, sizes: list[int], dense: int, theta: Tensor):
        super().__init__()
        fields = [*sizes, len(theta) + 1] if kind == "feature" else sizes
        self.net = build("recommend.ctr", "deepfm", fields, dense, CLICK_MODEL["embedding"], **CLICK_MODEL["settings"])
        self.seen = nn.Parameter(torch.zeros(len(theta)))
        self.kind, self.theta = kind, theta

    def forward(self, categorical: Tensor, numerical: Tensor, position: Tensor, label: Tensor):
        told = torch.cat([categorical, position[:, None]], 1) if self.kind == "feature" else categorical
        logit = self.net.logits(told, numerical)
        if self.kind == "ipw":  # of the clicks only: what was not seen may be relevant
            loss = (F.softplus(logit) - label * ipw_weight(position, self.theta) * logit).mean()
        else:
            loss = click_loss(pal_logit(logit, self.seen[position - 1]) if self.kind == "pal" else logit, label)
        return loss, {"loss": loss}

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        if self.kind == "feature":
            categorical = torch.cat([categorical, torch.ones_like(categorical[:, :1])], 1)
        return self.net.logits(categorical, numerical)


def learned(way: str, data: dict[str, Tensor], sizes: list[int], theta: Tensor, epochs: int, seed: int) -> nn.Module:
    """A model of a log: `categorical`, `numerical`, `position` from 1, `label`."""
    torch.manual_seed(seed)
    told, dense = WAYS[way], data["numerical"].shape[1]
    if "kind" in told:
        model = Corrected(told["kind"], sizes, dense, theta)
    else:
        model = build("recommend.ctr", "position_bias", sizes, dense, positions=len(theta), **CLICK_MODEL, **told)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    draw = torch.Generator().manual_seed(seed)
    batches = ({name: value[rows] for name, value in data.items()} for _ in range(epochs)
               for rows in torch.randperm(len(data["label"]), generator=draw).split(500))  # fmt: skip
    for _ in fit(model.train(), batches, optimizer):
        pass
    return model.eval()


def world(eta: float, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """A log, and the relevance of each item for each kind of visitor (KINDS, ITEMS)."""
    draw = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=draw)
    relevance = (random(ITEMS) + 0.7 * random(KINDS, ITEMS) - 2).sigmoid()
    kind = torch.randint(KINDS, (LISTS, 1), generator=draw)
    shown = torch.rand(LISTS, ITEMS, generator=draw).topk(PLACES).indices
    liked = (relevance + 0.2 * random(ITEMS))[kind, shown] + 0.1 * random(LISTS, PLACES)  # 0.2: prejudice
    item = shown.gather(1, liked.argsort(1, descending=True))
    place = torch.arange(1, PLACES + 1).expand_as(item)
    click = torch.rand(item.shape, generator=draw) < relevance[kind, item] * place.float() ** -eta
    rows = torch.stack([kind.expand_as(item).flatten(), item.flatten()], 1)
    none = torch.zeros(len(rows), 0)
    return {
        "categorical": rows,
        "numerical": none,
        "position": place.flatten(),
        "label": click.float().flatten(),
    }, relevance


def order(model: nn.Module, relevance: Tensor) -> float:
    """Mean over kinds of Kendall's tau of the scores of all items with their relevance."""
    rows = torch.cartesian_prod(torch.arange(KINDS), torch.arange(ITEMS))
    with torch.no_grad():
        score = model.logits(rows, torch.zeros(len(rows), 0)).view(KINDS, ITEMS)
    return sum(kendalltau(*pair).statistic for pair in zip(score.numpy(), relevance.numpy(), strict=True)) / KINDS


def simulated(seeds: int) -> list[str]:
    theta = lambda eta: torch.arange(1, PLACES + 1).float() ** -eta
    etas = (1.0, 0.0)
    lines = ["| | tau, eta 1 | minus plain | tau, eta 0 | minus plain |", "|---|---:|---:|---:|---:|"]
    found: dict[tuple, list[float]] = {}
    for eta in etas:
        for seed in range(seeds):
            data, relevance = world(eta, seed)
            for way in WAYS:
                model = learned(way, data, [KINDS, ITEMS], theta(eta), 4, seed)
                found.setdefault((way, eta), []).append(order(model, relevance))
    for way in WAYS:
        cells = []
        for eta in etas:
            gap = [own - base for own, base in zip(found[way, eta], found[PLAIN, eta], strict=True)]
            cells += [spread(found[way, eta]), spread(gap) if way != PLAIN else "-"]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def logged(folder: Path, name: str, encoder: Encoder | None) -> tuple[dict[str, Tensor], Encoder]:
    """A log's impressions, encoded as those of the encoder's own log."""
    frame = pl.read_parquet(folder / f"{name}.parquet")
    encoder = encoder or Encoder.of(frame, Columns.of(COLUMNS))
    item = frame["item_id"].replace_strict(encoder.actions, range(1, len(encoder.actions) + 1), default=0)
    told = {"categorical": item, "position": frame["position"], "label": frame["click"].cast(pl.Float32)}
    data = {key: torch.from_numpy(value.to_numpy().copy()) for key, value in told.items()}
    return data | {"categorical": data["categorical"].long()[:, None], "numerical": encoder.context(frame)}, encoder


def real(folder: Path, seeds: int) -> list[str]:
    lines = []
    for train, test in (("bts", "random"), ("random", "bts")):
        data, encoder = logged(folder, train, None)
        asked, _ = logged(folder, test, encoder)
        clicks, shown = (data["position"].bincount(weights, minlength=4)[1:] for weights in (data["label"], None))
        theta = (clicks + 1) / shown  # of so few clicks: never 0
        theta = theta / theta.max()
        places = ", ".join(f"{each:.0f}" for each in clicks.tolist())
        learn_from, judge_on = (f"{log} ({int(each['label'].sum())} clicks" for log, each in
                                ((train, data), (test, asked)))  # fmt: skip
        lines += ["", f"Learned of {learn_from}; by place {places}), judged on {judge_on}):", "",
                  "| | AUC | minus plain, 95 % of resampled rows | AUC inside places | AUC of seeds |",
                  "|---|---:|---:|---:|---|"]  # fmt: skip
        base = None
        for way in WAYS:
            scores = []
            for seed in range(seeds):
                model = learned(way, data, [len(encoder.actions) + 1], theta, 3, seed)
                with torch.no_grad():
                    scores.append(model.logits(asked["categorical"], asked["numerical"]).sigmoid())
            score = torch.stack(scores).mean(0)  # one seed of 46 clicks is mostly its seed
            base = score if base is None else base
            gap = paired_bootstrap(score, base, asked["label"], "auc", torch.arange(len(score)), SAMPLES)
            each = ", ".join(f"{auc(one, asked['label']).item():.3f}" for one in scores)
            inside = pauc(score, asked["label"], asked["position"]).item()
            told = "-" if way == PLAIN else f"{gap.difference:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
            lines.append(f"| {way} | {auc(score, asked['label']).item():.3f} | {told} | {inside:.3f} | {each} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    use_threads()
    started = time.process_time()
    parts = [f"### A world with known relevance: {LISTS * PLACES:,} impressions, {given.seeds} seeds", ""]
    parts += simulated(given.seeds)
    parts += ["", "### Open Bandit Dataset, women's campaign: 10,000 impressions a log"]
    parts += real(given.data, given.seeds)
    parts += ["", f"{time.process_time() - started:.0f} CPU s", ""]
    print("\n".join(parts))
    if given.out:
        write_text(given.out, "\n".join(parts))


if __name__ == "__main__":
    main()
