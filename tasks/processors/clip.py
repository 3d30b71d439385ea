"""CLIP: a text and its image, two streams of one row; the other rows of the batch are what they must be told from.

    first_ids <s> text </s>     second_pixels (3, size, size)

Source: Radford et al., 2021, arXiv:2103.00020, section 2.4: a random square part of the image is its only change.
"""

import numpy as np

from tasks.processors._captions import Captions
from tasks.processors._given import Given, special
from tasks.processors._images import CLIP_MEAN, CLIP_STD, Pixels

__all__ = ["Clip"]


class Clip(Captions):
    """Rows with first_ids and second_pixels.

    Args:
        given: its folder has a stream `text` and images.npy, one image a document.
        size: edge of the images in pixels; None as they are stored.
    """

    def __init__(self, given: Given, size: int | None = None):
        super().__init__(given, given.length - 2)
        self.first, self.last = (special(given.vocabulary, role) for role in ("start", "end"))
        self.images = self.arrays.images(len(self))
        self.pixels = Pixels(size, mean=CLIP_MEAN, std=CLIP_STD, still=given.heldout)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        ids = np.concatenate([[self.first], self.tokens(place)[0], [self.last]])
        return {"first_ids": ids, "second_pixels": self.pixels(self.images[place], rng)}
