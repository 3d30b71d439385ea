"""What written texts are worth: overlap, kept facts, and whether a customer finds the item more easily.

    BLEU         of all texts together, by sacrebleu, exponentially smoothed where an order has no match
    ROUGE-L      F1 of the longest common subsequence, by rouge-score
    gain         mean of 1 / rank after - 1 / rank before, of an item for a query among all titles by BM25
    hierarchical F1 of the categories on the path with those above them (Kiritchenko et al., 2005)

Words are letters and digits in lower case, a Chinese, Japanese or Korean character is a word of its own, everywhere.
How varied texts are: tasks/diversity.py.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

__all__ = [
    "BM25", "classified", "corpus_bleu", "kept_facts", "overlap_at_k", "retrieval_gain", "rouge_l", "terms_found",
    "words",
]  # fmt: skip

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def words(text: str) -> list[str]:
    """Words of a text.

    >>> words("Red Bag, 20% 红包")
    ['red', 'bag', '20', '红', '包']
    """
    return WORD.findall(text.lower())


@cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        """What rouge-score calls a tokenizer; its own leaves out all letters but a to z."""

        tokenize = staticmethod(words)

    return RougeScorer(["rougeL"], tokenizer=Words())


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F1; 0 where either has no word.

    >>> round(rouge_l("police kill the gunman", "police killed the gunman"), 4)
    0.75
    """
    return float(_rouge().score(reference, text)["rougeL"].fmeasure)


def corpus_bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """BLEU in [0, 1] of all texts together, exponentially smoothed (sacrebleu).

    Texts without a word count as such: they shorten the whole.
    """
    from sacrebleu.metrics import BLEU

    if not texts:
        return 0.0
    spaced = [[" ".join(words(text)) for text in part] for part in (texts, references)]
    bleu = BLEU(tokenize="none", smooth_method="exp", effective_order=True)
    return bleu.corpus_score(spaced[0], [spaced[1]]).score / 100


def terms_found(query: str, text: str) -> float:
    """Share of a query's different words that a text has; 1 for a query without words."""
    asked = set(words(query))
    return len(asked & set(words(text))) / len(asked) if asked else 1.0


def kept_facts(source: str, text: str, brand: str = "") -> float:
    """Share of brand, numbers and model names (letters with digits) of a title that its rewriting kept; 1 without any.

    >>> kept_facts("Sony WH-1000 headset, 2 cables", "headset WH-1000 by Sony", "Sony")
    0.6666666666666666
    """
    facts = {word for word in words(source) if any(letter.isdigit() for letter in word)}
    if brand and brand.lower() in source.lower():
        facts.add(brand.lower())
    plain, there = text.lower(), set(words(text))
    return (
        sum(fact in there or (fact == brand.lower() and fact in plain) for fact in facts) / len(facts) if facts else 1.0
    )


def overlap_at_k(text: str, wanted: Sequence[str], k: int = 3) -> float:
    """Share of the first k wanted categories, by the last name of their paths, that a text mentions.

    >>> overlap_at_k("She also likes boots.", ["Shoes > Boots", "Bags > Tote"])
    0.5
    """
    plain = text.lower()
    named = [path.split(">")[-1].strip().lower() for path in wanted[:k]]
    return sum(name in plain for name in named) / len(named) if named else 0.0


class BM25:
    """Okapi BM25 over a list of texts.

    Args:
        texts: documents.
        k1, b: of the term's and the document's length's weight.

    Source: Robertson and Zaragoza, 2009, doi:10.1561/1500000019, with idf = ln(1 + (N - n + 0.5) / (n + 0.5)).
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75):
        self.counts = [Counter(words(text)) for text in texts]
        self.mean = sum(map(Counter.total, self.counts)) / max(len(texts), 1)
        self.k1, self.b, self.has = k1, b, Counter(word for one in self.counts for word in one)
        self.where: dict[str, list[int]] = {}
        for place, one in enumerate(self.counts):
            for word in one:
                self.where.setdefault(word, []).append(place)

    def score(self, query: str, count: Counter) -> float:
        """Of a document with these words, which need not be of the list."""
        found = 0.0
        for word in set(words(query)):
            if count[word]:
                idf = math.log(1 + (len(self.counts) - self.has[word] + 0.5) / (self.has[word] + 0.5))
                size = 1 - self.b + self.b * count.total() / max(self.mean, 1e-9)
                found += idf * count[word] * (self.k1 + 1) / (count[word] + self.k1 * size)
        return found

    def rank(self, query: str, place: int, text: str | None = None) -> int:
        """Place of a document for a query, from 1 on; a tie counts against it.

        Args:
            place: of the document in the list.
            text: what stands there instead of its own text; the others and all statistics stay as they are.
        """
        own = self.score(query, self.counts[place] if text is None else Counter(words(text)))
        others = {other for word in set(words(query)) for other in self.where.get(word, ())} - {place}
        better = sum(self.score(query, self.counts[other]) >= own for other in others)
        return 1 + better + ((len(self.counts) - 1 - len(others)) if own == 0 else 0)


def retrieval_gain(
    index: BM25, queries: Sequence[str], places: Sequence[int], texts: Sequence[str]
) -> dict[str, float]:
    """Mean reciprocal rank with titles as they are (`before`) and rewritten (`after`), and the difference, `gain`."""
    ranks = [(index.rank(query, place), index.rank(query, place, text))
             for query, place, text in zip(queries, places, texts, strict=True)]  # fmt: skip
    count = max(len(ranks), 1)
    before, after = (sum(1 / pair[side] for pair in ranks) / count for side in (0, 1))
    return {"before": before, "after": after, "gain": after - before}


def classified(said: Sequence[str], right: Sequence[str], join: str = " > ") -> dict[str, float]:
    """Accuracy and macro F1 at each level of the taxonomy, and hierarchical F1 over all.

    At level k, what counts is the path from the top to there; a label that ends earlier is its whole self.

    >>> found = classified(["a > x", "b > y"], ["a > x", "b > z"])
    >>> found["accuracy_1"], found["accuracy_2"], round(found["hierarchical_f1"], 2)
    (1.0, 0.5, 0.75)
    """
    paths = [([part.strip() for part in one.split(join.strip())], [part.strip() for part in other.split(join.strip())])
             for one, other in zip(said, right, strict=True)]  # fmt: skip
    found: dict[str, float] = {}
    for level in range(1, max((len(path) for _, path in paths), default=0) + 1):
        pairs = [(tuple(one[:level]), tuple(other[:level])) for one, other in paths]
        found[f"accuracy_{level}"] = sum(one == other for one, other in pairs) / len(pairs)
        found[f"macro_f1_{level}"] = _macro_f1(pairs)
    heads = [({tuple(path[: n + 1]) for n in range(len(path))} for path in both) for both in paths]
    sets = [tuple(pair) for pair in heads]
    both, one, other = (sum(map(len, part)) for part in
                        (([a & b for a, b in sets]), [a for a, _ in sets], [b for _, b in sets]))  # fmt: skip
    return found | {"hierarchical_f1": 2 * both / (one + other) if one + other else 0.0}


def _macro_f1(pairs: Sequence[tuple]) -> float:
    """Mean over the labels that are right somewhere."""
    said, was = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    both = Counter(one for one, other in pairs if one == other)
    scores: Mapping = {label: 2 * both[label] / (said[label] + was[label]) for label in was}
    return sum(scores.values()) / max(len(scores), 1)
