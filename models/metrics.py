"""Metrics of predictions and rankings: plain functions of scores and labels, O(n log n) at most.

A score is any monotone scale where only the order counts (auc, gauc, roc_curve, recall, ndcg), else a probability.
Labels are 1 or 0 in any type; leave absent ones out before. Sums run in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Interval",
    "auc",
    "calibration",
    "calibration_error",
    "gauc",
    "logloss",
    "ndcg_at_k",
    "paired_bootstrap",
    "recall_at_k",
    "relative_improvement",
    "reliability",
    "roc_curve",
]

CLIP = 1e-7  # of probabilities in logloss: a sure and wrong one costs 16.1 nats, not infinitely many


class Interval(NamedTuple):
    """A difference of two metrics, and the percentile interval of its bootstrap."""

    difference: float
    low: float
    high: float


def auc(score: Tensor, label: Tensor) -> Tensor:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties counting one half.

    Args:
        score: (N,) float.
        label: (N,) 1 or 0.

    Returns:
        scalar float64 in [0, 1]; NaN with one class only, or with a NaN score.

    Source: Mann and Whitney, 1947, doi:10.1214/aoms/1177730491.

    >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
    tensor(0.8750, dtype=torch.float64)
    """
    return _Ranked(score, label).auc()


def gauc(score: Tensor, label: Tensor, group: Tensor) -> Tensor:
    """Mean of the groups' AUC, weighted by their rows; groups with one class only are left out.

    Args:
        score: (N,) float.
        label: (N,) 1 or 0.
        group: (N,) int, the user of each row.

    Returns:
        scalar float64; NaN when no group has both classes.

    Source: Zhu et al., 2017, arXiv:1703.02091 (weights: impressions).

    >>> gauc(torch.tensor([1.0, 2.0, 2.0, 1.0]), torch.tensor([0, 1, 0, 1]), torch.tensor([5, 5, 6, 6]))
    tensor(0.5000, dtype=torch.float64)
    """
    by_score = score.argsort()
    order = by_score[group[by_score].argsort(stable=True)]
    score, label = score[order], label[order].double()
    _, group, rows = group[order].unique_consecutive(return_inverse=True, return_counts=True)
    last = torch.ones_like(group, dtype=torch.bool)
    last[:-1] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    _, positive, negative = _per_tie(last, label, torch.ones_like(label))
    group = group[last]
    positives, negatives = (torch.zeros(len(rows), dtype=torch.float64, device=score.device).index_add_(0, group, part)
                            for part in (positive, negative))  # fmt: skip
    before = negative.cumsum(0) - negative - (negatives.cumsum(0) - negatives)[group]
    wins = torch.zeros_like(positives).index_add_(0, group, positive * (before + negative / 2))
    both = (positives > 0) & (negatives > 0)
    weight = rows[both].double()
    result = (wins[both] / (positives * negatives)[both] * weight).sum() / weight.sum()
    return result + score.sum() * torch.nan if score.isnan().any() else result


def logloss(probability: Tensor, label: Tensor) -> Tensor:
    """Mean binary cross entropy in nats, probabilities clipped to [1e-7, 1 - 1e-7]: scalar float64; NaN without rows.

    >>> logloss(torch.tensor([0.5, 0.5]), torch.tensor([0, 1]))
    tensor(0.6931, dtype=torch.float64)
    """
    return _row_loss(probability, label).mean()


def calibration(probability: Tensor, label: Tensor) -> Tensor:
    """Mean prediction over mean label: scalar float64, 1 is calibrated in the mean, above 1 promises too much.

    Infinite without a positive, NaN without rows.

    >>> calibration(torch.tensor([0.2, 0.4]), torch.tensor([0, 1]))
    tensor(0.6000, dtype=torch.float64)
    """
    return probability.double().mean() / label.double().mean()


def reliability(probability: Tensor, label: Tensor, bins: int = 20) -> dict[str, Tensor]:
    """Mean prediction against observed rate, in bins of about equally many rows.

    Equal predictions share a bin, so a constant predictor has one bin.

    Returns:
        {"predicted": (bins,), "observed": (bins,), "rows": (bins,)}, float64, by rising prediction, without empty bins.

    Raises:
        ValueError: bins below 1.

    >>> reliability(torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([0, 0, 1, 1]), bins=2)["observed"]
    tensor([0., 1.], dtype=torch.float64)
    """
    if bins < 1:
        raise ValueError(f"reliability needs at least 1 bin; got {bins}")
    probability, label = probability.double(), label.double()
    ordered = probability.sort().values
    cuts = torch.arange(1, bins, device=ordered.device) * len(ordered) // bins
    bin_N = torch.bucketize(probability, ordered[cuts].unique(), right=True) if len(ordered) else cuts[:0]
    total = lambda part: torch.bincount(bin_N, weights=part, minlength=1)
    rows = total(torch.ones_like(label))
    kept = rows > 0
    return {
        "predicted": total(probability)[kept] / rows[kept],
        "observed": total(label)[kept] / rows[kept],
        "rows": rows[kept],
    }


