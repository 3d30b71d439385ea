"""How the models of the MerRec benchmark are judged: metrics with intervals over users, milliseconds, floors."""

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from models.metrics import logloss, paired_bootstrap
from models.recommend._ranking import rank
from models.recommend._summary import compare
from models.recommend.retrieval._log import Log
from models.recommend.session._session import left
from models.recommend.session.mercatran import group_scores
from tasks.sequences import UNKNOWN, Cases, Sequences

__all__ = ["Floor", "Value", "latency", "of_ranking", "of_scores", "of_steps", "of_values"]

Value = dict[str, float]  # value, low, high
AT = (5, 20)
SAMPLES = 400  # of every bootstrap


class Floor:
    """What any session model must beat, without training: popular items, or items of the same sessions.

    popularity  how often an item stands in the training windows
    item_knn    sum over the history of the cosine of items' sessions; Sarwar et al., 2001, doi:10.1145/371920.372071
    """

    def __init__(self, kind: str, windows: np.ndarray, items: int):
        from scipy.sparse import csr_matrix, diags

        self.items = items
        row, place = windows.nonzero()
        seen = csr_matrix((np.ones(len(row), np.float32), (row, windows[row, place])), (len(windows), items + 1))
        seen.data[:] = 1.0  # twice in a window is once
        degree = np.asarray(seen.sum(0)).ravel()
        self.degree = torch.from_numpy(degree)
        self.near = None
        if kind == "item_knn":
            scaled = seen @ diags(1 / np.sqrt(np.maximum(degree, 1)))
            self.near = (scaled.T @ scaled).tolil()
            self.near.setdiag(0)  # an item is no neighbour of itself
            self.near = self.near.tocsr()

    def score(self, items: Tensor) -> Tensor:
        """(B, T) -> (B, I + 1)."""
        if self.near is None:
            return self.degree.expand(len(items), -1).clone()
        from scipy.sparse import csr_matrix

        row, place = np.nonzero(items.numpy())
        history = csr_matrix(
            (np.ones(len(row), np.float32), (row, items.numpy()[row, place])), (len(items), self.items + 1)
        )
        return torch.from_numpy(np.asarray((history @ self.near).todense())) + 1e-9 * self.degree  # ties: the popular


def of_scores(score: Tensor, label: Tensor, user: Tensor) -> dict[str, Value]:
    """AUC and logloss of probabilities, users resampled."""
    flat = torch.zeros_like(score)  # its AUC is 1/2 under any weights
    gain = paired_bootstrap(score, flat, label, "auc", user, SAMPLES)
    against = paired_bootstrap(score, flat + label.mean(), label, "logloss", user, SAMPLES)
    base = float(logloss(flat + label.mean(), label))
    return {
        "AUC": dict(zip(("value", "low", "high"), (0.5 + part for part in gain), strict=True)),
        # The interval is that of the difference to the best constant, whose own loss no model can change.
        "logloss": dict(zip(("value", "low", "high"), (base + part for part in against), strict=True)),
    }


def of_values(value: Tensor, user: Tensor) -> Value:
    """Mean over users of the mean of their cases, users resampled."""
    _, place = user.unique(return_inverse=True)
    mean = (
        torch.zeros(int(place.max()) + 1, dtype=torch.float64).index_add_(0, place, value.double()) / place.bincount()
    )
    return dict(zip(("value", "low", "high"), compare(mean, torch.zeros_like(mean), SAMPLES), strict=True))


def of_ranking(score: Callable[[Tensor], Tensor], cases: Cases, rows: Sequences) -> dict[str, Value]:
    """Recall and NDCG of the next item among all; an item that training does not know is never found."""
    items, user = torch.from_numpy(cases.items), torch.from_numpy(cases.user)
    owner = getattr(score, "__self__", None)
    device = next(owner.parameters()).device if isinstance(owner, nn.Module) else "cpu"

    def source(case: Tensor) -> Tensor:
        told = score(items[case].to(device)).float().cpu()
        told[:, : UNKNOWN + 1] = -torch.inf
        return told

    number = torch.arange(len(items))
    truth = Log.of(number, torch.from_numpy(cases.targets[:, 0]), len(items), rows.vocabulary.items + 1)
    ranked = rank(source, number, None, truth, AT)
    return {metric: of_values(ranked.metrics[metric], user) for k in AT for metric in (f"recall@{k}", f"ndcg@{k}")}


