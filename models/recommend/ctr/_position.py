"""What positions do to clicks: the teacher's part that reads them, two classic corrections, and an AUC without them.

ipw     a click at position p weighs 1 / theta_p; Joachims et al., 2017, arXiv:1608.04468
pal     p(click) = p(seen | position) p(click | x, seen); Guo et al., 2019, doi:10.1145/3298689.3347033
pauc    AUC inside each position, weighted by its rows; Huang et al., 2021 (DPIN), arXiv:2106.05482
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.metrics import gauc
from models.recommend._inputs import Inputs

__all__ = ["PositionEffect", "check_position", "ipw_weight", "pal_logit", "pauc"]


class PositionEffect(nn.Module):
    """g(x, pos): a logit for each position, and its product with chosen fields of the row (device, page).

    Args:
        sizes: rows of each categorical field's table.
        positions: P.
        context: fields that the effect depends on.
        width: of the vectors whose product that is.
    """

    def __init__(self, sizes: Sequence[int], positions: int, context: Sequence[int], width: int):
        super().__init__()
        if wrong := [field for field in context if not 0 <= field < len(sizes)]:
            raise ValueError(f"context names fields 0..{len(sizes) - 1}; got {wrong}")
        self.positions, self.context = positions, list(context)
        self.effect = nn.Parameter(torch.zeros(positions))
        if context:
            self.vector = nn.Parameter(torch.randn(positions, width) * width**-0.5)
            self.inputs = Inputs([sizes[field] for field in context], 0, width)

    def forward(self, categorical: Tensor) -> Tensor:
        """The effect of every position: (B, P)."""
        if not self.context:
            return self.effect.expand(len(categorical), -1)
        e_BCk = self.inputs(categorical[:, self.context], categorical.new_empty(len(categorical), 0).float())
        return self.effect + e_BCk.unflatten(-1, (len(self.context), -1)).sum(1) @ self.vector.T


def check_position(position: Tensor, positions: int, rows: int) -> Tensor:
    """Positions (B,) 1..P as int64 places 0..P-1.

    Raises:
        ValueError: one for each row is needed, integer and inside; says how many are not.
    """
    if position.shape != (rows,) or position.is_floating_point():
        raise ValueError(f"position must be ({rows},) integers; got {tuple(position.shape)} {position.dtype}")
    outside = int(((position < 1) | (position > positions)).sum())
    if outside:
        raise ValueError(f"{outside} of {rows} positions are outside 1..{positions}, from {int(position.min())} to "
                         f"{int(position.max())}; drop rows without one, raise `positions` for later ones")  # fmt: skip
    return position.long() - 1


def ipw_weight(position: Tensor, theta_P: Tensor, clip: float = 100.0) -> Tensor:
    """1 / theta of each row's position (from 1), at most `clip`: (B,).

    >>> ipw_weight(torch.tensor([1, 2, 2]), torch.tensor([1.0, 0.001]), clip=10.0)
    tensor([ 1., 10., 10.])
    """
    return (1 / theta_P).clamp(max=clip)[position - 1]


def pal_logit(relevance: Tensor, seen: Tensor) -> Tensor:
    """Logit of the product of two probabilities, given their logits: a click needs to be seen.

    >>> pal_logit(torch.zeros(1), torch.zeros(1)).sigmoid()
    tensor([0.2500])
    """
    return -torch.stack([-relevance, -seen, -relevance - seen]).logsumexp(0)


def pauc(score: Tensor, label: Tensor, position: Tensor) -> Tensor:
    """AUC inside each position, weighted by its rows: scalar float64; what a position alone tells counts one half."""
    return gauc(score, label, position)


def between(value: Tensor, group: Tensor, groups: int) -> Tensor:
    """Share of the variance of `value` (B,) that lies between groups, whatever their numbers: scalar in [0, 1]."""
    member_BG = F.one_hot(group, groups).to(value.dtype)
    rows_G = member_BG.sum(0)
    mean_G = value @ member_BG / rows_G.clamp(min=1)
    mean = value.mean()
    return (rows_G * (mean_G - mean).square()).sum() / (value - mean).square().sum().clamp(min=1e-12)
