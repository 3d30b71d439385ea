"""BART: a passage with its sentences shuffled and spans replaced by one mask each; the target is the passage.

    ids        <s> y1 [MASK] y4 x1 [MASK] </s>
    labels_lm  <s> x1 x2 y1 y2 y3 y4 </s>          target_ids: the same, shifted right behind </s>

Spans have lengths from a Poisson distribution (mean 3) until 30% of the tokens are hidden; a span of length 0 puts in a
mask. A passage is whole sentences of one document, as many as fit.

Source: Lewis et al., 2020, arXiv:1910.13461, sections 2.2 and 3. That neither two spans touch is ours.
"""

import numpy as np

from tasks.processors._given import Given, special
from tasks.processors._target import target
from tasks.processors._text import Text, passages

__all__ = ["Bart", "infill", "spans"]


class Bart:
    """Rows with ids, target_ids and labels_lm.

    Args:
        given: its folder has a stream `text`.
        share: of the tokens that are hidden.
        mean: of a span's length.
        shuffle: whether sentences change places.
    """

    def __init__(self, given: Given, share: float = 0.3, mean: float = 3.0, shuffle: bool = True):
        self.share, self.mean, self.shuffle = share, mean, shuffle
        self.first, self.last = special(given.vocabulary, "bos", "cls"), special(given.vocabulary, "end")
        self.mask = special(given.vocabulary, "mask")
        self.text = Text(given.folder / "text")
        self.begins, self.ends = passages(self.text, given.length - 2)
        self.report = {"rows": len(self), "efficiency": float(np.mean(self.ends - self.begins + 2)) / given.length}

    def __len__(self) -> int:
        return len(self.begins)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        tokens, borders = self.text.passage(int(self.begins[place]), int(self.ends[place]))
        noised = shuffled(tokens, borders, rng) if self.shuffle else tokens
        noised = infill(noised, *spans(len(noised), self.share, self.mean, rng), self.mask)
        return {"ids": np.concatenate([[self.first], noised, [self.last]])} | target(
            np.concatenate([[self.first], tokens]), self.last, self.last
        )


def shuffled(tokens: np.ndarray, borders: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sentences between these borders in a random order."""
    parts = np.split(tokens, borders[1:-1])
    return np.concatenate([parts[sentence] for sentence in rng.permutation(len(parts))])


def spans(tokens: int, share: float, mean: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where spans begin, ascending, and how long each is: no two touch, and together they hide the share.

    Where masks would make the text longer than it was, or spans must touch, there are fewer spans.
    """
    budget = round(share * tokens)
    lengths: list[int] = []
    while (left := budget - sum(lengths)) > 0:
        lengths.append(min(int(rng.poisson(mean)), left))
    while len(lengths) > min(sum(lengths), tokens - sum(lengths) + 1):
        lengths.remove(min(lengths))
    gaps = np.sort(rng.permutation(tokens - sum(lengths) + 1)[: len(lengths)])
    lengths = rng.permutation(np.array(lengths, np.int64))
    return gaps + np.cumsum(lengths) - lengths, lengths


def infill(tokens: np.ndarray, begins: np.ndarray, lengths: np.ndarray, mask: int) -> np.ndarray:
    """One mask for each span.

    >>> infill(np.array([1, 2, 3, 4]), np.array([1, 4]), np.array([2, 0]), mask=9).tolist()
    [1, 9, 4, 9]
    """
    change = np.zeros(len(tokens) + 1, np.int64)
    change[begins] += 1
    change[begins + lengths] -= 1
    hidden = np.cumsum(change)[:-1] > 0
    marked = np.insert(np.where(hidden, -1, tokens), begins, mask)
    return marked[marked >= 0]
