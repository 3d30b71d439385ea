"""Instruction tuning: a prompt and its response in one row; only the response is learnt.

    ids  <s> prompt response </s>     labels_lm: -100 within the prompt, then the response and </s>

Whole examples are packed by first fit; one that is longer than a row is left out and counted, for a response without
its end teaches to go on. The prompt's words (its template) are in the tokens already.

Source: Taori et al., 2023 (Stanford Alpaca), for the loss on responses; rows: models/language/packing.py.
"""

import numpy as np

from models.language.packing import places
from tasks.processors._given import Given, special
from tasks.processors._packed import pack, pieces, report
from tasks.processors._text import aligned

__all__ = ["SFT"]


class SFT:
    """Rows with ids, labels_lm and, when examples share a row, documents and positions.

    Args:
        given: its folder has the streams `prompt` and `response`.
        packing: "first_fit", "best_fit" or "none".
        bins: open rows of first_fit.

    Raises:
        ValueError: no example fits into the row.
    """

    def __init__(self, given: Given, packing: str = "first_fit", bins: int = 8):
        if packing == "concat":
            raise ValueError("sft keeps examples whole: packing is first_fit, best_fit or none")
        self.first, self.last = (special(given.vocabulary, role) for role in ("start", "end"))
        self.prompt, self.response = aligned(given.folder, "prompt", "response")
        self.together = packing != "none"
        sizes = np.where(self.response.lengths > 0, self.prompt.lengths + self.response.lengths + 2, 0)
        self.plan = pack(sizes, given.length, packing, bins, given.seed, whole=True)
        self.report = report(self.plan, sizes) | {"without_response": int((sizes == 0).sum())}

    def __len__(self) -> int:
        return len(self.plan)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        ids, labels = [], []
        for example, _, _ in pieces(self.plan, place):
            answer = np.append(self.response.tokens(example), self.last)
            prompt = np.concatenate([[self.first], self.prompt.tokens(example)])
            ids.append(np.concatenate([prompt, answer]))
            labels.append(np.concatenate([np.full(len(prompt) - 1, -100), answer, [-100]]))
        fields = {"ids": np.concatenate(ids), "labels_lm": np.concatenate(labels)}
        if self.together:
            fields["documents"], fields["positions"] = places([len(row) for row in ids])
        return fields
