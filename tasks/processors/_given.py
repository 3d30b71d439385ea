"""What every processor works on: a split of tokens, a vocabulary, a row's length and a seed."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tasks.tokenizer import Vocabulary

__all__ = ["Given", "special"]


@dataclass(frozen=True)
class Given:
    """What a processor works on, besides its own settings.

    Args:
        folder: one split of a dataset, with its streams and arrays.
        vocabulary: of the tokenizer that made the streams.
        length: places of a row, special tokens included.
        seed: of what is drawn once for all epochs: which texts share a row, where a chunk is cut.
        heldout: rows for evaluation, which no augmentation changes.
    """

    folder: Path
    vocabulary: Vocabulary
    length: int
    seed: int
    heldout: bool = False

    @property
    def size(self) -> int:
        """Rows of the embedding table: every id is smaller."""
        return self.vocabulary.size

    @cached_property
    def ordinary(self) -> np.ndarray:
        """Ids that are no special token, ascending: int64."""
        plain = np.ones(self.size, bool)
        plain[list(self.vocabulary.special)] = False
        return np.flatnonzero(plain)


def special(vocabulary: Vocabulary, *roles: str) -> int:
    """Id of the first of these roles that the vocabulary has.

    Raises:
        TokenizerError: it has none of them.
    """
    for role in roles:
        if (found := getattr(vocabulary, role)) is not None:
            return found
    return vocabulary.need(roles[0])
