"""BEiT: some patches of an image are hidden in blocks; the model names their visual codes.

    pixels (3, H, W)     masked_patches (P,) bool     labels_mlm (1 + P,): the code of a hidden patch, -100 elsewhere

The first label is that of the class vector, which carries none. Blocks of at least 16 patches with an aspect in
0.3..1/0.3 are hidden until 40% are. Codes come from an image tokenizer and belong to the whole, unmirrored image, so
that nothing of it is cut or mirrored (the paper computes codes of each random part).

Source: Bao et al., 2021, arXiv:2106.08254, sections 2.3 and 2.5, algorithm 1.
"""

import math

import numpy as np

from tasks.processors._arrays import Arrays
from tasks.processors._given import Given
from tasks.processors._images import Pixels

__all__ = ["BEiT", "blocks"]

SMALLEST, ASPECT = 16, 0.3


class BEiT:
    """Rows with pixels, masked_patches and labels_mlm.

    Args:
        given: its folder has square images.npy and codes.npy (N, P), in reading order.
        size: edge of the images in pixels; None as they are stored.
        masking: "block" or "random".
        share: of the patches that are hidden.

    Raises:
        ValueError: an unknown masking, images or codes that are not square.
    """

    def __init__(self, given: Given, size: int | None = None, masking: str = "block", share: float = 0.4):
        if masking not in ("block", "random") or not 0 < share < 1:
            raise ValueError(f"masking must be block or random and share in (0, 1); got {masking!r} and {share}")
        self.images = Arrays(given.folder).images()
        self.codes = Arrays(given.folder).whole("codes", len(self.images))
        self.edge = math.isqrt(self.codes.shape[-1])
        if self.codes.ndim != 2 or self.edge**2 != self.codes.shape[1] or len(set(self.images.shape[1:3])) > 1:
            raise ValueError(
                f"{given.folder}: codes are {self.codes.shape} of images {self.images.shape}; both must be square, "
                "with one code a patch"
            )
        self.pixels, self.masking = Pixels(size, still=True), masking
        self.hidden = max(1, round(share * self.edge**2))
        self.report = {"rows": len(self), "hidden_patches": self.hidden}

    def __len__(self) -> int:
        return len(self.images)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if self.masking == "block":
            hidden = blocks(self.edge, self.hidden, rng)
        else:
            hidden = np.zeros(self.edge**2, bool)
            hidden[rng.permutation(len(hidden))[: self.hidden]] = True
        labels = np.append(-100, np.where(hidden, self.codes[place], -100)).astype(np.int64)
        return {"pixels": self.pixels(self.images[place], rng), "masked_patches": hidden, "labels_mlm": labels}


def blocks(edge: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Patches hidden in blocks until at least `count` of edge x edge are: (edge^2,) bool."""
    hidden = np.zeros((edge, edge), bool)
    while (left := count - int(hidden.sum())) > 0:
        area = rng.uniform(min(SMALLEST, left), left)
        aspect = math.exp(rng.uniform(-1, 1) * math.log(1 / ASPECT))
        height, width = (min(edge, max(1, round(math.sqrt(area * r)))) for r in (aspect, 1 / aspect))
        top, start = int(rng.integers(edge - height + 1)), int(rng.integers(edge - width + 1))
        hidden[top : top + height, start : start + width] = True
    return hidden.ravel()
