"""Word: a row of a table for each token.

    e_t = W[id_t], times sqrt(D) in the company of fixed sinusoids, whose entries are of size 1

Source: Vaswani et al., 2017, arXiv:1706.03762, section 3.4.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.components._rows import Rows

__all__ = ["Word"]


class Word(nn.Module):
    """Token table.

    Args:
        width: E.
        vocabulary: V, its rows.
    """

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        if not isinstance(vocabulary, int) or vocabulary < 1:
            raise ValueError(f"vocabulary must be a whole number from 1 on, got {vocabulary!r}")
        self.weight = nn.Parameter(torch.empty(vocabulary, width))

    def forward(self, batch: Mapping[str, Tensor], rows: Rows, hidden: Tensor | None = None) -> Tensor:
        """ids (B, T) of the batch -> (B, T, E)."""
        return F.embedding(batch["ids"], self.weight)