def calibration_error(probability: Tensor, label: Tensor, bins: int = 20) -> Tensor:
    """Expected calibration error: mean |prediction - rate| over the bins of `reliability`, weighted by rows.

    Source: Naeini et al., 2015, doi:10.1609/aaai.v29i1.9602, with bins of equal mass instead of equal width: where
    positives are rare, almost all predictions share the first bin of equal width.

    >>> calibration_error(torch.tensor([0.2, 0.2, 0.2, 0.2]), torch.tensor([0, 0, 0, 1]))
    tensor(0.0500, dtype=torch.float64)
    """
    found = reliability(probability, label, bins)
    return ((found["predicted"] - found["observed"]).abs() * found["rows"]).sum() / found["rows"].sum()


def roc_curve(score: Tensor, label: Tensor, points: int = 200) -> tuple[Tensor, Tensor]:
    """False and true positive rates from (0, 0) to (1, 1), for a plot.

    Args:
        points: at most so many, evenly spread over the distinct scores.

    Returns:
        two (<= points,) float64; NaN with one class only.

    Raises:
        ValueError: points below 2.

    >>> roc_curve(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))[1]
    tensor([0.0000, 0.5000, 1.0000, 1.0000], dtype=torch.float64)
    """
    if points < 2:
        raise ValueError(f"a ROC curve needs at least 2 points; got {points}")
    _, positive, negative = _Ranked(score, label).counts()
    rates = []
    for count in (negative, positive):
        above = torch.cat([count.new_zeros(1), count.flip(0).cumsum(0)])
        chosen = torch.linspace(0, len(above) - 1, min(points, len(above)), device=above.device).round().long()
        rates.append(above[chosen] / above[-1])
    return rates[0], rates[1]


def relative_improvement(auc: Tensor | float, base: Tensor | float) -> Tensor | float:
    """RelaImpr of an AUC over a base, both counted from 0.5: (auc - 0.5) / (base - 0.5) - 1.

    Source: Yan et al., 2014, "Coupled group lasso for web-scale CTR prediction", ICML.

    >>> round(relative_improvement(0.6, 0.55), 6)
    1.0
    """
    return (auc - 0.5) / (base - 0.5) - 1


