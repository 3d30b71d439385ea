"""Image patches, projected, behind a class vector (ViT).

Source: Dosovitskiy et al., 2020, arXiv:2010.11929, equation 1. The projection has a bias, as in the authors' code and
in transformers; CLIP's has none: `bias: false`.
"""

from collections.abc import Mapping

from torch import Tensor

from models.components._patches import Patches
from models.components._rows import Rows

__all__ = ["Patch"]


class Patch(Patches):
    """pixels (B, C, H, W) float -> (B, 1 + P, D); P = (image / size)^2. Settings: see `Patches`."""

    def rows(self, batch: Mapping[str, Tensor], stem: str = "") -> Rows:
        pixels = batch[f"{stem}pixels"]
        return self.places(len(pixels), pixels.device)

    def forward(self, batch: Mapping[str, Tensor], rows: Rows, hidden: Tensor | None = None) -> Tensor:
        return super().forward(batch["pixels"])
