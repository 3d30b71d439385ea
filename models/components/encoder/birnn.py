"""Elman's recurrent layers in both directions, kept apart.

    h = [ahead(x), back(x)], each D / 2 wide

Source: Elman, 1990, doi:10.1207/s15516709cog1402_1; two independent stacks as in Peters et al., 2018,
arXiv:1802.05365. State is carried from token to token of one document only.
"""

from torch import nn

from models.components._recurrent import BothWays

__all__ = ["BiRnn"]


class BiRnn(BothWays):
    """(B, T, D) -> (B, T, D); zero at padding. Arguments: see `BothWays`."""

    def __init__(self, width: int, layers: int = 2, dropout: float = 0.1):
        super().__init__(nn.RNN, width, layers, dropout)
