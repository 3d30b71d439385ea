"""Position: a learned row for each place.

    e_t = W[start + position_t]

Source: Devlin et al., 2018, arXiv:1810.04805. Counted over real tokens from row 2, as in fairseq's RoBERTa (Liu et al.,
2019, arXiv:1907.11692), padding takes row 1.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.components._rows import Rows

__all__ = ["Position"]


class Position(nn.Module):
    """Learned positions.

    Args:
        width: E.
        length: rows of the table; the longest document is `length - start` tokens.
        start: the row of the first token.
        counted: number real tokens only; padding takes row `start - 1`. Packed rows keep the batch's positions.
    """

    def __init__(self, width: int, length: int = 512, start: int = 0, counted: bool = False):
        super().__init__()
        if counted and start < 1:
            raise ValueError(f"counted positions need a row before the first token for padding, but start is {start}")
        if length <= start:
            raise ValueError(f"length {length} leaves no row from start {start} on")
        self.length, self.start, self.counted = length, start, counted
        self.weight = nn.Parameter(torch.empty(length, width))

    def forward(self, batch: Mapping[str, Tensor], rows: Rows, hidden: Tensor | None = None) -> Tensor:
        """(B or 1, T, E), the latter where all rows count alike.

        Raises:
            ValueError: a position beyond the table.
        """
        places = rows.counted(self.start) if self.counted else rows.places + self.start
        longest = rows.mask.shape[1] + self.start
        if longest > self.length and (longest := int(places.max()) + 1) > self.length:
            raise ValueError(
                f"position {longest - 1 - self.start} needs row {longest - 1} of a table of {self.length}; cut the "
                f"rows to {self.length - self.start} tokens, or give position a length of {longest}"
            )
        return F.embedding(places, self.weight)
