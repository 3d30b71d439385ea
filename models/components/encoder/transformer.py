"""Transformer encoder: layers of self-attention, with every switch of BERT, GPT-2, LLaMA, BLOOM, T5, ALBERT and ViT.

Source: Vaswani et al., 2017, arXiv:1706.03762; switches as in Zhao et al., 2023 (TencentPretrain), arXiv:2212.06385.
"""

from torch import Tensor

from models.components._layers import Stack
from models.components._rows import Rows

__all__ = ["Transformer"]


class Transformer(Stack):
    __doc__ = Stack.__doc__

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.run(hidden, rows)
