"""Implicit feedback as a list of unique (user, item) pairs, sorted so that a user's items lie side by side."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Log", "LogError", "spread"]


class LogError(ValueError):
    """Pairs that are no log."""


@dataclass(frozen=True, eq=False)
class Log:
    """E unique pairs of `users` users and `items` items, sorted by user, then item; made by `Log.of`.

    A user or an item may have no pair: it is known, and has no interactions.
    """

    users: int
    items: int
    user: Tensor  # (E,) int64
    item: Tensor  # (E,) int64
    starts: Tensor  # (users + 1,) int64: the pairs of user u are starts[u]:starts[u + 1]

    @classmethod
    def of(cls, user: Tensor, item: Tensor, users: int | None = None, items: int | None = None) -> "Log":
        """A log of these pairs, in any order; of a pair given twice, one is kept.

        Args:
            user: (N,) integer.
            item: (N,) integer.
            users: number of users; None for the largest id + 1.
            items: number of items; None for the largest id + 1.

        Raises:
            LogError: no pair, sizes that differ, ids that are no integers, negative or too large; says how many.
        """
        user, item = torch.as_tensor(user), torch.as_tensor(item)
        if user.shape != item.shape or user.dim() != 1:
            raise LogError(f"one item for each user id: user {tuple(user.shape)}, item {tuple(item.shape)}")
        if not len(user):
            raise LogError("a log needs at least one pair of a user and an item; got none")
        users = _count("user", user, users)
        items = _count("item", item, items)
        key = user.long() * items + item.long()
        if not (key[1:] > key[:-1]).all():
            key = key.unique()
        user = key // items
        starts = F.pad(user.bincount(minlength=users).cumsum(0), (1, 0))
        return cls(users, items, user, key - user * items, starts)

    def __len__(self) -> int:
        return len(self.user)

    @cached_property
    def user_degree(self) -> Tensor:
        """(users,) int64: how many items each user has."""
        return self.starts.diff()

    @cached_property
    def item_degree(self) -> Tensor:
        """(items,) int64: how many users each item has."""
        return self.item.bincount(minlength=self.items)

    @cached_property
    def key(self) -> Tensor:
        """(E,) int64, rising: user * items + item, one number for each pair."""
        return self.user * self.items + self.item

    def has(self, user: Tensor, item: Tensor) -> Tensor:
        """Whether each pair of two integer tensors of one shape is in the log: bool of that shape."""
        key, wanted = self.key, user.long() * self.items + item.long()
        place = torch.searchsorted(key, wanted).clamp_(max=len(key) - 1)
        return key[place] == wanted

    def of_users(self, user: Tensor) -> tuple[Tensor, Tensor]:
        """The items of the users (B,), one user's after another's.

        Returns:
            (P,) int64, the row of `user` that each item belongs to, rising; (P,) int64 items, rising within a row.
        """
        row, place = spread(self.starts, user)
        return row, self.item[place]

    def to(self, device: torch.device | str) -> "Log":
        """The same log there."""
        return Log(self.users, self.items, self.user.to(device), self.item.to(device), self.starts.to(device))


def spread(starts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The places starts[w]:starts[w + 1] of the wanted w (B,), one after another.

    Returns:
        (P,) int64, the row of `wanted` that each place belongs to, rising; (P,) int64, the places.
    """
    start = starts[wanted]
    count = starts[wanted + 1] - start
    row = torch.arange(len(wanted), device=count.device).repeat_interleave(count)
    first = count.cumsum(0) - count
    return row, torch.arange(len(row), device=row.device) + (start - first)[row]


def _count(name: str, ids: Tensor, count: int | None) -> int:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise LogError(f"{name} ids are {ids.dtype}; they must be integers")
    low, high = (int(end) for end in ids.aminmax())
    count = high + 1 if count is None else count
    outside = int(((ids < 0) | (ids >= count)).sum()) if low < 0 or high >= count else 0
    if outside:
        raise LogError(
            f"{outside} of {len(ids)} {name} ids are outside 0..{count - 1} (they run from {low} to {high}); "
            f"number the {name}s without gaps from 0"
        )
    return count
