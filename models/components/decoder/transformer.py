"""Transformer decoder: causal self-attention, then cross-attention to the encoder's states, in each layer.

Source: Vaswani et al., 2017, arXiv:1706.03762.
"""

from torch import Tensor

from models.components._layers import Stack
from models.components._rows import Rows

__all__ = ["Transformer"]


class Transformer(Stack):
    __doc__ = Stack.__doc__
    cross = True
    kind = "causal"

    def forward(self, hidden: Tensor, rows: Rows, memory: Tensor, memory_rows: Rows) -> Tensor:
        """(B, S, D) and the encoder's (B, T, D) -> (B, S, D)."""
        return self.run(hidden, rows, memory, memory_rows)
