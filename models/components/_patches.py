"""Images as rows of patches, and what stands at the places of such a row."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components._rows import Rows

__all__ = ["Patches"]


class Patches(nn.Module):
    """Cut an image into squares, project each, and put a class vector before them.

        x_p = W vec(patch_p) + b,  row = [class, x_1 ... x_P]  in reading order

    Args:
        width: D.
        size: edge of a patch, in pixels.
        image: edge of the image, in pixels.
        channels: of the image.
        bias: b.

    Raises:
        ValueError: the patch does not divide the image.
    """

    def __init__(self, width: int, size: int = 16, image: int = 224, channels: int = 3, bias: bool = True):
        super().__init__()
        if size < 1 or image % size:
            raise ValueError(f"patches of {size} pixels do not divide an image of {image}; give a divisor of {image}")
        self.size, self.image, self.channels, self.count = size, image, channels, (image // size) ** 2
        self.weight = nn.Parameter(torch.empty(width, channels, size, size).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.cls = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def project(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, P, D).

        Raises:
            ValueError: not the channels and the edge that this model was built for.
        """
        wanted = (self.channels, self.image, self.image)
        if tuple(pixels.shape[1:]) != wanted:
            raise ValueError(
                f"images are {tuple(pixels.shape[1:])}, but this model reads {wanted} (channels, height, width); "
                f"resize them, or set `image` and `channels`"
            )
        edge = self.image // self.size
        squares = pixels.unflatten(3, (edge, self.size)).unflatten(2, (edge, self.size))  # B C h s w s
        squares = squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(squares, self.weight.flatten(1), self.bias)  # a stride-s convolution, as one product

    def headed(self, x: Tensor) -> Tensor:
        """(B, P, D) -> (B, 1 + P, D), the class vector first."""
        return torch.cat([self.cls.expand(len(x), 1, -1).to(x.dtype), x], 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + P, D)."""
        return self.headed(self.project(pixels))

    def places(self, batch: int, device: torch.device, start: int = 0) -> Rows:
        """(batch, 1 + P) real places, numbered from `start`."""
        shape = (batch, 1 + self.count)
        return Rows.of(
            shape, device, positions=torch.arange(start, start + shape[1], device=device)[None].expand(shape)
        )
