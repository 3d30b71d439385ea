"""Long short-term memory, left to right.

    c_t = f * c_{t-1} + i * tanh(W x_t + U h_{t-1} + b),  h_t = o * tanh(c_t);  i, f, o = sigmoid of the same kind

Source: Hochreiter and Schmidhuber, 1997, doi:10.1162/neco.1997.9.8.1735, with forget gates. State is carried from
token to token of one document only.
"""

from torch import nn

from models.components._recurrent import OneWay

__all__ = ["Lstm"]


class Lstm(OneWay):
    """(B, T, D) -> (B, T, D); zero at padding. Arguments: see `OneWay`."""

    def __init__(self, width: int, layers: int = 2, dropout: float = 0.1):
        super().__init__(nn.LSTM, width, layers, dropout)
