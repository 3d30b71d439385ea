"""Batches and signals by rows: some of them, or all of them twice."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from models.distill._signals import LISTS, Signals

__all__ = ["halves", "rows_of", "twice"]


def twice(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch twice on end: what a pass needs whose second half is edited."""
    return {name: torch.cat([value, value]) for name, value in batch.items()}


def halves(signals: Signals) -> Signals:
    """Signals of the first half of the rows, with those of the second half as their `edited`."""
    count = len(signals.mask) // 2
    return replace(rows_of(signals, range(count)), edited=rows_of(signals, range(count, 2 * count)))


def rows_of(signals: Signals, rows: Sequence[int] | Tensor) -> Signals:
    """The signals of some rows of the batch."""
    rows = rows if isinstance(rows, Tensor) else torch.tensor(list(rows), dtype=torch.int64)
    rows = rows.to(signals.mask.device)

    def cut(name: str, value):
        if value is None:
            return None
        if name in LISTS:
            return [None if x is None else x[rows] for x in value]
        return rows_of(value, rows) if name == "edited" else value[rows]

    return replace(signals, **{f.name: cut(f.name, getattr(signals, f.name)) for f in fields(signals)})
