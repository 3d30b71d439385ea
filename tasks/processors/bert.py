"""BERT: pairs of text with hidden tokens; the second part is the continuation, or comes from another document.

    [CLS] A [SEP] B [SEP]    labels_mlm: the hidden tokens    labels_sp: 0 B follows A, 1 B is from elsewhere

Half of the pairs (and every chunk of one sentence, which has no continuation) take B from another document; the
sentences that B replaces begin the next chunk. Pairs are cut once for all epochs; which other document, what is cut
off and what is hidden is drawn anew in each.

Source: Devlin et al., 2019, arXiv:1810.04805, section 3.1 and appendix A.2. Masking anew in each epoch: Liu et al.,
2019, arXiv:1907.11692, section 4.1.
"""

import numpy as np

from tasks.processors._given import Given, special
from tasks.processors._masking import Masking
from tasks.processors._pairs import chunks, joined, room, shortened
from tasks.processors._text import Text

__all__ = ["Bert"]


class Bert:
    """Rows with ids, segments, labels_mlm and labels_sp.

    Args:
        given: its folder has a stream `text`.
        masking: "token", "word" or "span".
        share: of the tokens that are hidden.
        other: share of pairs whose B comes from another document.
        short: share of pairs with a random shorter length.
        copies: how often the corpus is cut, each time elsewhere.

    Raises:
        ValueError: fewer than two documents, or no document of two sentences: every pair would have the same label.
    """

    def __init__(
        self,
        given: Given,
        masking: str = "token",
        share: float = 0.15,
        other: float = 0.5,
        short: float = 0.1,
        copies: int = 1,
    ):
        self.masking = Masking(given, masking, share)
        self.cls, self.sep = special(given.vocabulary, "cls", "bos"), special(given.vocabulary, "sep", "eos")
        self.text, self.room = Text(given.folder / "text"), room(given.length)
        self.filled = np.flatnonzero(self.text.lengths)
        longest = int(np.diff(self.text.documents).max())
        if len(self.filled) < 2 or longest < 2:
            raise ValueError(
                f"{given.folder}: next-sentence pairs need two documents with text and one of two sentences; there are "
                f"{len(self.filled)} documents, the longest has {longest} sentences; use the processor mlm instead"
            )
        self.cuts = [chunks(self.text, self.room, short, other, given.seed + n, lone=True) for n in range(copies)]
        lone = sum(int((cut.last - cut.first == 1).sum()) for cut in self.cuts)
        self.report = {"rows": len(self), "documents": len(self.filled), "chunks_of_one_sentence": lone}

    def __len__(self) -> int:
        return sum(len(cut) for cut in self.cuts)

    def row(self, place: int, rng: np.random.Generator) -> dict:
        copy = 0
        while place >= len(self.cuts[copy]):
            place -= len(self.cuts[copy])
            copy += 1
        cut, borders = self.cuts[copy], self.text.sentences
        first = int(borders[cut.first[place]]), int(borders[cut.middle[place]])
        if cut.other[place]:
            second = self._elsewhere(int(cut.document[place]), int(cut.target[place]) - (first[1] - first[0]), rng)
        else:
            second = first[1], int(borders[cut.last[place]])
        fields = joined(self.text, *shortened(first, second, self.room, rng), self.cls, self.sep)
        ids, labels = self.masking(fields["ids"], fields["starts"], rng)
        return {"ids": ids, "segments": fields["segments"], "labels_mlm": labels, "labels_sp": int(cut.other[place])}

    def _elsewhere(self, document: int, target: int, rng: np.random.Generator) -> tuple[int, int]:
        """Sentences from a random one of another document on, until they have `target` tokens."""
        own = int(np.searchsorted(self.filled, document))
        drawn = int(rng.integers(len(self.filled) - 1))
        chosen = self.filled[drawn + (drawn >= own)]
        begin, end = (int(self.text.documents[chosen + n]) for n in (0, 1))
        start = int(rng.integers(begin, end))
        borders = self.text.sentences[start : end + 1]
        stop = min(int(np.searchsorted(borders, borders[0] + max(target, 1))), end - start)
        return int(borders[0]), int(borders[stop])