@torch.no_grad()
def of_steps(model: nn.Module, cases: Cases, groups: Mapping, known: Tensor | None, device: str) -> dict[str, Value]:
    """Each step's listing among all of them, its category and its brand among all of those."""
    model.eval()
    catalogue, user = model.catalogue(), torch.from_numpy(cases.user)
    kept: dict[str, list[Tensor]] = {}
    for items, target in zip(*(torch.from_numpy(part).split(32) for part in (cases.items, cases.targets)), strict=True):
        score_BKI = model.score_steps(items.to(device), catalogue).cpu()
        score_BKI[..., UNKNOWN] = -torch.inf
        asked = {"": (score_BKI, target.long())}
        asked |= {
            f"{label} ": (_grouped(score_BKI, *group), group[0][target.long()]) for label, group in groups.items()
        }
        for label, (told_BKI, wanted_BK) in asked.items():
            right = told_BKI.gather(-1, wanted_BK[..., None])
            place = (told_BKI > right).sum(-1) + ((told_BKI == right).sum(-1) - 1) / 2  # ties: the middle
            place = place.masked_fill(wanted_BK == 0, torch.nan)  # a listing without a brand asks for none
            for step, place_B in enumerate(place.unbind(1), start=1):
                for k in AT:
                    hit = (place_B < k).float().masked_fill(place_B.isnan(), torch.nan)
                    kept.setdefault(f"step {step} {label}recall@{k}", []).append(hit)
                    if not label:
                        kept.setdefault(f"step {step} ndcg@{k}", []).append(hit / (place_B + 2).log2())
                if not label and known is not None:
                    new = (hit if AT[-1] == k else hit).masked_fill(known[target[:, step - 1].long()], torch.nan)
                    kept.setdefault(f"step {step} recall@{AT[-1]}, new listings", []).append(new)
    found = {}
    for metric, parts in kept.items():
        value = torch.cat(parts)
        if not bool(value.isnan().all()):
            found[metric] = of_values(value[~value.isnan()], user[~value.isnan()])
    return found


def latency(model: nn.Module, items: Tensor) -> dict[str, Value]:
    """Milliseconds of a request of one row, with skipping and with all blocks in turn: median and quartiles.

    CPU time of this process, which other programs do not lengthen; on a GPU, which works beside it, wall time. The
    quotient is of a request's own two times: what slows a moment down slows both.
    """
    ways = {
        "ms": model.score,
        "ms, all blocks": model.score_all,
        "ms without item scores": lambda row: model.last(*left(row, model.items, model.keep)),
        "ms without item scores, all blocks": lambda row: model.hidden(*left(row, model.items, model.keep)),
    }
    clock = time.perf_counter if items.is_cuda else time.process_time
    spent: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for number, row in enumerate(items.split(1)):
            order = list(ways) if number % 2 else list(reversed(ways))  # neither always finds the caches warm
            for way in order:
                started = clock()
                ways[way](row)
                if items.is_cuda:
                    torch.cuda.synchronize()
                if number >= min(5, len(items) - 1):  # the first ones warm up
                    spent[way].append(1000 * (clock() - started))
    for way in ("ms", "ms without item scores"):
        pairs = zip(spent[way], spent[f"{way}, all blocks"], strict=True)
        spent[f"{way} / all blocks"] = [own / whole for own, whole in pairs]
    quartiles = {way: statistics.quantiles(each * 2, n=4) for way, each in spent.items()}
    return {way: {"value": q[1], "low": q[0], "high": q[2]} for way, q in quartiles.items()}


def _grouped(score_BKI: Tensor, group_I: Tensor, count: int) -> Tensor:
    told = group_scores(score_BKI, group_I, count)
    told[..., 0] = -torch.inf  # listings of no group
    return told
