"""Which texts are nearly the same, and which lie inside longer ones: sets of runs of words.

A text becomes units: words in lower case, and every Han, Kana or Hangul character by itself; punctuation and spaces do
not count. Near duplicates are told by sets of `shingle` units on end: MinHash signatures in bands find candidates
(datasketch), and the exact Jaccard similarity decides. A text is inside another when enough of its runs of `run` units
are; that is exact.

Source: Broder, 1997, doi:10.1109/SEQUEN.1997.666900 (MinHash); 112 hashes in 14 bands of 8, Penedo et al., 2024
(FineWeb), arXiv:2406.17557; runs of 8 of which 70 % are found, Chowdhery et al., 2022 (PaLM), arXiv:2204.02311, section
8. That candidates are verified, and the units, are ours.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from tasks.settings import SettingsError, fill

__all__ = ["Likeness", "Runs", "Seen", "jaccard", "shingles", "units", "words"]

SIGNS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"  # of scripts whose words have few
SIGN = re.compile(f"[{SIGNS}]")
UNIT = re.compile(f"[{SIGNS}]|[^\\W_{SIGNS}]+")
FACTOR, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Likeness:
    """When texts count as the same."""

    shingle: int = 5  # units of a shingle
    threshold: float = 0.75  # Jaccard similarity from which on two texts are near duplicates
    bands: int = 14
    band: int = 8  # hashes of each
    run: int = 8  # units on end that a text shares with one it lies inside
    inside: float = 0.7  # share of its runs from which on it does
    seed: int = 1

    @classmethod
    def read(cls, chosen: dict) -> "Likeness":
        """From a data set's settings.

        Raises:
            SettingsError: an unknown name, or a number out of its range.
        """
        found = fill(cls, chosen, "near")
        for name in ("threshold", "inside"):
            if not 0 < getattr(found, name) <= 1:
                raise SettingsError(f"{name} is {getattr(found, name)!r}; it is a share in (0, 1], such as 0.75")
        for name in ("shingle", "bands", "band", "run"):
            if type(getattr(found, name)) is not int or getattr(found, name) < 1:
                raise SettingsError(f"{name} is {getattr(found, name)!r}; it is a whole number from 1 on")
        return found


def units(text: str) -> np.ndarray:
    """(U,) uint64: a hash for every unit of a text, in order.

    >>> len(units("A red-brown bag, 全新!"))
    6
    """
    found = UNIT.findall(unicodedata.normalize("NFKC", text).casefold())
    return np.fromiter(map(_hash, found), np.uint64, len(found))


def words(text: str) -> float:
    """About how many words a text has: two Han, Kana or Hangul characters count as one.

    >>> words("A red bag, 全新")
    4.0
    """
    text = unicodedata.normalize("NFKC", text)
    return len(UNIT.findall(text)) - len(SIGN.findall(text)) / 2


def shingles(unit_U: np.ndarray, size: int) -> np.ndarray:
    """Ascending hashes of all runs of `size` units; a shorter text is one run, an empty one none.

    >>> [len(shingles(units(text), 2)) for text in ("a b c", "a a a", "a", "")]
    [2, 1, 1, 0]
    """
    size = min(size, len(unit_U))
    if not size:
        return unit_U
    total = np.zeros(len(unit_U) - size + 1, np.uint64)
    for place in range(size):
        total = total * FACTOR + unit_U[place : place + len(total)]  # modulo 2^64
    total ^= total >> np.uint64(31)
    total *= MIX  # the upper bits, which are kept for MinHash, depend on all units
    return np.unique(total ^ (total >> np.uint64(29)))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared over all elements of two ascending sets, in [0, 1].

    >>> jaccard(np.array([1, 2, 3]), np.array([2, 3, 4]))
    0.5
    """
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


class Seen:
    """Texts seen so far, by key; finds the one that a new text repeats."""

    def __init__(self, like: Likeness):
        from datasketch import MinHash, MinHashLSH

        self.like, self._sets = like, []
        self._keys: list = []
        self._empty = MinHash(num_perm=like.bands * like.band, seed=like.seed, hashfunc=int, scheme="affine32")
        self._index = MinHashLSH(num_perm=like.bands * like.band, params=(like.bands, like.band))

    def nearest(self, unit_U: np.ndarray, add=None) -> tuple[object, float] | None:
        """The key of the most similar text and the similarity, where that reaches the threshold; the first of equals.

        Args:
            unit_U: of a text.
            add: a key below which to remember the text, if it is like none.
        """
        found = shingles(unit_U, self.like.shingle)
        if not len(found):
            return None
        signature = self._signature(found)
        alike = [(jaccard(found, self._sets[n]), -n) for n in self._index.query(signature)]
        best, number = max(alike, default=(0.0, 0))
        if best >= self.like.threshold:
            return self._keys[-number], best
        if add is not None:
            self._insert(add, found, signature)
        return None

    def add(self, key, unit_U: np.ndarray) -> None:
        """Remember a text, whatever it is like."""
        if len(found := shingles(unit_U, self.like.shingle)):
            self._insert(key, found, self._signature(found))

    def _insert(self, key, found: np.ndarray, signature) -> None:
        self._index.insert(len(self._sets), signature)
        self._sets.append(found)
        self._keys.append(key)

    def _signature(self, found: np.ndarray):
        signature = self._empty.copy()
        signature.update_batch((found >> np.uint64(32)).tolist())
        return signature


class Runs:
    """Texts that may lie inside longer ones, by key: 16 bytes for each of their runs."""

    def __init__(self, like: Likeness):
        self.like = like
        self._keys, self._sizes = [], []
        self._added: list[np.ndarray] = []  # the runs of each text, until the first question
        self._runs = self._owners = np.zeros(0, np.uint64)

    def add(self, key, unit_U: np.ndarray) -> bool:
        """Remember a text; False where it is shorter than a run, so that nothing can be said of it."""
        if len(unit_U) < self.like.run:
            return False
        self._added.append(shingles(unit_U, self.like.run))
        self._keys.append(key)
        self._sizes.append(len(self._added[-1]))
        return True

    def inside(self, unit_U: np.ndarray) -> list[tuple[object, float]]:
        """The keys that lie inside this text, with the share of their runs that are there, in the order of adding."""
        if len(unit_U) < self.like.run or not self._keys:
            return []
        self._arrange()
        runs = shingles(unit_U, self.like.run)
        first, last = (np.searchsorted(self._runs, runs, side) for side in ("left", "right"))
        shared = np.flatnonzero(last > first)
        counts = Counter(n for place in shared for n in self._owners[first[place] : last[place]].tolist())
        shares = [(n, count / self._sizes[n]) for n, count in sorted(counts.items())]
        return [(self._keys[n], share) for n, share in shares if share >= self.like.inside]

    def _arrange(self) -> None:
        """All runs in their order, beside the texts that have them."""
        if not self._added:
            return
        known = len(self._keys) - len(self._added)
        owners = np.repeat(np.arange(known, len(self._keys)), [len(runs) for runs in self._added])
        runs = np.concatenate([self._runs, *self._added])
        order = runs.argsort(kind="stable")
        self._runs, self._owners = runs[order], np.concatenate([self._owners.astype(np.int64), owners])[order]
        self._added = []


@lru_cache(1 << 18)
def _hash(unit: str) -> int:
    return int.from_bytes(blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8).digest())
