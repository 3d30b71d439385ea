"""Long short-term memory in both directions, kept apart (ELMo).

    h = [ahead(x), back(x)], each D / 2 wide

Source: Peters et al., 2018, arXiv:1802.05365, without its projections and residual. State is carried from token to
token of one document only.
"""

from torch import nn

from models.components._recurrent import BothWays

__all__ = ["BiLstm"]


class BiLstm(BothWays):
    """(B, T, D) -> (B, T, D); zero at padding. Arguments: see `BothWays`."""

    def __init__(self, width: int, layers: int = 2, dropout: float = 0.1):
        super().__init__(nn.LSTM, width, layers, dropout)
