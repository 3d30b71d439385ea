"""Sinusoidal: fixed waves, from one radian a place to a ten-thousandth of it.

    angle_ti = position_t / 10000^(i / (E/2)),  e_t = sin and cos of the E/2 angles

Source: Vaswani et al., 2017, arXiv:1706.03762, section 3.5, which interleaves sin and cos; transformers' PEGASUS and
Marian put all sin before all cos. tensor2tensor and fairseq divide i by E/2 - 1, so that the last angle is reached.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.components._rows import Rows

__all__ = ["Sinusoidal"]


class Sinusoidal(nn.Module):
    """Fixed positions; no parameters and no longest row.

    Args:
        width: E, even.
        interleaved: sin, cos, sin, cos ...; otherwise all sin, then all cos.
        reached: the last angle is position / 10000 (fairseq).
        start: number of the first token.
        counted: number real tokens only; padding adds nothing (fairseq).
    """

    def __init__(
        self, width: int, interleaved: bool = False, reached: bool = False, start: int = 0, counted: bool = False
    ):
        super().__init__()
        if width % 2:
            raise ValueError(f"sinusoidal positions come in pairs, but the width is {width}")
        self.width, self.interleaved, self.reached = width, interleaved, reached
        self.start, self.counted = start, counted

    def forward(self, batch: Mapping[str, Tensor], rows: Rows, hidden: Tensor | None = None) -> Tensor:
        """(B or 1, T, E), the latter where all rows count alike."""
        places = rows.counted(self.start) if self.counted else rows.places + self.start
        half = self.width // 2
        # float64 first: at place 1000 float32 has lost the fourth digit of an angle
        step = torch.arange(half, device=places.device, dtype=torch.float64) / max(half - self.reached, 1)
        angle_BTI = places[..., None] * 10000.0**-step
        waves = angle_BTI.sin(), angle_BTI.cos()
        table = torch.stack(waves, -1).flatten(-2) if self.interleaved else torch.cat(waves, -1)
        if self.counted and not rows.full:
            table = table * rows.mask[..., None]
        return table.to(torch.float32 if hidden is None else hidden.dtype)
