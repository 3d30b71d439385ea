"""The k best of many scores, exactly: of equal scores the smaller id comes first.

    t = k-th largest of the blocks' maxima <= k-th largest score

One pass finds the maxima; whatever reaches t is sorted, a few more than k, and nothing else is. Ours.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["kth_largest", "padded", "top"]

BLOCK = 32


def top(score_BI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best scores of each row, best first, and their columns: two (B, k); k is at most I.

    Raises:
        ValueError: k is not in 1..I, or a score is NaN.
    """
    items = score_BI.shape[1]
    if not 1 <= k <= items:
        raise ValueError(f"k must be in 1..{items}, the number of items; got {k}")
    block = max(1, min(BLOCK, items // (4 * k)))
    whole = items - items % block
    blocks_BN = score_BI[:, :whole].unflatten(1, (-1, block)).amax(-1) if block > 1 else score_BI
    maxima = torch.cat([blocks_BN, score_BI[:, whole:]], 1) if whole < items else blocks_BN
    least_B = kth_largest(maxima.float(), k)
    if least_B.isnan().any():
        raise ValueError(f"scores of {int(score_BI.isnan().any(1).sum())} of {len(score_BI)} rows are NaN")
    row, item = (score_BI >= least_B[:, None]).nonzero(as_tuple=True)
    score, item = padded(row, item, score_BI[row, item], len(score_BI), k)
    score, place = score.sort(dim=1, descending=True, stable=True)
    return score[:, :k].contiguous(), item.gather(1, place[:, :k])  # no view: it would keep all candidates alive


def kth_largest(score_BN: Tensor, k: int) -> Tensor:
    """(B,) the k-th largest of each row; NaN for a row with a NaN."""
    count = score_BN.shape[1]
    if score_BN.is_cuda:
        return torch.where(score_BN.isnan().any(1), torch.nan, score_BN.topk(k).values[:, -1])
    # A partition, unlike a sort or torch's selection, runs on vectors of the processor. NaN is its largest number.
    parted = np.partition(score_BN.numpy(), [count - k, count - 1], axis=1)
    least, largest = (torch.from_numpy(parted[:, place].copy()) for place in (count - k, count - 1))
    return torch.where(largest.isnan(), torch.nan, least)


def padded(row: Tensor, item: Tensor, score: Tensor, rows: int, least: int) -> tuple[Tensor, Tensor]:
    """Candidates (R,), sorted by row, as scores and items (rows, C), C at least `least`; -inf and 0 pad."""
    count = row.bincount(minlength=rows)
    width = max(int(count.max()), least)
    place = row * width + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    score_BC = F.pad(score.new_empty(0), (0, rows * width), value=-torch.inf).scatter_(0, place, score)
    item_BC = item.new_zeros(rows * width).scatter_(0, place, item)
    return score_BC.view(rows, width), item_BC.view(rows, width)
