"""Popularity: the items with the most users, the same list for everyone; the floor of every table."""

import torch
from torch import Tensor

from models.recommend.retrieval._log import Log
from models.recommend.retrieval._retrieval import Retrieval

__all__ = ["Popularity"]


class Popularity(Retrieval):
    """Scores an item by its users in the training log; nothing is trained."""

    fitted = True

    def __init__(self, log: Log):
        super().__init__(log)
        self.register_buffer("count", log.item_degree.float())

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.count.new_ones(self.users, 1), self.count[:, None]

    @torch.no_grad()
    def fold_in(self, seen: Log) -> Tensor:
        return self.count.new_ones(seen.users, 1)
