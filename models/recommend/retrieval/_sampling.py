"""Batches of a log's pairs with sampled negatives; their order follows from the seed, and a run can be resumed.

The r-th item that a user has not seen is found by one binary search: if s_0 < s_1 < ... are the seen ones, s_j - j
unseen items lie before s_j, so the item is r plus the number of j with s_j - j <= r. A draw each, none rejected.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from models.recommend.retrieval._log import Log, LogError

__all__ = ["Pairs", "Unseen"]


class Unseen:
    """Draws items that a user has no pair with, each with equal chance.

    Raises:
        LogError: a user has a pair with every item.
    """

    def __init__(self, log: Log):
        self.left = log.items - log.user_degree
        if full := int((self.left == 0).sum()):
            raise LogError(f"{full} of {log.users} users have a pair with every item, so no negative can be drawn for "
                           f"them; leave them out of the training")  # fmt: skip
        self.span, self.starts = log.items + 1, log.starts
        position = torch.arange(len(log)) - log.starts[log.user]
        self.before = log.user * self.span + log.item - position  # unseen items before each seen one, rising

    def draw(self, user: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """(B, count) int64 for the users (B,); a user's draws are independent."""
        share = torch.rand(len(user), count, generator=generator, dtype=torch.float64)
        place = (share * self.left[user, None]).long()
        below = torch.searchsorted(self.before, user[:, None] * self.span + place, right=True)
        return place + below - self.starts[user, None]


class Pairs:
    """Endless batches {"user": (B,), "item": (B,)}, with "negative" (B, K) where negatives are asked for.

    Every epoch holds each pair once, in an order of its own; its last batch may be smaller.

    Args:
        log: the training pairs.
        batch: B.
        negatives: K, for each pair; 0 for none.
        seed: of order and negatives.
    """

    def __init__(self, log: Log, batch: int, negatives: int = 0, seed: int = 0):
        if batch < 1 or negatives < 0:
            raise LogError(f"batch must be at least 1 and negatives at least 0; got {batch}, {negatives}")
        self.log, self.batch, self.negatives, self.seed = log, batch, negatives, seed
        self.unseen = Unseen(log) if negatives else None
        self.step = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.log) // self.batch)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            epoch, first = divmod(self.step, len(self))
            order = torch.randperm(len(self.log), generator=self._generator(epoch, 0)).split(self.batch)
            for place in order[first:]:
                self.step += 1  # before the yield: a state taken between two batches is that of the next one
                yield self._batch(place)

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]

    def _batch(self, place: Tensor) -> dict[str, Tensor]:
        made = {"user": self.log.user[place], "item": self.log.item[place]}
        if self.unseen is not None:
            made["negative"] = self.unseen.draw(made["user"], self.negatives, self._generator(self.step, 1))
        return made

    def _generator(self, number: int, kind: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + number) * 2 + kind)
