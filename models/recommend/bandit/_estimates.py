"""What a policy would have earned, told from what another one showed; every estimate with a bootstrap interval.

With w = pi(a | x) / p, q a model of the reward that was fitted on other rows:

    ips      mean of w r                                              unbiased where every action had a chance
    snips    sum of w r / sum of w                                    a little bias, much less noise
    dm       mean over rows of sum_a pi(a | x) q(x, a)                as good as q
    dr       dm + mean of w (r - q(x, a))                             unbiased if either p or q is right

Sources: Horvitz and Thompson, 1952; Swaminathan and Joachims, 2015 (SNIPS); Dudik et al., 2011, arXiv:1103.4601 (DR).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from models.recommend.bandit._logged import Logged, LoggedError

__all__ = ["Estimate", "effective", "estimates", "importance"]

AT_ONCE = 1 << 22  # weights held at a time by the bootstrap


class Estimate(NamedTuple):
    """A policy's value a row, and the percentile interval of its bootstrap."""

    value: float
    low: float
    high: float


def importance(policy_NA: Tensor, logged: Logged, clip: float | None = None) -> Tensor:
    """w: how much likelier each logged action is under the policy: (N,) float64.

    Args:
        policy_NA: probabilities in each row's context.
        clip: largest w; None for no limit.

    Raises:
        LoggedError: another shape than the log's, or rows that do not sum to 1.
    """
    if policy_NA.shape != (len(logged), logged.actions):
        raise LoggedError(f"a policy gives ({len(logged)}, {logged.actions}) probabilities here; "
                          f"got {tuple(policy_NA.shape)}")  # fmt: skip
    policy_NA = policy_NA.double()
    wrong = ((policy_NA.sum(1) - 1).abs() > 1e-3) | (policy_NA < 0).any(1)
    if wrong.any():
        raise LoggedError(f"{int(wrong.sum())} of {len(logged)} rows of a policy are no probabilities that sum to 1")
    weight_N = policy_NA.gather(1, logged.action[:, None]).squeeze(1) / logged.propensity.double()
    return weight_N if clip is None else weight_N.clamp(max=clip)


def effective(weight_N: Tensor) -> float:
    """How many equally weighted rows say as much: (sum w)^2 / sum w^2.

    >>> effective(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    2.0
    """
    return float(weight_N.sum() ** 2 / weight_N.square().sum().clamp(min=1e-300))


def estimates(
    policy_NA: Tensor, logged: Logged, task: int = 0, value_NA: Tensor | None = None, clip: float | None = None,
    samples: int = 1000, level: float = 0.95, seed: int = 0,
) -> dict[str, Estimate]:  # fmt: skip
    """All estimates of one policy.

    Args:
        policy_NA: probabilities in each row's context.
        task: whose reward.
        value_NA: q, of other rows than these; None leaves dm and dr out.
        clip: largest w.
        samples: of the bootstrap, over rows.
        level: of the interval.
        seed: of the bootstrap; policies on the same log share its draws.

    Returns:
        ips, snips (NaN where the policy shows nothing that was logged), and with `value_NA` dm and dr.
    """
    weight_N, reward_N = importance(policy_NA, logged, clip), logged.reward[:, task].double()
    one = torch.ones_like(weight_N)
    above, below = {"ips": weight_N * reward_N, "snips": weight_N * reward_N}, {"ips": one, "snips": weight_N}
    if value_NA is not None:
        value_NA = value_NA.double()
        above["dm"] = (policy_NA.double() * value_NA).sum(1)
        above["dr"] = above["dm"] + weight_N * (reward_N - value_NA.gather(1, logged.action[:, None]).squeeze(1))
        below |= {"dm": one, "dr": one}
    above_NK, below_NK = (torch.stack(list(part.values()), 1) for part in (above, below))
    drawn_SK = _drawn(above_NK, below_NK, samples, seed)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low_K, high_K = drawn_SK.nanquantile(ends, dim=0)
    found_K = above_NK.sum(0) / below_NK.sum(0)
    return {name: Estimate(*(float(part[k]) for part in (found_K, low_K, high_K))) for k, name in enumerate(above)}


def _drawn(above_NK: Tensor, below_NK: Tensor, samples: int, seed: int) -> Tensor:
    """Ratios of sums over rows, each row counted Poisson(1) times: (samples, K)."""
    random, rows = torch.Generator().manual_seed(seed), len(above_NK)
    found = []
    for part in torch.arange(samples).split(max(1, AT_ONCE // rows)):
        count_SN = torch.poisson(torch.ones(len(part), rows), generator=random).double()
        found.append((count_SN @ above_NK) / (count_SN @ below_NK))
    return torch.cat(found)
