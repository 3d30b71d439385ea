"""Exact search of the items with the largest products, by a rough product first.

    f = bfloat16(b(u) . b(v))      b rounds to bfloat16; u . v differs from the sum before its last rounding by at most
    e = |u - b(u)| |v| + |b(u)| |v - b(v)| + g |u| |v|          (g: float32 sums of D products)

If t is the k-th largest of the f, or a bound below it, the k-th largest u . v is at least t - e, so every one of the k
best items has f >= t - 2e, each side rounded down. These few are multiplied again in float32, one by one and always in
the same order: the result depends neither on the rough product, nor on the chunks, threads or machine's kernels. Ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.recommend._top import kth_largest, padded
from models.recommend.retrieval._log import Log

__all__ = ["Search"]

BLOCK = 16  # items whose maximum is taken
CELLS = 1 << 22  # numbers held at a time while candidates are multiplied again


class Search:
    """Finds the k best items of users.

    Args:
        users: (U, D), vectors of all users.
        items: (I, D).
        k: items to find, at most I.
        rough: type of the rough product; None: bfloat16 where the processor multiplies it, else float32.
    """

    def __init__(self, users: Tensor, items: Tensor, k: int, rough: torch.dtype | None = None):
        self.users, self.items, self.k = users, items.float(), k
        self.rough = _rough_type(items.device) if rough is None else rough
        count, width = items.shape
        self.block = max(1, min(BLOCK, count // (4 * k)))
        # Zero rows fill the last block.
        self.coarse = F.pad(self.items, (0, 0, 0, -count % self.block)).to(self.rough)
        norm_I, lost_I = self.items.norm(dim=1), (self.items - self.coarse[:count]).norm(dim=1)
        self.norm, self.lost = norm_I.max(), lost_I.max()
        self.last_error = torch.finfo(self.rough).eps
        self.sum_error = (width + 8) * torch.finfo(torch.float32).eps
        self.memory = self.coarse.new_empty(0)

    def best(self, user: Tensor, seen: Log | None) -> tuple[Tensor, Tensor]:
        """Scores and items (B, k) of the users (B,), best first; -inf and item 0 where none is left."""
        u_BD = F.embedding(user, self.users).float()
        row, item = self._candidates(u_BD, user, seen)
        parts = zip(*(part.split(max(1, CELLS // u_BD.shape[1])) for part in (row, item)), strict=True)
        score = torch.cat([F.embedding(r, u_BD).mul_(F.embedding(i, self.items)).sum(1) for r, i in parts])
        score, item = padded(row, item, score, len(user), self.k)
        score, place = score.sort(dim=1, descending=True, stable=True)
        return score[:, : self.k].contiguous(), item.gather(1, place[:, : self.k])

    def _candidates(self, u_BD: Tensor, user: Tensor, seen: Log | None) -> tuple[Tensor, Tensor]:
        """Rows of u and items (R,), sorted by row and then item, with the k best among them."""
        rough_BD = u_BD.to(self.rough)
        f_IB = self._product(rough_BD)
        f_IB[len(self.items) :] = -torch.inf
        if seen is not None:
            row, item = seen.of_users(user)
            f_IB.view(-1)[item * len(user) + row] = -torch.inf
        maxima_NB = f_IB.view(-1, self.block, len(user)).amax(1)
        maxima_BN = torch.empty(maxima_NB.mT.shape, device=f_IB.device).copy_(maxima_NB.mT)
        size_B = u_BD.norm(dim=1)
        error_B = (u_BD - rough_BD).norm(dim=1) * self.norm + rough_BD.float().norm(dim=1) * self.lost
        error_B += self.sum_error * size_B * self.norm
        least_B = self._down(self._down(kth_largest(maxima_BN, self.k)) - 2 * error_B)
        # Finite, so that no seen item is a candidate.
        least_B.clamp_(min=torch.finfo(torch.float32).min)
        row, block = (maxima_BN >= least_B[:, None]).nonzero(as_tuple=True)
        place_RK = (block * self.block * len(user) + row)[:, None] + self.within * len(user)
        f_RK = f_IB.view(-1).index_select(0, place_RK.view(-1)).view(place_RK.shape)
        chosen, within = (f_RK >= least_B[row, None]).nonzero(as_tuple=True)
        return row[chosen], block[chosen] * self.block + within

    def _product(self, rough_BD: Tensor) -> Tensor:
        """Rough scores (items, B), in memory that serves again."""
        shape = len(self.coarse), len(rough_BD)
        if self.memory.shape != shape:
            self.memory = self.coarse.new_empty(shape)
        return torch.mm(self.coarse, rough_BD.mT, out=self.memory)

    def _down(self, least_B: Tensor) -> Tensor:
        """What a score that rounds to this one is at least."""
        return least_B - least_B.abs() * self.last_error

    @property
    def within(self) -> Tensor:
        return torch.arange(self.block, device=self.items.device)


def _rough_type(device: torch.device) -> torch.dtype:
    able = torch.cpu.get_capabilities()
    fast = device.type != "cpu" or any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32
