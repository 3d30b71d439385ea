"""Chunks of consecutive sentences in two parts, A and B: what BERT and ALBERT cut their pairs from.

A chunk takes sentences until it reaches its target, which is the whole row or, for a share of the chunks, a random
shorter length; it is split into A and B at a random sentence border.

Source: Devlin et al., 2019, arXiv:1810.04805, appendix A.2. There a document draws one target; here each chunk does, so
that the share of short chunks does not depend on how many documents there are.
"""

import random
from array import array
from dataclasses import dataclass

import numpy as np

from tasks.processors._text import Text

__all__ = ["Chunks", "chunks", "joined", "room", "shortened"]


@dataclass(frozen=True)
class Chunks:
    """Columns of int64, one entry a chunk: sentences first..middle - 1 are A, middle..last - 1 the rest."""

    document: np.ndarray
    first: np.ndarray
    middle: np.ndarray
    last: np.ndarray
    target: np.ndarray  # tokens that A and B should have together
    other: np.ndarray  # 1: B comes from another document, and the rest begins the next chunk

    def __len__(self) -> int:
        return len(self.document)


def chunks(text: Text, room: int, short: float, other: float, seed: int, lone: bool) -> Chunks:
    """Cut every document into chunks.

    Args:
        room: tokens of A and B together in a full row.
        short: share of chunks with a random shorter target, of 2..room tokens.
        other: share of chunks whose B comes from elsewhere; with `lone`, so does that of a chunk of one sentence.
        seed: of the cuts; equal for all epochs, so that an epoch's length is known.
        lone: keep chunks of one sentence.
    """
    drawn, borders = random.Random(seed), text.sentences
    rows = array("q")  # compact: there may be tens of millions
    for document, (begin, end) in enumerate(
        zip(text.documents[:-1].tolist(), text.documents[1:].tolist(), strict=True)
    ):
        first = begin
        while first < end:
            target = drawn.randint(2, room) if drawn.random() < short else room
            last = first + int(np.searchsorted(borders[first + 1 : end + 1], borders[first] + target)) + 1
            last = min(last, end)
            middle = drawn.randint(first + 1, last - 1) if last - first > 1 else last
            away = drawn.random() < other or (lone and middle == last)
            if lone or middle < last:
                rows.extend((document, first, middle, last, target, away))
            first = middle if away else last
    return Chunks(*np.frombuffer(rows, np.int64).reshape(-1, 6).T)


def room(length: int) -> int:
    """Tokens of A and B in a row beside [CLS] and twice [SEP]."""
    if length < 5:
        raise ValueError(f"a pair needs a row of at least 5 places, two tokens and three special ones; got {length}")
    return length - 3


def shortened(first: tuple[int, int], second: tuple[int, int], room: int, rng: np.random.Generator) -> tuple:
    """Two spans (begin, end) cut to `room` tokens: each token goes from the longer one, at its front or back by chance.

    As the longer side is known at every token, what each side loses is arithmetic; how much of it at the front is
    binomial.
    """
    sizes = [first[1] - first[0], second[1] - second[0]]
    excess = max(0, sum(sizes) - room)
    longer = 0 if sizes[0] > sizes[1] else 1
    lead = min(excess, abs(sizes[0] - sizes[1]))
    lost = [0, 0]
    lost[longer] += lead
    lost[1] += -(-(excess - lead) // 2)  # at equal sizes the second one gives first
    lost[0] += (excess - lead) // 2
    cut = []
    for (begin, end), less in zip((first, second), lost, strict=True):
        front = int(rng.binomial(less, 0.5)) if less else 0
        cut.append((begin + front, end - (less - front)))
    return tuple(cut)


def joined(text: Text, first: tuple[int, int], second: tuple[int, int], cls: int, sep: int) -> dict[str, np.ndarray]:
    """[CLS] A [SEP] B [SEP]: ids, segments and which token starts a word."""
    a, b = first[1] - first[0], second[1] - second[0]
    ids = np.full(a + b + 3, sep, np.int64)
    starts = np.ones(a + b + 3, bool)
    ids[0] = cls
    for place, (begin, end) in ((1, first), (a + 2, second)):
        ids[place : place + end - begin] = text.ids[begin:end]
        starts[place : place + end - begin] = text.words[begin:end]
    segments = np.zeros(a + b + 3, np.int64)
    segments[a + 2 :] = 1
    return {"ids": ids, "segments": segments, "starts": starts}