def paired_bootstrap(
    score: Tensor,
    base: Tensor,
    label: Tensor,
    metric: str = "auc",
    group: Tensor | None = None,
    samples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """How much better `score` is than `base` on the same rows, with a percentile interval.

    Each resample gives every row (every group, if given) a Poisson(1) weight, the limit of drawing with replacement,
    and computes both metrics with these weights; the rows are ranked only once.

    Args:
        score: (N,) float; probabilities for logloss.
        base: (N,) float, what it is compared with.
        label: (N,) 1 or 0.
        metric: "auc" or "logloss".
        group: (N,) int: rows of one group (a user) are drawn together; None draws rows.
        samples: resamples.
        level: mass of the interval.
        seed: of the weights.

    Returns:
        metric(score) - metric(base) on all rows, and the interval's ends; NaN with one class only.

    Raises:
        ValueError: unknown metric, sizes that differ, or fewer than 2 samples.

    Source: Chamandy et al., 2012, "Estimating uncertainty for massive data streams" (Poisson weights).
    """
    if metric not in ("auc", "logloss"):
        raise ValueError(f"metric must be auc or logloss; got {metric!r}")
    sizes = {"score": len(score), "base": len(base), "label": len(label)}
    if group is not None:
        sizes["group"] = len(group)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"all must have one entry per row; got {sizes}")
    if samples < 2 or not 0 < level < 1:
        raise ValueError(f"a bootstrap needs at least 2 samples and a level in (0, 1); got {samples}, {level}")
    if metric == "auc":
        sides = [_Ranked(score, label), _Ranked(base, label)]
        difference = lambda weight: sides[0].auc(weight) - sides[1].auc(weight)
    else:
        loss = _row_loss(score, label) - _row_loss(base, label)
        difference = lambda weight: (loss * weight).sum() / weight.sum()
    place = None if group is None else group.unique(return_inverse=True)[1]
    chance = torch.ones(len(label) if place is None else int(place.max()) + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(samples):
        weight = torch.poisson(chance, generator).to(label.device)
        found.append(difference(weight if place is None else weight[place]))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    spread = torch.stack(found).cpu()
    # A resample of few rows can miss a class altogether; it says nothing about the difference.
    low, high = spread[~spread.isnan()].quantile(ends).tolist() if not spread.isnan().all() else (torch.nan, torch.nan)
    return Interval(difference(torch.ones(len(label), dtype=torch.float64, device=label.device)).item(), low, high)


def recall_at_k(score_UI: Tensor, relevant_UI: Tensor, k: int) -> Tensor:
    """Share of the relevant items among the k best-scored ones.

    Args:
        score_UI: (users, items) float, any monotone scale.
        relevant_UI: (users, items) bool.
        k: cut-off, in items.

    Returns:
        (users,) fraction in [0, 1]; NaN for a user without relevant items: whoever averages decides.

    Raises:
        ValueError: k is not in 1..items.

    >>> recall_at_k(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[True, False, True]]), k=2)
    tensor([0.5000])
    """
    hit_UK = _hits(score_UI, relevant_UI, k)
    return hit_UK.sum(-1) / relevant_UI.sum(-1)


def ndcg_at_k(score_UI: Tensor, relevant_UI: Tensor, k: int) -> Tensor:
    """Normalised discounted cumulative gain of the k best-scored items, binary relevance.

    Args:
        score_UI: (users, items) float, any monotone scale.
        relevant_UI: (users, items) bool.
        k: cut-off, in items.

    Returns:
        (users,) fraction in [0, 1]; NaN for a user without relevant items: whoever averages decides.

    Raises:
        ValueError: k is not in 1..items.

    Source: Jarvelin and Kekalainen, 2002, doi:10.1145/582415.582418, with logarithm base 2.

    >>> ndcg_at_k(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[False, True, False]]), k=2)
    tensor([0.6309])
    """
    discount_K = 1 / torch.arange(2, k + 2, device=score_UI.device).log2()
    ideal_UK = relevant_UI.float().topk(min(k, relevant_UI.shape[-1])).values
    return (_hits(score_UI, relevant_UI, k) @ discount_K) / (ideal_UK @ discount_K)


def _hits(score_UI: Tensor, relevant_UI: Tensor, k: int) -> Tensor:
    if not 1 <= k <= score_UI.shape[-1]:
        raise ValueError(f"k must be in 1..{score_UI.shape[-1]}, the number of items; got {k}")
    return relevant_UI.gather(-1, score_UI.topk(k).indices).float()


def _row_loss(probability: Tensor, label: Tensor) -> Tensor:
    probability, label = probability.double().clamp(CLIP, 1 - CLIP), label.double()
    return -(label * probability.log() + (1 - label) * (-probability).log1p())


class _Ranked:
    """Rows in the order of their score, once, so that many weightings of them are cheap."""

    def __init__(self, score: Tensor, label: Tensor):
        if score.shape != label.shape or score.dim() != 1:
            raise ValueError(f"one score and one label per row: score {tuple(score.shape)}, label {tuple(label.shape)}")
        ordered, self.order = score.sort()
        self.label = label[self.order].double()
        self.last = torch.ones_like(ordered, dtype=torch.bool)  # the last row of each group of tied scores
        self.last[:-1] = ordered[1:] != ordered[:-1]
        self.broken = bool(ordered.isnan().any())

    def counts(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        weight = torch.ones_like(self.label) if weight is None else weight[self.order]
        return _per_tie(self.last, self.label, weight)

    def auc(self, weight: Tensor | None = None) -> Tensor:
        _, positive, negative = self.counts(weight)
        wins = (positive * (negative.cumsum(0) - negative / 2)).sum()
        found = wins / (positive.sum() * negative.sum())  # 0 / 0 is NaN: one class only
        return found * torch.nan if self.broken else found


def _per_tie(last: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of all, positive and negative rows in each group of ties, whose last rows are marked."""
    every, positive = (torch.cat([part.new_zeros(1), part.cumsum(0)[last]]).diff() for part in (weight, weight * label))
    return every, positive, every - positive
