"""Images as a model reads them: cut to a square, perhaps to a random part of it, resized and normalised."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["CLIP_MEAN", "CLIP_STD", "Pixels"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, per channel
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TRIES = 10  # random parts drawn before the whole square is taken


class Pixels:
    """(H, W, 3) uint8 -> (3, size, size) float32.

    Args:
        size: edge in pixels; None for the shorter edge of the image.
        crop: smallest share of the square that is cut out at random; None for all of it.
        flip: whether left and right change places in half of the rows.
        mean, std: per channel, of values in 0..1.
        still: no chance at all: the middle square, not flipped.
    """

    def __init__(
        self,
        size: int | None,
        crop: float | None = None,
        flip: bool = False,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        still: bool = False,
    ):
        if (size is not None and size < 1) or (crop is not None and not 0 < crop <= 1):
            raise ValueError(f"images need a size of at least 1 pixel and a crop in (0, 1]; got {size} and {crop}")
        self.size, self.crop, self.flip, self.still = size, crop, flip, still
        self.mean, self.std = (torch.tensor(value).view(3, 1, 1) for value in (mean, std))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = self._square(np.asarray(image), rng)
        size = self.size or len(image)
        if self.crop is not None and not self.still:
            image = part(image, self.crop, rng)
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
        if pixels.shape[1:] != (size, size):
            pixels = F.interpolate(pixels[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
        if self.flip and not self.still and rng.random() < 0.5:
            pixels = pixels.flip(2)
        return ((pixels - self.mean) / self.std).numpy()

    def _square(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        edge = min(image.shape[:2])
        spare = [length - edge for length in image.shape[:2]]
        top, left = (s // 2 if self.still else int(rng.integers(s + 1)) for s in spare)
        return image[top : top + edge, left : left + edge]


def part(image: np.ndarray, smallest: float, rng: np.random.Generator) -> np.ndarray:
    """A random part with a share of the area in smallest..1 and an aspect in 3/4..4/3.

    Source: Szegedy et al., 2015, arXiv:1409.4842, section 6.
    """
    height, width = image.shape[:2]
    for _ in range(TRIES):
        area, aspect = rng.uniform(smallest, 1) * height * width, math.exp(rng.uniform(-1, 1) * math.log(4 / 3))
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            return image[top : top + rows, left : left + columns]
    return image
