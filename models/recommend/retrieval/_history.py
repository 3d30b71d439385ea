"""The vector that each node had when it was last in a batch: targets that cost no second encoder.

target = tau H[node] + (1 - tau) e          then   H[node] <- e          overwrite, as in RecDCL's code
                                            or     H[node] <- target     average: a moving average, as in its text
"""

import torch
from torch import Tensor, nn

__all__ = ["HISTORIES", "History"]

HISTORIES = ("overwrite", "average")


class History(nn.Module):
    """A table (N, D) without gradient, part of the checkpoint; it starts as N(0, 1).

    Args:
        nodes: N.
        width: D.
        keep: one of HISTORIES: what is remembered.

    Raises:
        ValueError: `keep` is none of them.
    """

    def __init__(self, nodes: int, width: int, keep: str):
        super().__init__()
        if keep not in HISTORIES:
            raise ValueError(f"history must be one of {', '.join(HISTORIES)}; got {keep!r}")
        self.keep = keep
        self.register_buffer("last", torch.randn(nodes, width))

    @torch.no_grad()
    def target(self, node: Tensor, now: Tensor, tau: float) -> Tensor:
        """tau H[node] + (1 - tau) now, (B, D); in training, H's rows of these nodes then change, and no others.

        Args:
            node: (B,) int64; rows of one node must be equal in `now`.
            now: (B, D).
            tau: share of the past, in [0, 1].
        """
        target = torch.lerp(now.detach(), self.last[node].to(now.dtype), tau)
        if self.training:
            self.last[node] = (now.detach() if self.keep == "overwrite" else target).to(self.last.dtype)
        return target
