"""Random numbers that follow from seed and step alone: a resumed run draws what an unbroken one drew."""

import torch
from torch import Tensor

__all__ = ["generator"]


def generator(seed: int, step: Tensor) -> torch.Generator:
    """A generator on the device of `step`, a scalar integer buffer that the caller counts up."""
    return torch.Generator(step.device).manual_seed(seed * 1_000_003 + int(step))
