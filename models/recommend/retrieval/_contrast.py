"""What contrastive recommenders share: cosine, alignment, uniformity, and a softmax over sampled candidates."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["alignment", "cosine", "sampled_softmax", "uniformity"]


def cosine(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """(B,) cosine of each pair, 0 where a vector is 0."""
    return (F.normalize(x_BD, dim=-1) * F.normalize(y_BD, dim=-1)).sum(-1)


def alignment(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """Mean squared distance of pairs of unit vectors: a scalar in [0, 4].

    Source: Wang and Isola, 2020, arXiv:2005.10242, alpha = 2.
    """
    return (x_BD - y_BD).square().sum(-1).mean()


def uniformity(x_BD: Tensor, t: float = 2.0) -> Tensor:
    """ln mean over pairs of exp(-t |x - y|^2) of unit vectors: a scalar <= 0; 0 for a single row, which has no pair.

    Source: Wang and Isola, 2020, arXiv:2005.10242.
    """
    rows = len(x_BD)
    if rows < 2:
        return x_BD.sum() * 0
    near_BB = 2 * t * (x_BD @ x_BD.mT - 1)  # unit vectors: |x - y|^2 = 2 - 2 x.y
    return near_BB.fill_diagonal_(-torch.inf).exp().sum().div(rows * (rows - 1)).log()


def sampled_softmax(
    score_B: Tensor, score_BC: Tensor, hit_BC: Tensor, log_q_B: Tensor | None = None, log_q_C: Tensor | None = None
) -> Tensor:
    """-ln of the share of the right item among it and the sampled candidates: (B,) in nats.

        L = -(s_y - ln Q_y) + ln sum_{c in {y} u C} exp(s_c - ln Q_c)

    Args:
        score_B: of the right items, over the temperature.
        score_BC: of the candidates.
        hit_BC: bool, True where a candidate is no negative: the row's right item itself, or another of its positives.
        log_q_B: ln Q of the right items; None for uniform Q. Alike:
        log_q_C: of the candidates.

    Source: Yi et al., 2019, doi:10.1145/3298689.3346996; without ln Q: Zhou et al., 2021, arXiv:2005.12964.
    """
    if log_q_B is not None:
        score_B, score_BC = score_B - log_q_B, score_BC - log_q_C
    lowest = torch.finfo(score_BC.dtype).min
    logit = torch.cat([score_B[:, None], score_BC.masked_fill(hit_BC, lowest)], -1)
    return logit.logsumexp(-1) - score_B
