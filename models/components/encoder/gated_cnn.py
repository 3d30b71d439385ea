"""Gated convolutions: a language model without recurrence or attention.

    h <- (h * W + b) x sigmoid(h * V + c),  causal convolutions of k tokens;  every `block` layers h <- h + h of before

Source: Dauphin et al., 2016, arXiv:1612.08083, equation 1. Convolutions begin anew with each document.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.components._recurrent import Sequences
from models.components._rows import Rows

__all__ = ["GatedCnn"]


class GatedCnn(nn.Module):
    """(B, T, D) -> (B, T, D); zero at padding; what stands at t reads tokens t - layers (k - 1) .. t.

    Args:
        width: D.
        layers: how many; a last block may be shorter.
        kernel: k, in tokens.
        block: layers between two residual sums.
        dropout: after the last layer.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, width: int, layers: int = 9, kernel: int = 4, block: int = 2, dropout: float = 0.1):
        super().__init__()
        if min(layers, kernel, block) < 1:
            raise ValueError(f"layers, kernel and block must be at least 1; got {layers}, {kernel} and {block}")
        self.kernel, self.block = kernel, block
        self.layers = nn.ModuleList(nn.Conv1d(width, 2 * width, kernel) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        sequences = Sequences(rows)
        x = kept = sequences.gather(hidden).mT
        for number, layer in enumerate(self.layers, 1):
            x = F.glu(layer(F.pad(x, (self.kernel - 1, 0))), dim=1)
            if number % self.block == 0:
                x = kept = x + kept
        return self.dropout(sequences.scatter(x.mT))
