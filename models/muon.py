"""Muon for the matrices of a model's layers and AdamW for all else, as one optimizer.

A layer's matrix W moves along its momentum M made orthogonal, in AdamW's size, so that one rate serves both:

    M <- .95 M + .05 grad       W <- W - lr (.2 sqrt(max(rows, columns)) O(.95 M + .05 grad) + decay W)

O keeps the singular vectors and brings the singular values near 1, by five steps of Newton-Schulz in bfloat16.

Source: Jordan et al., 2024, kellerjordan.github.io/posts/muon; the size: Liu et al., 2025, arXiv:2502.16982.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["Muon", "matrices_of_layers"]


def matrices_of_layers(model: nn.Module) -> list[nn.Parameter]:
    """Trained matrices of linear maps inside of layers: no tables, no heads, nothing before or after the layers."""
    found = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and "layers" in name.split(".") and part.weight.requires_grad:
            found[id(part.weight)] = part.weight
    return list(found.values())


class Muon(torch.optim.Optimizer):
    """torch's Muon and AdamW, stepped together; schedules, clipping and checkpoints see one optimizer.

    Args:
        matrices: that Muon moves.
        groups: of all other parameters, each {"params", "weight_decay"}.
        lr: of both.
        betas: of AdamW.
        weight_decay: of the matrices.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        groups: Sequence[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ):
        self.parts = (
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=True),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": lr})
        self._share()

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of all parameters that have a gradient."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` of an optimizer over the same parameters gave."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """The parts work on this optimizer's groups, the first of which is the matrices', and on its state."""
        for part, groups in zip(self.parts, (self.param_groups[:1], self.param_groups[1:]), strict=True):
            part.param_groups, part.state = groups, self.state
