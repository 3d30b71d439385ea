"""What a ranking says beyond one number: slices of items, coverage, concentration, novelty; do two models differ?"""

import torch
from torch import Tensor

from models.metrics import Interval
from models.recommend._ranking import Ranked, RankingError
from models.recommend.retrieval._log import Log

__all__ = ["compare", "coverage", "gini", "means", "novelty", "slices", "summary"]

HEAD = 0.2  # share of the items, the most popular ones, that are the head
AT_ONCE = 1 << 22  # weights held at a time by the bootstrap


def summary(ranked: Ranked, train: Log, truth: Log, at: int = 20) -> dict[str, float]:
    """Everything below as one flat mapping: means, "coverage@20", "gini@20", "novelty@20", "recall_cold@20" ...

    Args:
        ranked: lists with metrics.
        train: what the model was trained on: popularity is counted there.
        truth: what was to be found.
        at: cut-off of all but the means.
    """
    lists = {"coverage": coverage, "gini": gini, "novelty": novelty}
    found = {f"{name}@{at}": value(ranked, train, at) for name, value in lists.items()}
    parts = {name: value.nanmean().item() for name, value in slices(ranked, train, truth, at).items()}
    return means(ranked) | found | parts


def means(ranked: Ranked) -> dict[str, float]:
    """Mean of each metric over the users with a true item; NaN without such a user."""
    return {name: value.double().nanmean().item() for name, value in ranked.metrics.items()}


def coverage(ranked: Ranked, train: Log, at: int) -> float:
    """Share of all items that stand in a list at least once, in [0, 1]."""
    return (_exposure(ranked, train, at) > 0).double().mean().item()


def gini(ranked: Ranked, train: Log, at: int) -> float:
    """How unevenly the items are shown: 0 all equally often, (I - 1) / I one alone; NaN if nothing is shown.

    Source: Gini coefficient of the items' numbers of appearances, items that never appear included.
    """
    shown = _exposure(ranked, train, at).double().sort().values
    place = torch.arange(1, len(shown) + 1, device=shown.device, dtype=shown.dtype)
    return ((2 * place - len(shown) - 1) @ shown / (len(shown) * shown.sum())).item()


def novelty(ranked: Ranked, train: Log, at: int) -> float:
    """Mean self-information of what is shown, in bits: -log2 of the share of users with the item in training.

    An item without a user counts as one with one. NaN if nothing is shown.
    Source: Zhou et al., 2010, arXiv:0808.2670 ("surprisal").
    """
    surprise_I = -(train.item_degree.clamp(min=1).double() / train.users).log2()
    shown = _exposure(ranked, train, at).double()
    return (surprise_I @ shown / shown.sum()).item()


def slices(ranked: Ranked, train: Log, truth: Log, at: int) -> dict[str, Tensor]:
    """Recall and NDCG of three kinds of true items, per user: "recall_cold@20", "ndcg_head@20" ...

    cold: without a user in training; head: the 20 % of all items with the most users, of equally many the smaller id
    first, none of them cold; tail: the others. The other kinds' true items count neither as found nor as missed.

    Returns:
        (N,) float32 each; NaN for a user without a true item of that kind.
    """
    kind_I = _kinds(train)
    k = min(at, ranked.items.shape[1])
    item_NK, hit_NK = ranked.items[:, :k], ranked.hits[:, :k]
    discount_K = 1 / torch.arange(2, k + 2, device=item_NK.device).log2()
    ideal = torch.cat([discount_K.new_zeros(1), discount_K.cumsum(0)])
    row, item = truth.of_users(ranked.users)
    found = {}
    for number, name in enumerate(("cold", "head", "tail")):
        true_N = row[kind_I[item] == number].bincount(minlength=len(ranked.users))
        own_NK = hit_NK & (kind_I[item_NK.clamp(min=0)] == number)
        found[f"recall_{name}@{at}"] = own_NK.sum(1) / torch.where(true_N > 0, true_N, torch.nan)
        ndcg = (own_NK * discount_K).sum(1) / ideal[true_N.clamp(max=k)]
        found[f"ndcg_{name}@{at}"] = ndcg.masked_fill(true_N == 0, torch.nan)
    return found


def compare(model: Tensor, base: Tensor, samples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """How much better a model is than another on the same users, with a percentile interval.

    Each resample gives every user a Poisson(1) weight, the limit of drawing users with replacement.

    Args:
        model: (N,) a metric of each user; NaN for a user who has none.
        base: (N,) the same metric of the same users by the other model.
        samples: resamples.
        level: mass of the interval.
        seed: of the weights.

    Returns:
        mean(model) - mean(base), and the interval's ends.

    Raises:
        RankingError: sizes that differ, other users, no user, or fewer than 2 samples.

    Source: Chamandy et al., 2012, "Estimating uncertainty for massive data streams" (Poisson weights).
    """
    if model.shape != base.shape or model.dim() != 1 or not torch.equal(model.isnan(), base.isnan()):
        raise RankingError(f"two models are compared on the same users; got {tuple(model.shape)} values, "
                           f"{int(model.isnan().sum())} of them NaN, and {tuple(base.shape)}, "
                           f"{int(base.isnan().sum())} NaN")  # fmt: skip
    gap_N = (model - base)[~model.isnan()].double().cpu()
    if not len(gap_N) or samples < 2 or not 0 < level < 1:
        raise RankingError(f"a bootstrap needs users, at least 2 samples and a level in (0, 1); got {len(gap_N)}, "
                           f"{samples}, {level}")  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    found = []
    for part in torch.arange(samples).split(max(1, AT_ONCE // len(gap_N))):
        weight_SN = torch.poisson(torch.ones(len(part), len(gap_N)), generator=generator).double()
        found.append(weight_SN @ gap_N / weight_SN.sum(1).clamp(min=1))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return Interval(gap_N.mean().item(), *torch.cat(found).quantile(ends).tolist())


def _exposure(ranked: Ranked, train: Log, at: int) -> Tensor:
    """(I,) how often each item stands among the first `at` of a list."""
    shown = ranked.items[:, :at]
    return shown[shown >= 0].bincount(minlength=train.items)


def _kinds(train: Log) -> Tensor:
    """(I,) 0 cold, 1 head, 2 tail."""
    degree_I = train.item_degree
    kind_I = torch.full_like(degree_I, 2)
    kind_I[degree_I.argsort(descending=True, stable=True)[: int(HEAD * train.items)]] = 1
    return kind_I.masked_fill_(degree_I == 0, 0)
