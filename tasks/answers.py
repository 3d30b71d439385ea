"""How good answers are: plain functions of what a model said and what was right, as the tasks' papers define them.

Classes: accuracy, macro F1, Matthews. Numbers: Pearson, Spearman. Tags: entity F1. Spans: exact match and word F1.
Texts: ROUGE-L and chrF. Vectors: recall at k. All are fractions in [-1, 1] or [0, 1].
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

__all__ = [
    "chrf",
    "classes",
    "confusion",
    "entities",
    "entity_f1",
    "numbers",
    "ranks",
    "retrieval",
    "rouge_l",
    "spans",
    "texts",
    "words",
]

CJK = re.compile(r"([\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])")
CHRF_ORDER, CHRF_BETA = 6, 2


def classes(predicted: Sequence[int], label: Sequence[int], count: int) -> dict[str, float]:
    """Accuracy, macro F1 and Matthews' correlation of `count` classes.

    Macro F1 is the mean over the classes that are predicted or right somewhere. Matthews' correlation (0 where it is
    not defined) in its form for several classes: Gorodkin, 2004, doi:10.1016/j.compbiolchem.2004.09.006.

    >>> {k: round(v, 4) for k, v in classes([1, 1, 0, 0], [1, 0, 0, 0], 2).items()}
    {'accuracy': 0.75, 'f1': 0.7333, 'matthews': 0.5774}
    """
    table = confusion(predicted, label, count).astype(float)
    right, said, was = table.diagonal(), table.sum(0), table.sum(1)
    present = said + was > 0
    spread = (table.sum() ** 2 - (said**2).sum()) * (table.sum() ** 2 - (was**2).sum())
    covariance = right.sum() * table.sum() - (said * was).sum()
    return {
        "accuracy": float(right.sum() / table.sum()),
        "f1": float((2 * right[present] / (said + was)[present]).mean()),
        "matthews": float(covariance / spread**0.5) if spread else 0.0,
    }


def confusion(predicted: Sequence[int], label: Sequence[int], count: int) -> np.ndarray:
    """(right class, said class) -> rows, int64."""
    table = np.zeros((count, count), np.int64)
    np.add.at(table, (np.asarray(label, int), np.asarray(predicted, int)), 1)
    return table


def numbers(predicted: Sequence[float], label: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation and the mean squared error; a correlation with a constant is NaN.

    >>> {k: round(v, 4) for k, v in numbers([1, 2, 3, 4], [1, 3, 2, 4]).items()}
    {'pearson': 0.8, 'spearman': 0.8, 'mse': 0.5}
    """
    x, y = np.asarray(predicted, float), np.asarray(label, float)
    return {
        "pearson": _correlation(x, y),
        "spearman": _correlation(ranks(x), ranks(y)),
        "mse": float(((x - y) ** 2).mean()),
    }


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on; equal values share the mean of theirs.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[place]


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    spread = ((x**2).sum() * (y**2).sum()) ** 0.5
    return float((x * y).sum() / spread) if spread else float("nan")


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(start, end, kind) of a BIO sequence, end exclusive; an I- that continues nothing starts one, as in conlleval.

    >>> sorted(entities(["B-brand", "I-brand", "O", "I-size", "B-size"]))
    [(0, 2, 'brand'), (3, 4, 'size'), (4, 5, 'size')]
    """
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        part, _, name = tag.partition("-")
        if kind and (part != "I" or name != kind):
            found.add((start, place, kind))
            kind = ""
        if part in ("B", "I") and not kind:
            start, kind = place, name
    return found


def entity_f1(predicted: Iterable[Sequence[str]], right: Iterable[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities over all rows; 0 where nothing is found.

    Source: Tjong Kim Sang and De Meulder, 2003, arXiv:cs/0306050.

    >>> entity_f1([["B-a", "O", "B-b"]], [["B-a", "I-a", "B-b"]])
    {'precision': 0.5, 'recall': 0.5, 'f1': 0.5}
    """
    said = was = both = 0
    for one, other in zip(predicted, right, strict=True):
        found, wanted = entities(one), entities(other)
        said, was, both = said + len(found), was + len(wanted), both + len(found & wanted)
    return _f1(both, said, was)


def _f1(both: float, said: float, was: float) -> dict[str, float]:
    precision, recall = both / said if said else 0.0, both / was if was else 0.0
    total = precision + recall
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / total if total else 0.0}


