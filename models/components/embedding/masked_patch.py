"""Image patches, some replaced by one learned vector: what masked image modelling hides (BEiT).

Source: Bao et al., 2021, arXiv:2106.08254, section 2.3. Positions are added afterwards, so that a hidden patch still
says where it is.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.components._patches import Patches
from models.components._rows import Rows

__all__ = ["MaskedPatch"]


class MaskedPatch(Patches):
    """pixels (B, C, H, W) float and masked_patches (B, P) bool -> (B, 1 + P, D). Settings: see `Patches`.

    Without masked_patches nothing is hidden: fine-tuning and inference.
    """

    def __init__(self, width: int, size: int = 16, image: int = 224, channels: int = 3, bias: bool = True):
        super().__init__(width, size, image, channels, bias)
        self.hidden = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def rows(self, batch: Mapping[str, Tensor], stem: str = "") -> Rows:
        pixels = batch[f"{stem}pixels"]
        return self.places(len(pixels), pixels.device)

    def forward(self, batch: Mapping[str, Tensor], rows: Rows, hidden: Tensor | None = None) -> Tensor:
        x = self.project(batch["pixels"])
        if (masked := batch.get("masked_patches")) is not None:
            if masked.shape != x.shape[:2]:
                raise ValueError(
                    f"masked_patches is {tuple(masked.shape)}, but the images have {tuple(x.shape[:2])} patches"
                )
            x = torch.where(masked.unsqueeze(-1), self.hidden.to(x.dtype), x)
        return self.headed(x)
