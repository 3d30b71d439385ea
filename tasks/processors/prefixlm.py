"""Prefix language model: the beginning is read both ways, the rest is predicted from left to right.

    pairs      ids <s> source </s> target </s>     prefix: up to the first </s>
    documents  ids <s> beginning rest </s>         prefix: up to a random border

Only the rest carries labels. Where the split has the streams `source` and `target` it takes pairs, otherwise documents,
cut where longer than a row. A pair longer than the row is left out and counted.

Source: Raffel et al., 2020, arXiv:1910.10683, sections 3.2 and 3.3.1; pairs as in Dong et al., 2019, arXiv:1905.03197.
"""

import numpy as np

from models.language.packing import split
from tasks.processors._given import Given, special
from tasks.processors._target import prefixed
from tasks.processors._text import Text, aligned

__all__ = ["PrefixLM"]


class PrefixLM:
    """Rows with ids, segments (0 prefix, 1 rest), prefix and labels_lm.

    Args:
        given: its folder has a stream `text`, or `source` and `target`.

    Raises:
        ValueError: nothing fits into the row.
    """

    def __init__(self, given: Given):
        self.first, self.last = (special(given.vocabulary, role) for role in ("start", "end"))
        self.folder, self.paired = given.folder, (given.folder / "source").is_dir()
        left_out = self._pairs(given.length) if self.paired else self._documents(given.length)
        if not len(self):
            raise ValueError(f"{self.folder}: of {left_out} texts none fits into a row of {given.length}; lengthen it")
        self.report = {"rows": len(self), "left_out": left_out}

    def _pairs(self, length: int) -> int:
        self.source, self.target = aligned(self.folder, "source", "target")
        sides = np.stack([self.source.lengths, self.target.lengths])
        self.chosen = np.flatnonzero((sides > 0).all(0) & (sides.sum(0) + 3 <= length))
        return sides.shape[1] - len(self.chosen)

    def _documents(self, length: int) -> int:
        self.text = Text(self.folder / "text")
        pieces = split(self.text.lengths, length - 2)
        kept = pieces[2] - pieces[1] > 1  # one token has no beginning and rest
        self.pieces = [part[kept] for part in pieces]
        self.chosen = np.arange(len(self.pieces[0]))
        return int((~kept).sum())

    def __len__(self) -> int:
        return len(self.chosen)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if self.paired:
            pair = int(self.chosen[place])
            before, after = np.append(self.source.tokens(pair), self.last), self.target.tokens(pair)
        else:
            tokens = self.text.tokens(*(int(part[place]) for part in self.pieces))
            before, after = np.split(tokens, [int(rng.integers(1, len(tokens)))])
        return prefixed(np.concatenate([[self.first], before]), np.append(after, self.last))
