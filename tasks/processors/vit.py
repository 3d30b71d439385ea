"""ViT: an image and its class. A random part of the image is cut out, resized and perhaps mirrored.

    pixels (3, size, size)     labels_cls: the class

Source: Dosovitskiy et al., 2020, arXiv:2010.11929, section 4.1; random parts and mirrors as in the authors' code.
"""

import numpy as np

from tasks.processors._arrays import Arrays
from tasks.processors._given import Given
from tasks.processors._images import Pixels

__all__ = ["ViT"]


class ViT:
    """Rows with pixels and labels_cls.

    Args:
        given: its folder has images.npy and labels.npy.
        size: edge of the images in pixels; None as they are stored.
        crop: smallest share of an image that is cut out; None for whole images.
        flip: whether half of the images are mirrored.
    """

    def __init__(self, given: Given, size: int | None = None, crop: float | None = 0.05, flip: bool = True):
        self.images = Arrays(given.folder).images()
        self.label = Arrays(given.folder).whole("labels", len(self.images))
        self.pixels = Pixels(size, crop, flip, still=given.heldout)
        self.report = {"rows": len(self)}

    def __len__(self) -> int:
        return len(self.images)

    def row(self, place: int, rng: np.random.Generator) -> dict:
        return {"pixels": self.pixels(self.images[place], rng), "labels_cls": int(self.label[place])}
