"""T5's span corruption: spans of the text become one sentinel each, and the target gives them back.

    ids         a b <0> e f <1> h </s>       (of a b c d e f g h)
    labels_lm   <0> c d <1> g <2> </s>       target_ids: the same, shifted right behind the padding token

15% of a piece's tokens lie in spans of 3 on average; how many tokens and spans is arithmetic, where they lie is drawn
anew in each epoch. A piece of text is as long as still fits into the row when corrupted. Several share a row, each
with its own sentinels, number and positions on both sides.

Source: Raffel et al., 2020, arXiv:1910.10683, sections 3.1.4 and 3.3.4. The final sentinel is that of its figure 2.
"""

import numpy as np

from models.language.packing import places, split
from tasks.processors._given import Given, special
from tasks.processors._packed import pack, pieces
from tasks.processors._target import target
from tasks.processors._text import Text

__all__ = ["T5", "corrupt", "sizes"]


class T5:
    """Rows with ids, target_ids and labels_lm; with packing also (target_)documents and (target_)positions.

    Args:
        given: its folder has a stream `text`, its vocabulary <extra_id_0>, <extra_id_1> and so on.
        share: of the tokens that are replaced.
        mean: tokens of a span on average.
        packing: "first_fit", "best_fit" or "none".
        bins: open rows of first_fit.

    Raises:
        ValueError: too few sentinels, impossible settings, or no text of two tokens.
    """

    def __init__(self, given: Given, share: float = 0.15, mean: float = 3.0, packing: str = "first_fit", bins: int = 8):
        if packing == "concat":
            raise ValueError("t5 cuts texts before it corrupts them: packing is first_fit, best_fit or none")
        if not 0 < share < 1 or mean < 1:
            raise ValueError(f"t5 hides a share in (0, 1) in spans of at least 1 token; got {share} and {mean}")
        self.share, self.mean, self.together = share, mean, packing != "none"
        self.text, self.end = Text(given.folder / "text"), special(given.vocabulary, "end")
        self.start = given.vocabulary.filler  # the decoder of T5 starts from the padding token
        longest = uncorrupted(given.length, share, mean)
        document, start, stop = split(self.text.lengths, longest)
        kept = stop - start > 1  # one token has nothing to leave visible
        if not kept.any():
            raise ValueError(f"{given.folder}: no document has the two tokens that span corruption needs")
        self.pieces = [part[kept] for part in (document, start, stop)]
        noise, spans = sizes(self.pieces[2] - self.pieces[1], share, mean)
        given.vocabulary.need(sentinels=int(spans.max()) + 1)
        self.sentinels = np.array(given.vocabulary.sentinels)
        taken = self.pieces[2] - self.pieces[1] - noise + spans + 1
        self.plan = pack(taken, given.length, packing, bins, given.seed, whole=True)
        self.report = {
            "rows": len(self),
            "efficiency": self.plan.efficiency,
            "documents_cut": int((np.bincount(document) > 1).sum()),
            "tokens_left_out": int((~kept).sum()),
        }

    def __len__(self) -> int:
        return len(self.plan)

    def row(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        found = []
        for piece, _, _ in pieces(self.plan, place):
            tokens = self.text.tokens(*(int(part[piece]) for part in self.pieces))
            visible, hidden = corrupt(tokens, self.sentinels, self.share, self.mean, rng)
            found.append({"ids": np.append(visible, self.end)} | target(hidden, self.start, self.end))
        fields = {name: np.concatenate([piece[name] for piece in found]) for name in found[0]}
        if self.together:
            for stem in ("", "target_"):
                numbers = places([len(piece[stem + "ids"]) for piece in found])
                fields[stem + "documents"], fields[stem + "positions"] = numbers
        return fields


def sizes(tokens: np.ndarray, share: float, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """How many of so many tokens are hidden, and in how many spans; every span follows a visible token.

    >>> [part.tolist() for part in sizes(np.array([2, 20, 100]), share=0.15, mean=3.0)]
    [[1, 3, 15], [1, 1, 5]]
    """
    noise = np.clip(np.rint(tokens * share).astype(np.int64), 1, tokens - 1)
    return noise, np.clip(np.rint(noise / mean).astype(np.int64), 1, tokens - noise)


def uncorrupted(length: int, share: float, mean: float) -> int:
    """Tokens of the longest text that fits into a row of `length` when corrupted, with its </s>.

    >>> uncorrupted(512, share=0.15, mean=3.0)
    568
    """
    if length < 3:
        raise ValueError(f"span corruption needs a row of at least 3 places: a token, a sentinel, </s>; got {length}")
    tokens = np.arange(2, max(4, int(length / (1 - share)) + 4))
    noise, spans = sizes(tokens, share, mean)
    return int(tokens[tokens - noise + spans + 1 <= length].max())


def corrupt(
    tokens: np.ndarray, sentinels: np.ndarray, share: float, mean: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Visible tokens with a sentinel for each span, and sentinels each followed by its span, with a final one."""
    noise, spans = (int(part) for part in sizes(np.array(len(tokens)), share, mean))
    lengths = np.stack([_parts(len(tokens) - noise, spans, rng), _parts(noise, spans, rng)], axis=1).ravel()
    ends = np.cumsum(lengths)
    # Odd parts are spans: the source has a sentinel where each begins, the target one in front of each.
    hidden = np.repeat(np.arange(2 * spans) % 2 == 1, lengths)
    begins = ends[0::2]
    visible = np.insert(np.where(hidden, -1, tokens), begins, sentinels[:spans])
    said = np.insert(np.where(hidden, tokens, -1), begins, sentinels[:spans])
    return visible[visible >= 0], np.append(said[said >= 0], sentinels[spans])


def _parts(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` in so many whole numbers >= 1, every composition equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
