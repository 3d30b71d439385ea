"""Which tokens of a row are hidden for a masked language model, and what stands in their place.

15% of the tokens, at least one, are to be predicted: 80% of them become [MASK], 10% a random token, 10% stay. A
token, a whole word or a span of words is chosen at a time. Special tokens are never chosen and never put in.

Source: Devlin et al., 2019, arXiv:1810.04805, appendix A.1 and the whole-word variant of its code; spans: Joshi et
al., 2020, arXiv:1907.10529, section 3.1: lengths from a geometric distribution (p = 0.2) cut at 10 words, and one
decision of 80/10/10 for the whole span. n-grams: Lan et al., 2020, arXiv:1909.11942, section 4.1: up to 3 words, odds
1/n.
"""

import numpy as np

from tasks.processors._given import Given, special

__all__ = ["Masking"]

IGNORED = -100
UNITS = ("token", "word", "span", "ngram")
LONGEST = {"span": 10, "ngram": 3}  # words


class Masking:
    """A row's ids -> the ids with some hidden, and their labels.

    Args:
        given: whose vocabulary must have a mask token.
        unit: "token", "word", "span" or "ngram".
        share: of the tokens that are predicted.
        masked, random: shares of those that become [MASK] or a random token; the rest stay.

    Raises:
        ValueError: an unknown unit, impossible shares, or a vocabulary without a mask token.
    """

    def __init__(
        self,
        given: Given,
        unit: str = "token",
        share: float = 0.15,
        masked: float = 0.8,
        random: float = 0.1,
    ):
        if unit not in UNITS:
            raise ValueError(f"masking must be one of {', '.join(UNITS)}; got {unit!r}")
        if not 0 < share < 1 or masked < 0 or random < 0 or masked + random > 1:
            raise ValueError(f"masking shares must lie in 0..1, got share {share}, masked {masked}, random {random}")
        self.unit, self.share, self.masked, self.random = unit, share, masked, random
        self.mask, self.ordinary = special(given.vocabulary, "mask"), given.ordinary
        self.allowed = np.zeros(given.size, bool)
        self.allowed[self.ordinary] = True
        if unit in LONGEST:
            length = np.arange(1, LONGEST[unit] + 1)
            odds = 0.8 ** (length - 1) if unit == "span" else 1 / length
            self.lengths = np.cumsum(odds / odds.sum())

    def __call__(self, ids: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Hide tokens of one row.

        Args:
            ids: (T,) int64 with its special tokens.
            starts: (T,) bool, the token starts a word; a masking of tokens does not read it.

        Returns:
            (T,) ids with tokens hidden, (T,) labels: the hidden token, -100 elsewhere.
        """
        open_to = np.flatnonzero(self.allowed[ids])
        hidden, labels = ids.copy(), np.full(len(ids), IGNORED, np.int64)
        if not len(open_to):
            return hidden, labels
        budget = max(1, round(self.share * len(open_to)))
        choose = {"token": self._tokens, "word": self._words}.get(self.unit, self._spans)
        chosen, kind = choose(open_to, starts, budget, rng)
        labels[chosen] = ids[chosen]
        hidden[chosen[kind < self.masked]] = self.mask
        swapped = chosen[(kind >= self.masked) & (kind < self.masked + self.random)]
        hidden[swapped] = self.ordinary[rng.integers(len(self.ordinary), size=len(swapped))]
        return hidden, labels

    def _tokens(self, open_to, starts, budget, rng) -> tuple[np.ndarray, np.ndarray]:
        return rng.permutation(open_to)[:budget], rng.random(budget)

    def _words(self, open_to, starts, budget, rng) -> tuple[np.ndarray, np.ndarray]:
        """Words in random order; one that would overrun the budget is passed over."""
        first, sizes = _words(open_to, starts)
        order = rng.permutation(len(sizes))
        taken, left = [], budget
        for word in order.tolist():
            if sizes[word] <= left:
                taken.append(word)
                left -= sizes[word]
                if not left:
                    break
        taken = taken or [
            int(np.argmin(sizes))
        ]  # every word is longer than the budget: at least one token is predicted
        chosen = np.concatenate([open_to[first[word] : first[word] + sizes[word]] for word in taken])
        return chosen, rng.random(len(chosen))

    def _spans(self, open_to, starts, budget, rng) -> tuple[np.ndarray, np.ndarray]:
        """Spans of whole words that touch no special token; the last one is cut where the budget ends."""
        first, sizes = _words(open_to, starts)
        joined = np.append(open_to[first[1:]] == open_to[first[1:] - 1] + 1, False)  # the next word follows at once
        kinds = np.full(len(open_to), np.nan)
        left = budget
        while left:
            word = int(rng.integers(len(first)))
            length, kind = int(np.searchsorted(self.lengths, rng.random(), side="right")) + 1, rng.random()
            while length and left and np.isnan(kinds[first[word]]):
                taken = min(left, int(sizes[word]))
                kinds[first[word] : first[word] + taken] = kind
                left, length = left - taken, length - 1
                if not joined[word]:
                    break
                word += 1
        places = np.flatnonzero(~np.isnan(kinds))
        return open_to[places], kinds[places]


def _words(open_to: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First place in `open_to` and size of each word; whatever follows a special token starts one."""
    begins = starts[open_to].copy()
    begins[0] = True
    begins[1:] |= np.diff(open_to) > 1
    first = np.flatnonzero(begins)
    return first, np.diff(np.append(first, len(open_to)))
