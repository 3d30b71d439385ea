"""Gated recurrent units, left to right.

    h_t = z * h_{t-1} + (1 - z) * tanh(W x_t + r * (U h_{t-1} + b));  z, r = sigmoid(W' x_t + U' h_{t-1} + b')

Source: Cho et al., 2014, arXiv:1406.1078, with the reset after the product, as torch and cuDNN have it. State is
carried from token to token of one document only.
"""

from torch import nn

from models.components._recurrent import OneWay

__all__ = ["Gru"]


class Gru(OneWay):
    """(B, T, D) -> (B, T, D); zero at padding. Arguments: see `OneWay`."""

    def __init__(self, width: int, layers: int = 2, dropout: float = 0.1):
        super().__init__(nn.GRU, width, layers, dropout)
