"""ViLT: a text with hidden words beside an image; half of the images belong to another text, and the model says which.

    ids [CLS] a [MASK] c [SEP], pixels    labels_mlm: the hidden tokens    labels_sp: 0 they match, 1 they do not

Whole words are hidden. The labels cover the model's whole row, the text and then the image's places, which carry
none. A text beside a wrong image has words hidden as well, so that a mask tells nothing, but is not asked for them
(ours: in the paper those rows are read a second time, unhidden).

Source: Kim et al., 2021, arXiv:2102.03334, section 3.2.
"""

import numpy as np

from tasks.processors._captions import Captions
from tasks.processors._given import Given, special
from tasks.processors._images import Pixels
from tasks.processors._masking import Masking

__all__ = ["ViLT"]


class ViLT(Captions):
    """Rows with ids, pixels, labels_mlm and labels_sp.

    Args:
        given: its folder has a stream `text` and images.npy, one image a document.
        patch: edge of the model's patches in pixels, which decides how many places an image has.
        size: edge of the images in pixels; None as they are stored.
        masking: "word", "token", "span" or "ngram".
        share: of the tokens that are hidden.
        wrong: share of texts beside another image.

    Raises:
        ValueError: a single image, or one that the patches do not divide.
    """

    def __init__(
        self,
        given: Given,
        patch: int = 32,
        size: int | None = None,
        masking: str = "word",
        share: float = 0.15,
        wrong: float = 0.5,
    ):
        super().__init__(given, given.length - 2)
        self.cls, self.sep = special(given.vocabulary, "cls", "bos"), special(given.vocabulary, "sep", "eos")
        self.masking, self.wrong = Masking(given, masking, share), wrong
        self.images, self.pixels = self.arrays.images(len(self)), Pixels(size, still=given.heldout)
        edge = size or min(self.images.shape[1:3])
        if patch < 1 or edge % patch:
            raise ValueError(f"patches of {patch} pixels do not divide images of {edge}; set `patch` to the model's")
        if len(self) < 2:
            raise ValueError(f"{given.folder} has one image, so none can be a wrong one; it needs at least 2")
        self.places = 1 + (edge // patch) ** 2

    def row(self, place: int, rng: np.random.Generator) -> dict:
        tokens, words = self.tokens(place)
        ids = np.concatenate([[self.cls], tokens, [self.sep]])
        ids, labels = self.masking(ids, np.concatenate([[True], words, [True]]), rng)
        wrong = bool(rng.random() < self.wrong)
        shown = place
        if wrong:
            shown = int(rng.integers(len(self) - 1))
            shown += shown >= place
            labels[:] = -100
        labels = np.concatenate([labels, np.full(self.places, -100)])
        pixels = self.pixels(self.images[shown], rng)
        return {"ids": ids, "pixels": pixels, "labels_mlm": labels, "labels_sp": int(wrong)}
