"""Filter banks through strided convolutions: half as many frames a layer (S2T).

    x <- GLU(conv(x)),  kernel k, stride 2, padding k // 2;  the last layer is D wide and multiplied by sqrt(D)

Source: Wang et al., 2020, arXiv:2010.05171; convolutions and GLU as in Synnaeve et al., 2019, arXiv:1911.08460. Padding
frames are set to zero before each layer (ours), so that a recording gives the same states in any batch.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components._rows import Rows

__all__ = ["Speech"]


class Speech(nn.Module):
    """frames (B, F, features) float, frame_mask (B, F) bool -> (B, ceil(F / 2^layers), D).

    Args:
        width: D.
        features: filter banks of a frame.
        channels: of the inner layers, before GLU halves them.
        kernels: one odd kernel length a layer.
        scale: multiply by sqrt(D), for the sinusoids that follow.

    Raises:
        ValueError: an even kernel, or an odd number of channels.
    """

    def __init__(
        self, width: int, features: int = 80, channels: int = 1024, kernels: Sequence[int] = (5, 5), scale: bool = True
    ):
        super().__init__()
        if channels % 2 or not kernels or any(kernel % 2 == 0 for kernel in kernels):
            raise ValueError(
                f"speech needs an even number of channels and odd kernels; got {channels}, {list(kernels)}"
            )
        inputs = [features] + [channels // 2] * (len(kernels) - 1)
        outputs = [channels] * (len(kernels) - 1) + [2 * width]
        self.layers = nn.ModuleList(
            nn.Conv1d(*sizes, stride=2, padding=sizes[-1] // 2) for sizes in zip(inputs, outputs, kernels, strict=True)
        )
        self.features, self.factor = features, width**0.5 if scale else 1.0

    def rows(self, batch: Mapping[str, Tensor], stem: str = "") -> Rows:
        """Real places are those whose window is centred on a real frame."""
        mask = self._mask(batch, stem)
        for _ in self.layers:
            mask = mask[:, ::2]
        return Rows.of(mask.shape, mask.device, mask=mask)

    def forward(self, batch: Mapping[str, Tensor], rows: Rows, hidden: Tensor | None = None) -> Tensor:
        frames, mask = batch["frames"], self._mask(batch)
        if frames.shape[-1] != self.features:
            raise ValueError(f"frames have {frames.shape[-1]} features, but this model reads {self.features}")
        x = frames.mT
        for layer in self.layers:
            x = F.glu(layer(x.where(mask[:, None], 0)), dim=1)
            mask = mask[:, ::2]
        return x.mT * self.factor

    @staticmethod
    def _mask(batch: Mapping[str, Tensor], stem: str = "") -> Tensor:
        if (mask := batch.get(f"{stem}frame_mask")) is not None:
            return mask
        frames = batch[f"{stem}frames"]
        return torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
