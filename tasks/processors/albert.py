"""ALBERT: two parts of one passage with hidden tokens; half of the pairs are swapped, and the model says which.

    [CLS] A [SEP] B [SEP]    labels_mlm: the hidden tokens    labels_sp: 0 in order, 1 swapped

A passage of one sentence has no order and is left out and counted. Swaps and masks are drawn anew in each epoch.

Source: Lan et al., 2020, arXiv:1909.11942, sections 3.1 and 4.1. The paper hides n-grams of up to three words with
probability 1/n; `masking: span` is SpanBERT's instead.
"""

import numpy as np

from tasks.processors._given import Given, special
from tasks.processors._masking import Masking
from tasks.processors._pairs import chunks, joined, room, shortened
from tasks.processors._text import Text

__all__ = ["Albert"]


class Albert:
    """Rows with ids, segments, labels_mlm and labels_sp.

    Args:
        given: its folder has a stream `text`.
        masking: "token", "word", "span" or "ngram".
        share: of the tokens that are hidden.
        swapped: share of pairs in the wrong order.
        short: share of pairs with a random shorter length.

    Raises:
        ValueError: no document has two sentences.
    """

    def __init__(
        self, given: Given, masking: str = "ngram", share: float = 0.15, swapped: float = 0.5, short: float = 0.1
    ):
        self.masking, self.swapped = Masking(given, masking, share), swapped
        self.cls, self.sep = special(given.vocabulary, "cls", "bos"), special(given.vocabulary, "sep", "eos")
        self.text, self.room = Text(given.folder / "text"), room(given.length)
        self.cut = chunks(self.text, self.room, short, 0.0, given.seed, lone=False)
        if not len(self.cut):
            raise ValueError(
                f"{given.folder}: sentence order needs documents of two sentences; each of the {len(self.text)} has at "
                "most one in a row's length; use the processor mlm instead"
            )
        used = int((self.text.sentences[self.cut.last] - self.text.sentences[self.cut.first]).sum())
        self.report = {"rows": len(self), "tokens_left_out": int(self.text.lengths.sum()) - used}

    def __len__(self) -> int:
        return len(self.cut)

    def row(self, place: int, rng: np.random.Generator) -> dict:
        borders = (int(self.text.sentences[part[place]]) for part in (self.cut.first, self.cut.middle, self.cut.last))
        begin, middle, end = borders
        parts = shortened((begin, middle), (middle, end), self.room, rng)
        swapped = bool(rng.random() < self.swapped)
        fields = joined(self.text, *(parts[::-1] if swapped else parts), self.cls, self.sep)
        ids, labels = self.masking(fields["ids"], fields["starts"], rng)
        return {"ids": ids, "segments": fields["segments"], "labels_mlm": labels, "labels_sp": int(swapped)}
