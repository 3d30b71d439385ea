"""Images and their texts: one text a document, in the order of the images."""

import numpy as np

from tasks.processors._arrays import Arrays
from tasks.processors._given import Given
from tasks.processors._text import Text

__all__ = ["Captions"]


class Captions:
    """The stream `text` beside arrays of images, one document an image; a longer text loses its end and is counted.

    Args:
        given: its folder has a stream `text`.
        room: tokens of a text in its row.

    Raises:
        ValueError: no room for a token, or an image without text.
    """

    def __init__(self, given: Given, room: int):
        if room < 1:
            raise ValueError(f"a row of {given.length} has no room for a token of text beside the rest; lengthen it")
        self.text, self.arrays, self.room = Text(given.folder / "text"), Arrays(given.folder), room
        if empty := int((self.text.lengths == 0).sum()):
            raise ValueError(f"{given.folder}: {empty} of {len(self.text)} images have an empty text; remove those")
        self.report = {"rows": len(self), "texts_cut": int((self.text.lengths > room).sum())}

    def __len__(self) -> int:
        return len(self.text)

    def tokens(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """The text's ids, and which of them starts a word."""
        size = min(int(self.text.lengths[place]), self.room)
        return self.text.tokens(place, 0, size), self.text.starts(place, 0, size)
