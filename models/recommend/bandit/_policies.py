"""Policies that every other one is held against: uniform, popularity, and a click model that takes the best."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend.bandit._logged import Logged

__all__ = ["ClickModel", "greedy", "popularity", "shown_alike", "uniform"]


class ClickModel(nn.Module):
    """Logistic regression of each action's reward on the context: s(b_a + w_a x).

    It reads the logged rows as they are, or each with the weight 1 / (A p): as if all actions had been shown alike.

    Args:
        width: D.
        actions: A.
        weighted: by 1 / (A p).
        clip: largest such weight.
    """

    def __init__(self, width: int, actions: int, weighted: bool = False, clip: float = 20.0):
        super().__init__()
        self.weighted, self.clip = weighted, clip
        self.linear = nn.Linear(width, actions)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(
        self, context: Tensor, action: Tensor, reward: Tensor, propensity: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Binary cross entropy of the first task's rewards, in nats; arguments as in `Logged`."""
        logit_B = self.linear(context).gather(1, action[:, None]).squeeze(1)
        loss_B = F.binary_cross_entropy_with_logits(logit_B, reward[:, 0], reduction="none")
        weight_B = (
            shown_alike(propensity, self.linear.out_features, self.clip) if self.weighted else loss_B.new_ones(())
        )
        loss = (weight_B * loss_B).sum() / weight_B.expand_as(loss_B).sum()
        return loss, {"loss": loss}

    @torch.no_grad()
    def values(self, context: Tensor) -> Tensor:
        """Probability of a reward: (N, A)."""
        return self.linear(context).sigmoid()


def shown_alike(propensity: Tensor, actions: int, clip: float) -> Tensor:
    """1 / (A p), at most `clip`.

    >>> shown_alike(torch.tensor([0.25, 0.5, 0.001]), 4, clip=10.0)
    tensor([ 1.0000,  0.5000, 10.0000])
    """
    return (1 / (actions * propensity)).clamp(max=clip)


def uniform(rows: int, actions: int) -> Tensor:
    """Every action alike: (N, A)."""
    return torch.full((rows, actions), 1 / actions)


def greedy(value_NA: Tensor) -> Tensor:
    """Always the best: (N, A) of one 1 a row, the first of equals."""
    return F.one_hot(value_NA.argmax(-1), value_NA.shape[-1]).float()


def popularity(logged: Logged, task: int = 0, prior: float = 100.0, weight: Tensor | None = None) -> Tensor:
    """Mean logged reward of every action, as any report shows it: (A,).

    Args:
        task: whose reward.
        prior: rows of average reward that each action is given in addition: few clicks are no popularity.
        weight: (N,) of the rows; None is 1.
    """
    weight = torch.ones(len(logged)) if weight is None else weight
    reward = logged.reward[:, task]
    total, count = (
        torch.zeros(logged.actions).index_add_(0, logged.action, part) for part in (weight * reward, weight)
    )
    return (total + prior * (weight * reward).sum() / weight.sum()) / (count + prior)
