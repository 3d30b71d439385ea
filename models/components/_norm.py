"""Normalisations: LayerNorm with torch's biased variance, and RMSNorm, which T5 and LLaMA share.

layer   w (x - mean) / sqrt(var + eps) + b     Ba et al., 2016, arXiv:1607.06450
rms     w x / sqrt(mean(x^2) + eps)            Zhang and Sennrich, 2019, arXiv:1910.07467
"""

import torch
from torch import Tensor, nn

from models.components._closest import refuse_unknown

__all__ = ["RMSNorm", "make_norm"]


class RMSNorm(nn.Module):
    """Root mean square norm, in float32 whatever the input: (..., D) -> (..., D)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.rms_norm(hidden.float(), self.weight.shape, self.weight.float(), self.eps).to(hidden.dtype)


NORMS = {"layer": nn.LayerNorm, "rms": RMSNorm, "t5": RMSNorm, "none": None}


def make_norm(kind: str | bool | None, width: int, eps: float) -> nn.Module:
    """The norm of that name over D = width; "none", null or false leave things as they are.

    Raises:
        ValueError: no such norm.
    """
    kind = kind or "none"
    refuse_unknown("norm", kind, NORMS, ValueError)
    return NORMS[kind](width, eps=eps) if NORMS[kind] else nn.Identity()
