"""Elman's recurrent layers, left to right.

    h_t = tanh(W x_t + U h_{t-1} + b)

Source: Elman, 1990, doi:10.1207/s15516709cog1402_1. State is carried from token to token of one document only.
"""

from torch import nn

from models.components._recurrent import OneWay

__all__ = ["Rnn"]


class Rnn(OneWay):
    """(B, T, D) -> (B, T, D); zero at padding. Arguments: see `OneWay`."""

    def __init__(self, width: int, layers: int = 2, dropout: float = 0.1):
        super().__init__(nn.RNN, width, layers, dropout)
