"""Where sampled negatives come from: a queue of the latest positives, and how often each item is drawn."""

import torch
from torch import Tensor, nn

__all__ = ["Frequency", "Queue"]


class Queue(nn.Module):
    """The vectors of the latest positives, first in, first out, without gradient; saved with the model.

    Args:
        size: vectors kept; 0 for none.
        width: K.
    """

    def __init__(self, size: int, width: int):
        super().__init__()
        if size < 0:
            raise ValueError(f"a queue holds 0 vectors or more, got {size}")
        self.register_buffer("vector", torch.zeros(size, width))
        self.register_buffer("item", torch.full((size,), -1))  # -1: nothing there yet
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))  # of the next to enter

    def push(self, item: Tensor, vector: Tensor) -> None:
        """Let a batch enter, items (B,) and vectors (B, K); of one longer than the queue the end."""
        if not (size := len(self.item)):
            return
        item, vector = item[-size:], vector[-size:].detach()
        slot = (self.place + torch.arange(len(item), device=item.device)) % size
        self.vector[slot], self.item[slot] = vector.to(self.vector.dtype), item
        self.place.copy_((self.place + len(item)) % size)


class Frequency(nn.Module):
    """How often each item comes by in a stream of examples, estimated on the way.

        gap <- gap + w (t - last - gap),   last <- t,   Q = 1 / gap           w = max(1 / n, rate), n = gaps seen

    t counts examples, so that Q is a share. The paper's w is fixed, and starts biased: the running mean of the first
    gaps is ours. Its hashed slots are had by fewer slots than items.
    Source: Yi et al., 2019, doi:10.1145/3298689.3346996, algorithm 2.

    Args:
        slots: of the items; item i uses slot i mod slots.
        rate: weight of a new gap once many were seen, in (0, 1].
    """

    def __init__(self, slots: int, rate: float = 0.01):
        super().__init__()
        if slots < 1 or not 0 < rate <= 1:
            raise ValueError(f"an estimate needs a slot and a rate in (0, 1]; got {slots} slots and rate {rate}")
        self.slots, self.rate = slots, rate
        self.register_buffer("last", torch.zeros(slots, dtype=torch.int64))
        self.register_buffer("gap", torch.zeros(slots, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(slots, dtype=torch.int64))
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64))

    def update(self, item: Tensor) -> None:
        """Let the examples of a batch (B,) come by, in their order."""
        slot, inverse, count = (item % self.slots).unique(return_inverse=True, return_counts=True)
        time = self.clock + 1 + torch.arange(len(item), device=item.device)
        last = torch.zeros_like(slot).scatter_reduce_(0, inverse, time, "amax", include_self=False)
        mean = (last - self.last[slot]) / count.double()  # of an item that came several times: of all its gaps
        seen = self.seen[slot] + count
        weight = torch.maximum(count / seen, 1 - (1 - self.rate) ** count.double())
        self.gap[slot] += weight * (mean - self.gap[slot])
        self.last[slot], self.seen[slot] = last, seen
        self.clock += len(item)

    def share(self, item: Tensor) -> Tensor:
        """Q of items, float32 of their shape; of one that never came, 1 / (examples so far + 1)."""
        slot = item % self.slots
        gap = torch.where(self.seen[slot] > 0, self.gap[slot], (self.clock + 1).double())
        return (1 / gap.clamp(min=1)).float()
