"""Two language models at once: each place predicts the token after it and the token before it (ELMo).

    ids  <s> a b </s>     labels_bilm[:, 0]  a b </s> -100     labels_bilm[:, 1]  -100 <s> a b

Rows are those of lm: documents that share one are numbered, and at a cut the labels are the document's own next and
previous tokens.

Source: Peters et al., 2018, arXiv:1802.05365, section 3.1.
"""

import numpy as np

from models.language.packing import places
from tasks.processors._given import Given, special
from tasks.processors._packed import pack, pieces, report
from tasks.processors._text import Text, wrapped

__all__ = ["BiLM"]


class BiLM:
    """Rows with ids, labels_bilm (T, 2: forward, backward) and, when documents share a row, documents and positions.

    Args:
        given: its folder has a stream `text`.
        packing: "concat", "first_fit", "best_fit", or "none": rows of one document each.
        bins: open rows of first_fit.
    """

    def __init__(self, given: Given, packing: str = "concat", bins: int = 8):
        self.first, self.last = (special(given.vocabulary, role) for role in ("start", "end"))
        self.text, self.together = Text(given.folder / "text"), packing != "none"
        self.sizes = np.where(self.text.lengths > 0, self.text.lengths + 2, 0)
        self.plan = pack(self.sizes, given.length, packing, bins, given.seed)
        self.report = report(self.plan, self.sizes)

    def __len__(self) -> int:
        return len(self.plan)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        parts = [self._piece(*piece) for piece in pieces(self.plan, place)]
        fields = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if self.together:
            fields["documents"], fields["positions"] = places([len(part["ids"]) for part in parts])
        return fields

    def _piece(self, document: int, start: int, stop: int) -> dict[str, np.ndarray]:
        before, after = max(start - 1, 0), min(stop + 1, int(self.sizes[document]))
        tokens = wrapped(self.text, document, before, after, self.first, self.last)
        padded = np.concatenate([[-100] * (start == before), tokens, [-100] * (stop == after)]).astype(np.int64)
        ids = tokens[start - before : stop - before]
        return {"ids": ids, "labels_bilm": np.stack([padded[2:], padded[:-2]], axis=1)}
