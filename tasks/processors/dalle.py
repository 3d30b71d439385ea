"""DALL-E style: a text, then the codes of its image; the codes are predicted from left to right.

    ids  <s> text </s> | codes </s>     segments 0 | 1     prefix: the text     labels_lm: the codes and </s>

An image's code c is the id vocabulary + c, behind the tokenizer's own. The text is read both ways and so carries no
labels; the paper's model is causal throughout and predicts the text as well, with a small weight. A share of the rows
may run the other way, from the codes to the text (Talk2Face).

Source: Ramesh et al., 2021, arXiv:2102.12092, section 2.2; the prefix as in Zhao et al., 2023, arXiv:2212.06385.
"""

import numpy as np

from tasks.processors._arrays import Arrays
from tasks.processors._captions import Captions
from tasks.processors._given import Given, special
from tasks.processors._target import prefixed

__all__ = ["DallE"]


class DallE(Captions):
    """Rows with ids, segments, prefix and labels_lm.

    Args:
        given: its folder has a stream `text` and codes.npy (N, P), one image a document.
        backward: share of rows from the codes to the text.
        codes: how many codes the image tokenizer has, for which the model has rows of embeddings; None for those seen.

    Raises:
        ValueError: a code outside 0..codes - 1, or a row without room for text.
    """

    def __init__(self, given: Given, backward: float = 0.0, codes: int | None = None):
        super().__init__(given, given.length - 3 - Arrays(given.folder).whole("codes").shape[-1])
        self.codes = self.arrays.whole("codes", len(self))
        self.first, self.last = (special(given.vocabulary, role) for role in ("start", "end"))
        self.backward, self.offset = backward, given.size
        least, most = int(self.codes.min()), int(self.codes.max())
        if least < 0 or most >= (codes or most + 1):
            raise ValueError(f"{given.folder}: codes run from {least} to {most}, but there are {codes} from 0 on")
        self.report |= {"vocabulary": given.size + (codes or most + 1)}

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        text, codes = self.tokens(place)[0], self.codes[place].astype(np.int64) + self.offset
        before, after = (codes, text) if rng.random() < self.backward else (text, codes)
        return prefixed(np.concatenate([[self.first], before, [self.last]]), np.append(after, self.last))
