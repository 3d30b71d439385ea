"""One stream of tokens as processors read it: documents by their tokens, sentences by their borders."""

from array import array
from pathlib import Path

import numpy as np

from tasks.shards import Shards

__all__ = ["Text", "aligned", "passages", "wrapped"]


class Text:
    """A stream in memory-mapped arrays. Empty sentences are left out; an empty document stays, with no tokens.

    Attributes:
        ids: (N,) all tokens on end; words: (N,) bool, the token starts a word.
        sentences: (S + 1,) int64 offsets into `ids`; documents: (D + 1,) int64 offsets into `sentences`.
        bounds: (D + 1,) int64 offsets of the documents into `ids`; lengths: (D,) tokens of each.
    """

    def __init__(self, folder: str | Path):
        """Open a stream.

        Raises:
            ShardsBroken: the files are not what their manifest says.
            ValueError: no token in it.
        """
        shards = Shards.open(folder)
        if not len(shards.ids):
            raise ValueError(f"{folder} has {len(shards)} documents and not one token; give the corpus some text")
        # As plain arrays, for a slice of a numpy.memmap costs ten times one of an array; the file stays mapped.
        self.ids, self.words, sentences, documents = (
            np.asarray(part) for part in (shards.ids, shards.words, shards.sentences, shards.documents)
        )
        kept = np.diff(sentences) > 0
        if not kept.all():
            sentences = np.append(sentences[:-1][kept], sentences[-1])
            documents = np.concatenate([[0], np.cumsum(kept)])[documents]
        self.sentences, self.documents, self.bounds = sentences, documents, sentences[documents]
        self.lengths = np.diff(self.bounds)

    def __len__(self) -> int:
        """Documents, the empty ones too."""
        return len(self.documents) - 1

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens start..stop - 1 of a document: int64."""
        first, last = self.bounds[document], self.bounds[document + 1]
        return self.ids[first + start : last if stop is None else first + stop].astype(np.int64)

    def starts(self, document: int, start: int, stop: int) -> np.ndarray:
        """Which of these tokens start a word: bool."""
        first = self.bounds[document]
        return self.words[first + start : first + stop]

    def passage(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens begin..end - 1 of the stream (int64), and the borders of their sentences, from 0 to their number."""
        inside = slice(*np.searchsorted(self.sentences, [begin + 1, end]))
        borders = np.concatenate([[begin], self.sentences[inside], [end]]) - begin
        return self.ids[begin:end].astype(np.int64), borders


def wrapped(text: Text, document: int, start: int, stop: int, first: int, last: int) -> np.ndarray:
    """Places start..stop - 1 of a document of n tokens that lies between two special ones, n + 2 in all: int64."""
    end = int(text.lengths[document]) + 2
    out = np.empty(stop - start, np.int64)
    out[(start == 0) : stop - start - (stop == end)] = text.tokens(document, max(start - 1, 0), min(stop, end - 1) - 1)
    if start == 0:
        out[0] = first
    if stop == end:
        out[-1] = last
    return out


def passages(text: Text, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole sentences of one document, as many as fit into `room` tokens: (P,) begin and end, offsets into `ids`.

    A sentence longer than the room is cut, so that every token lies in exactly one passage.
    """
    if room < 1:
        raise ValueError(f"a passage needs room for at least 1 token, got {room}; raise the row's length")
    begins, ends = array("q"), array("q")  # compact: there may be tens of millions
    for begin, end in zip(text.bounds[:-1].tolist(), text.bounds[1:].tolist(), strict=True):
        while begin < end:
            stop = min(end, begin + room)
            border = int(text.sentences[np.searchsorted(text.sentences, stop, side="right") - 1])
            stop = border if border > begin else stop
            begins.append(begin)
            ends.append(stop)
            begin = stop
    return np.frombuffer(begins, np.int64), np.frombuffer(ends, np.int64)


def aligned(folder: Path, *names: str) -> list[Text]:
    """Streams whose documents belong together by number.

    Raises:
        ValueError: they have different numbers of documents.
    """
    texts = [Text(folder / name) for name in names]
    if len({len(text) for text in texts}) > 1:
        counts = ", ".join(f"{name} {len(text)}" for name, text in zip(names, texts, strict=True))
        raise ValueError(f"{folder}: the streams differ in documents ({counts}); run the tokens stage again")
    return texts
