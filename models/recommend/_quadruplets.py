"""Rows in fours, one of each pair of labels: how they are drawn, ranked, and how well a score orders them.

The groups of tasks (A, B) are, in this order, ++, +-, -+ and --: the first sign is A's label, the second B's.
"""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.metrics import auc

__all__ = ["draw", "grades", "multi_auc", "ranking_loss"]

FOR_B = [0, 2, 1, 3]  # the groups as B sees them: its own label first


def grades(label_B2: Tensor) -> Tensor:
    """The place of each row's group, 0 (++) to 3 (--), or -1 where a label is absent: (B,) int64."""
    place_B = 3 - 2 * (label_B2[:, 0] == 1).long() - (label_B2[:, 1] == 1).long()
    return place_B.masked_fill(~(label_B2 >= 0).all(-1), -1)


def draw(label_B2: Tensor, count: int, repeats: int, generator: torch.Generator) -> Tensor:
    """Quadruplets: rows of the batch, one of each group, with replacement: (Q, 4) int64, -1 where a group is empty.

    Args:
        label_B2: labels of A and B; NaN or negative where absent.
        count: at most so many quadruplets.
        repeats: of the smallest group's rows, on average: a handful of rows is not shown a thousand times.
        generator: on the labels' device.
    """
    place_B = grades(label_B2)
    groups = [(place_B == place).nonzero().squeeze(1) for place in range(4)]
    smallest = min((len(rows) for rows in groups if len(rows)), default=1)
    count = min(count, repeats * smallest)
    pick = lambda n: torch.randint(n, (count,), generator=generator, device=label_B2.device)
    none = torch.full((count,), -1, device=label_B2.device)
    return torch.stack([rows[pick(len(rows))] if len(rows) else none for rows in groups], 1)


def ranking_loss(logit_B: Tensor, quadruplets: Tensor, task: int, between: tuple[float, float]) -> Tensor:
    """L_{t+} of task A (0) or B (1), a mean over quadruplets, in nats; pairs with an empty group are left out.

    Args:
        logit_B: of the teacher.
        quadruplets: (Q, 4) rows; -1 for none.
        task: whose label comes first.
        between: beta_1 and beta_2.
    """
    if task:
        quadruplets = quadruplets[:, FOR_B]
    there_Q4, logit_Q4 = quadruplets >= 0, logit_B[quadruplets.clamp(min=0)]
    weight = {(0, 1): between[0], (2, 3): between[1]}
    total = logit_B.new_zeros(())
    for first, second in combinations(range(4), 2):
        both_Q = there_Q4[:, first] & there_Q4[:, second]
        lost_Q = F.softplus(logit_Q4[:, second] - logit_Q4[:, first])
        total = total + weight.get((first, second), 1.0) * torch.where(both_Q, lost_Q, 0).mean()
    return total


def multi_auc(score: Tensor, grade: Tensor) -> Tensor:
    """How well a score orders several grades: the AUC of each two grades, weighted by the rows of both.

    Args:
        score: (N,) float.
        grade: (N,) integer; a higher one should score higher.

    Returns:
        scalar float64 in [0, 1]; NaN with one grade only. With two grades it is their AUC.

    Source: Hand and Till, 2001, doi:10.1023/A:1010920819831, with the pairs' prevalences as weights.

    >>> multi_auc(torch.tensor([0.1, 0.5, 0.3, 0.9]), torch.tensor([0, 1, 2, 2]))  # (3 * 1 + 3 * 1/2 + 2 * 1) / 8
    tensor(0.8125, dtype=torch.float64)
    """
    total, weight = torch.zeros((), dtype=torch.float64), 0
    for low, high in combinations(grade.unique().tolist(), 2):
        here = (grade == low) | (grade == high)
        weight += int(here.sum())
        total = total + int(here.sum()) * auc(score[here], grade[here] == high)
    return total / weight if weight else total * torch.nan
