"""Means over the real tokens of a whole step, also where it is cut into micro-batches and ranks.

    L = sum_c (rows_c / rows) L_c        the sum over the cuts c of a step, see _distillation
    w_c = (n_c / n) / (rows_c / rows)    what a mean over the n_c tokens, or pairs of tokens, of a cut is multiplied by

so that L is the mean over all n of the step: cuts of short rows weigh less. Without a step around it, w is 1. What
compares rows with each other has no such weight; a method that does says `uncut`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["counts_of", "weight", "whole_step"]

KINDS = {2: "tokens", 3: "pairs"}  # of what a mask (B, T) or (B, T, T) is about
_SHARES: ContextVar[Mapping[str, Tensor] | None] = ContextVar("shares", default=None)


def counts_of(mask_BT: Tensor) -> dict[str, Tensor]:
    """Rows, real tokens and pairs of them in a batch: scalars, float32."""
    real_B = mask_BT.sum(-1).float()
    rows = torch.tensor(float(len(mask_BT)), device=mask_BT.device)
    return {"rows": rows, "tokens": real_B.sum(), "pairs": real_B.square().sum()}


@contextmanager
def whole_step(counts: Mapping[str, Tensor], mask_BT: Tensor) -> Iterator[None]:
    """Inside of the block, `weight` knows this cut's share of a step whose `counts_of` are summed over all cuts."""
    own = counts_of(mask_BT)
    rows = own["rows"] / counts["rows"]
    before = _SHARES.set({kind: own[kind] / counts[kind].clamp(min=1) / rows for kind in KINDS.values()})
    try:
        yield
    finally:
        _SHARES.reset(before)


def weight(mask: Tensor) -> Tensor | float:
    """w of a mean over the True places of a mask, (B, T) of tokens or (B, T, T) of pairs."""
    shares = _SHARES.get()
    return 1.0 if shares is None else shares[KINDS[mask.ndim]]
