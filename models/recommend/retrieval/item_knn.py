"""Item-kNN: an item is recommended by those of its nearest items that the user has seen.

    s_ij = n_ij / (sqrt(n_i n_j) + h)         n_ij users of both, n_i of i; h shrinks similarities of few users
    score(u, i) = sum of s_ij over the K items j most similar to i that u has seen

Source: Sarwar et al., 2001, doi:10.1145/371920.372071, section 3, with the cosine of binary vectors and no division by
the sum of similarities, which makes no sense without ratings. Ours: K = 100, h = 20.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.recommend._top import padded
from models.recommend.retrieval._log import Log, spread
from models.recommend.retrieval._retrieval import Retrieval

__all__ = ["ItemKNN"]

CELLS = 1 << 22  # similarities, and pairs of an item and a user's other item, held at a time


class ItemKNN(Retrieval):
    """Neighbourhoods of items by the users they share; nothing is trained.

    Args:
        log: the training pairs; the model reads the histories of its users there, they are not saved with it.
        neighbours: K, at most I.
        shrink: h, in users.
    """

    fitted = True
    product = False

    def __init__(self, log: Log, neighbours: int = 100, shrink: float = 20.0):
        super().__init__(log)
        if neighbours < 1 or shrink < 0:
            raise ValueError(f"neighbours must be at least 1 and shrink at least 0; got {neighbours}, {shrink}")
        self.register_buffer("item", log.item, persistent=False)
        self.register_buffer("starts", log.starts, persistent=False)
        near, like = _nearest(log, min(neighbours, log.items), shrink)
        # Kept by neighbour: a user's few items say directly which items they speak for.
        item, place = (like > 0).nonzero(as_tuple=True)
        order = near[item, place].argsort(stable=True)
        self.register_buffer("near_item", item[order])
        self.register_buffer("near_like", like[item, place][order])
        count = near[item, place].bincount(minlength=log.items)
        self.register_buffer("near_starts", F.pad(count.cumsum(0), (1, 0)))

    @torch.no_grad()
    def score(self, user: Tensor) -> Tensor:
        row, place = spread(self.starts, user)
        return self._votes(row, self.item[place], len(user))

    @torch.no_grad()
    def score_histories(self, seen: Log) -> Tensor:
        return self._votes(seen.user, seen.item, seen.users)

    def _votes(self, row: Tensor, seen: Tensor, rows: int) -> Tensor:
        """Scores (rows, I) of all items by the seen ones (P,), each of a row."""
        pair, entry = spread(self.near_starts, seen)
        flat = self.near_like.new_zeros(rows * self.items)
        flat.index_add_(0, row[pair] * self.items + self.near_item[entry], self.near_like[entry])
        return flat.view(rows, -1)


def _nearest(log: Log, count: int, shrink: float) -> tuple[Tensor, Tensor]:
    """The most similar items of each item and their similarities, (I, count); of equal ones the smaller id first."""
    other = Log.of(log.item, log.user, log.items, log.users)  # users of an item
    root, found = log.item_degree.double().sqrt(), []
    work_I = torch.zeros(log.items, dtype=torch.int64).index_add_(0, log.item, log.user_degree[log.user]) + log.items
    group_I = work_I.cumsum(0) // CELLS
    for item in torch.arange(log.items).split(group_I.unique_consecutive(return_counts=True)[1].tolist()):
        row, user = other.of_users(item)
        pair, both = log.of_users(user)
        cell = row[pair] * log.items + both
        shared = torch.bincount(cell, minlength=len(item) * log.items).view(len(item), -1)
        shared[torch.arange(len(item)), item] = 0  # an item is no neighbour of itself
        row, near = shared.nonzero(as_tuple=True)
        like = shared[row, near] / (root[item[row]] * root[near] + shrink)
        like, near = padded(row, near, like.float(), len(item), count)
        like, place = like.sort(dim=1, descending=True, stable=True)
        found.append((near.gather(1, place[:, :count]), like[:, :count].clamp(min=0)))
    near, like = (torch.cat(part) for part in zip(*found, strict=True))
    return near, like
