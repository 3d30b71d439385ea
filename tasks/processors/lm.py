"""Language model: BOS document EOS, laid into rows; each place predicts the next token of its own document.

    ids     <s> a b c </s> <s> d e        labels_lm     a b c </s> -100 d e f

Documents in one row are numbered and their positions restart, so that attention keeps them apart. With `concat`
nothing is lost: a document goes on in the next row, the last token of a row predicts the first of that one, and the
last row is shorter. With `first_fit` and `best_fit` documents stay whole unless longer than a row; those are cut.

Source: Radford et al., 2019 (GPT-2); rows and documents: models/language/packing.py.
"""

import numpy as np

from models.language.packing import places
from tasks.processors._given import Given, special
from tasks.processors._packed import pack, pieces, report
from tasks.processors._text import Text, wrapped

__all__ = ["LM"]


class LM:
    """Rows with ids, labels_lm and, when documents share a row, documents and positions.

    Args:
        given: its folder has a stream `text`.
        packing: "concat", "first_fit", "best_fit", or "none": rows of one document each.
        bins: open rows of first_fit.
    """

    def __init__(self, given: Given, packing: str = "concat", bins: int = 8):
        self.first, self.last = (special(given.vocabulary, role) for role in ("start", "end"))
        self.text, self.together = Text(given.folder / "text"), packing != "none"
        sizes = np.where(self.text.lengths > 0, self.text.lengths + 2, 0)
        self.plan = pack(sizes, given.length, packing, bins, given.seed)
        self.report = report(self.plan, sizes)

    def __len__(self) -> int:
        return len(self.plan)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        ids, labels, sizes = [], [], []
        for document, start, stop in pieces(self.plan, place):
            ends = stop == self.text.lengths[document] + 2
            tokens = wrapped(self.text, document, start, stop if ends else stop + 1, self.first, self.last)
            ids.append(tokens[: stop - start])
            labels.append(tokens[1:])
            if ends:
                labels.append([-100])
            sizes.append(stop - start)
        fields = {"ids": np.concatenate(ids), "labels_lm": np.concatenate(labels)}
        if self.together:
            fields["documents"], fields["positions"] = places(sizes)
        return fields
