"""PEGASUS' gap sentences: some sentences of a passage become one mask each; the target is those sentences.

    ids  s1 [MASK] s3 s4 </s>     labels_lm  s2 </s>     target_ids: the same, shifted right behind the padding token

30% of the sentences are taken, those that say most of the rest: by ROUGE-1 F1 against the other sentences, each for
itself and repeated tokens counted (Ind-Orig). A passage of one sentence has no gap to fill and is left out and
counted.

Source: Zhang et al., 2020, arXiv:1912.08777, section 3.1. Tokens stand for words in the ROUGE here.
"""

import numpy as np

from tasks.processors._given import Given, special
from tasks.processors._target import target
from tasks.processors._text import Text, passages

__all__ = ["GSG", "principal"]

CHOICES = ("principal", "random", "lead")


class GSG:
    """Rows with ids, target_ids and labels_lm.

    Args:
        given: its folder has a stream `text`.
        share: of the sentences that are taken; at least one is, and at least one stays.
        choice: "principal", "random" or "lead".

    Raises:
        ValueError: an unknown choice, or no passage of two sentences.
    """

    def __init__(self, given: Given, share: float = 0.3, choice: str = "principal"):
        if choice not in CHOICES:
            raise ValueError(f"choice must be one of {', '.join(CHOICES)}; got {choice!r}")
        self.share, self.choice = share, choice
        self.mask, self.last = special(given.vocabulary, "mask"), special(given.vocabulary, "end")
        self.start = given.vocabulary.filler  # the decoder of PEGASUS starts from the padding token
        self.text = Text(given.folder / "text")
        begins, ends = passages(self.text, given.length - 1)
        inside = np.searchsorted(self.text.sentences, ends) - np.searchsorted(self.text.sentences, begins, side="right")
        self.begins, self.ends = begins[inside > 0], ends[inside > 0]
        if not len(self):
            raise ValueError(
                f"{given.folder}: gap sentences need two sentences of one document in a row of {given.length}; none of "
                f"{len(begins)} passages has them"
            )
        self.report = {"rows": len(self), "tokens_left_out": int((ends - begins)[inside == 0].sum())}

    def __len__(self) -> int:
        return len(self.begins)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        tokens, borders = self.text.passage(int(self.begins[place]), int(self.ends[place]))
        taken = self._taken(tokens, borders, rng)
        gap = np.repeat(taken, np.diff(borders))
        visible = np.insert(np.where(gap, -1, tokens), borders[:-1][taken], self.mask)
        return {"ids": np.append(visible[visible >= 0], self.last)} | target(tokens[gap], self.start, self.last)

    def _taken(self, tokens: np.ndarray, borders: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        sentences = len(borders) - 1
        count = min(max(1, round(self.share * sentences)), sentences - 1)
        if self.choice == "lead":
            order = np.arange(sentences)
        elif self.choice == "random":
            order = rng.permutation(sentences)
        else:
            order = np.argsort(-principal(tokens, borders), kind="stable")
        taken = np.zeros(sentences, bool)
        taken[order[:count]] = True
        return taken


def principal(tokens: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """ROUGE-1 F1 of each sentence against all others: (sentences,) in [0, 1].

    >>> principal(np.array([1, 2, 1, 3]), np.array([0, 2, 3, 4])).round(2).tolist()
    [0.5, 0.5, 0.0]
    """
    kinds, kind = np.unique(tokens, return_inverse=True)
    count = np.zeros((len(borders) - 1, len(kinds)), np.int64)
    np.add.at(count, (np.repeat(np.arange(len(count)), np.diff(borders)), kind), 1)
    common = np.minimum(count, count.sum(0) - count).sum(1)
    return 2 * common / len(tokens)  # F1 = 2 c / (own tokens + tokens of the rest), which are all
