"""Labels of a batch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.components._loss import IGNORED

__all__ = ["count_labels", "read_labels"]


def read_labels(batch: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """The labels of that name.

    Raises:
        LookupError: the batch has none.
        ValueError: they are not of the shape of what they label.
    """
    if name not in batch:
        listed = ", ".join(sorted(batch)) or "no field"
        raise LookupError(f"the batch has no {name}, only: {listed}; the processor must be that of this target")
    if batch[name].shape != tuple(shape):
        raise ValueError(f"{name} is {tuple(batch[name].shape)}, but what it labels is {tuple(shape)}")
    return batch[name]


def count_labels(batch: Mapping[str, Tensor], name: str) -> Tensor:
    """How many labels count, a float32 scalar."""
    return (read_labels(batch, name, batch[name].shape if name in batch else ()) != IGNORED).sum().to(torch.float32)