def words(text: str) -> list[str]:
    """Lower case, no punctuation, no English articles; a Chinese, Japanese or Korean character is a word.

    Source: the official script of SQuAD (arXiv:1606.05250) and, for characters, of CMRC 2018 (arXiv:1810.07366).

    >>> words("The Panthers, 卡罗来纳!")
    ['panthers', '卡', '罗', '来', '纳']
    """
    plain = CJK.sub(r" \1 ", unicodedata.normalize("NFKC", text).lower())
    plain = "".join(letter for letter in plain if not _punctuation(letter))
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def _punctuation(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter)[0] == "P"


def spans(predicted: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and word F1 of answers, each against the best of several right ones ([] or [""]: no answer).

    >>> spans(["in the Denver"], [["Denver", "Denver Broncos"]])
    {'exact': 0.0, 'f1': 0.6666666666666666}
    """
    exact, overlap = [], []
    for said, answers in zip(predicted, right, strict=True):
        said = words(said)
        wanted = [words(answer) for answer in answers] or [[]]
        exact.append(max(said == answer for answer in wanted))
        overlap.append(max(_overlap(said, answer) for answer in wanted))
    return {"exact": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def _overlap(said: list[str], answer: list[str]) -> float:
    if not said or not answer:
        return float(said == answer)
    return _f1((Counter(said) & Counter(answer)).total(), len(said), len(answer))["f1"]


def texts(predicted: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    """Exact match after normalisation, ROUGE-L and chrF of whole texts."""
    return {
        "exact": float(np.mean([words(a) == words(b) for a, b in zip(predicted, right, strict=True)])),
        "rouge_l": float(np.mean([rouge_l(a, b) for a, b in zip(predicted, right, strict=True)])),
        "chrf": chrf(predicted, right),
    }


def rouge_l(predicted: str, right: str) -> float:
    """F1 of the longest common subsequence of words. Source: Lin, 2004, aclanthology.org/W04-1013, with beta 1.

    >>> round(rouge_l("police kill gunman", "police killed gunman yesterday"), 4)
    0.5714
    """
    said, wanted = words(predicted), words(right)
    before = [0] * (len(wanted) + 1)
    for word in said:
        row = [0]
        for place, other in enumerate(wanted):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[-1]))
        before = row
    return _f1(before[-1], len(said), len(wanted))["f1"]


def chrf(predicted: Sequence[str], right: Sequence[str]) -> float:
    """Character n-gram F2 over the whole set, n to 6, spaces left out; counts are summed before they are divided.

    Precision and recall are averaged over the orders that both sides have. Source: Popovic, 2015,
    aclanthology.org/W15-3049.

    >>> round(chrf(["abc"], ["abd"]), 4)  # one letter of order 1 and 2 lost, no trigram: P = R = (2/3 + 1/2 + 0) / 3
    0.3889
    """
    said, was, both = (np.zeros(CHRF_ORDER) for _ in range(3))
    for one, other in zip(predicted, right, strict=True):
        one, other = "".join(one.split()), "".join(other.split())
        for order in range(CHRF_ORDER):
            found, wanted = _grams(one, order + 1), _grams(other, order + 1)
            said[order] += found.total()
            was[order] += wanted.total()
            both[order] += (found & wanted).total()
    there = (said > 0) & (was > 0)
    if not there.any():
        return 0.0
    precision, recall = (both[there] / said[there]).mean(), (both[there] / was[there]).mean()
    total = CHRF_BETA**2 * precision + recall
    return float((1 + CHRF_BETA**2) * precision * recall / total) if total else 0.0


def _grams(text: str, order: int) -> Counter:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def retrieval(cosine: np.ndarray, right: np.ndarray, cut_offs: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Share of queries whose right document is among the k nearest, and the mean reciprocal rank.

    Args:
        cosine: (queries, documents); a tie counts against the right document.
        right: (queries,) int, the right document of each.

    >>> retrieval(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]), cut_offs=(1, 2))
    {'recall@1': 0.5, 'recall@2': 1.0, 'mrr': 0.75}
    """
    own = cosine[np.arange(len(right)), right][:, None]
    place = (cosine >= own).sum(1)
    found = {f"recall@{k}": float((place <= k).mean()) for k in cut_offs if k <= cosine.shape[1]}
    return found | {"mrr": float((1 / place).mean())}
