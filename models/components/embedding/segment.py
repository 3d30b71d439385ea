"""Segment: a learned row for each kind of token, such as first and second sentence.

    e_t = W[segment_t]

Source: Devlin et al., 2018, arXiv:1810.04805.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.components._rows import Rows

__all__ = ["Segment"]


class Segment(nn.Module):
    """Token types.

    Args:
        width: E.
        kinds: rows of the table; 1 is what RoBERTa keeps of it.
    """

    def __init__(self, width: int, kinds: int = 2):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kinds, width))

    def forward(self, batch: Mapping[str, Tensor], rows: Rows, hidden: Tensor | None = None) -> Tensor:
        """segments (B, T) of the batch -> (B, T, E); without that field, or with one kind, (1, 1, E)."""
        segments = batch.get("segments")
        if segments is None or len(self.weight) == 1:
            return self.weight[None, :1]
        return F.embedding(segments, self.weight)
