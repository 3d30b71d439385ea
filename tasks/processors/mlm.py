"""Masked language model: hidden tokens, and nothing about pairs (RoBERTa's full sentences, XLM-R).

    [CLS] a b [MASK] d [SEP]    labels_mlm: c at its place, -100 elsewhere

What is hidden is drawn anew in each epoch. Texts that share a row have each their own [CLS] and [SEP], number and
positions, so that attention keeps them apart; in RoBERTa they see each other.

Source: Liu et al., 2019, arXiv:1907.11692, sections 4.1 and 4.2.
"""

import numpy as np

from models.language.packing import places
from tasks.processors._given import Given, special
from tasks.processors._masking import Masking
from tasks.processors._packed import pack, pieces, report
from tasks.processors._text import Text

__all__ = ["MLM"]


class MLM:
    """Rows with ids, labels_mlm and, when documents share a row, documents and positions.

    Args:
        given: its folder has a stream `text`.
        masking: "token", "word", "span" or "ngram".
        share: of the tokens that are hidden.
        packing: "concat", "first_fit", "best_fit", or "none": rows of one document each. A longer document is cut.
        bins: open rows of first_fit.
    """

    def __init__(
        self, given: Given, masking: str = "token", share: float = 0.15, packing: str = "concat", bins: int = 8
    ):
        self.masking = Masking(given, masking, share)
        self.cls, self.sep = special(given.vocabulary, "cls", "bos"), special(given.vocabulary, "sep", "eos")
        self.text, self.together = Text(given.folder / "text"), packing != "none"
        self.plan = pack(self.text.lengths, given.length, packing, bins, given.seed, overhead=2)
        self.report = report(self.plan, self.text.lengths)

    def __len__(self) -> int:
        return len(self.plan)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        row = list(pieces(self.plan, place))
        sizes = [stop - start + 2 for _, start, stop in row]
        ids, starts = np.empty(sum(sizes), np.int64), np.ones(sum(sizes), bool)
        begin = 0
        for document, start, stop in row:
            end = begin + stop - start + 1
            ids[begin], ids[end] = self.cls, self.sep
            ids[begin + 1 : end] = self.text.tokens(document, start, stop)
            starts[begin + 1 : end] = self.text.starts(document, start, stop)
            begin = end + 1
        ids, labels = self.masking(ids, starts, rng)
        fields = {"ids": ids, "labels_mlm": labels}
        if self.together:
            fields["documents"], fields["positions"] = places(sizes)
        return fields
