"""Machine translation: a source sentence in, its translation out.

    ids  x1 .. xn </s>     target_ids  <s> y1 .. ym     labels_lm  y1 .. ym </s>

A pair with a side that is empty or longer than the row is left out and counted: half a sentence has no translation.

Source: Vaswani et al., 2017, arXiv:1706.03762.
"""

import numpy as np

from tasks.processors._given import Given, special
from tasks.processors._target import target
from tasks.processors._text import aligned

__all__ = ["MT"]


class MT:
    """Rows with ids, target_ids and labels_lm.

    Args:
        given: its folder has the streams `source` and `target`.

    Raises:
        ValueError: no pair fits into the row.
    """

    def __init__(self, given: Given):
        self.first, self.last = (special(given.vocabulary, role) for role in ("start", "end"))
        self.source, self.target = aligned(given.folder, "source", "target")
        sides = np.stack([self.source.lengths, self.target.lengths])
        fits = (sides > 0).all(0) & (sides + 1 <= given.length).all(0)
        self.pairs = np.flatnonzero(fits)
        if not len(self.pairs):
            raise ValueError(
                f"{given.folder}: none of {len(fits)} pairs has both sides between 1 and {given.length - 1} tokens; "
                "lengthen the row"
            )
        self.report = {"rows": len(self), "pairs_left_out": int((~fits).sum())}

    def __len__(self) -> int:
        return len(self.pairs)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        pair = int(self.pairs[place])
        source = np.append(self.source.tokens(pair), self.last)
        return {"ids": source} | target(self.target.tokens(pair), self.first, self.last)
