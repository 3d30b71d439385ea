"""How different the answers to one prompt are from each other: distinct n-grams, self-BLEU, distances of vectors.

Source: Li et al., 2016, arXiv:1510.03055, for distinct-n; Zhu et al., 2018, arXiv:1802.01886, for self-BLEU, here by
sacrebleu. Words are those of tasks/answers.py, so that Chinese and Japanese need no setting. Distances are those of an
encoder's vectors (Tevet and Berant, 2021, arXiv:2004.02990); texts about something else are far apart too, so they say
little without tasks/on_topic.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tasks.answers import words

__all__ = ["Encode", "distance", "distinct", "diversity", "self_bleu"]

Encode = Callable[[Sequence[str]], np.ndarray]  # N texts -> (N, D)

GRAMS = (1, 2, 3)


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of the texts, in (0, 1]; NaN where there are none.

    >>> distinct(["red bike", "red car"], 1)
    0.75
    """
    grams = [gram for text in texts for gram in _grams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 of each text against all others, in [0, 1]: 1 for copies; NaN for fewer than two texts."""
    from sacrebleu.metrics import BLEU

    split = [" ".join(words(text)) for text in texts]
    split = [text for text in split if text]
    if len(split) < 2:
        return math.nan
    metric = BLEU(tokenize="none", effective_order=True)
    scores = [metric.sentence_score(text, split[:place] + split[place + 1 :]).score for place, text in enumerate(split)]
    return sum(scores) / len(scores) / 100


def distance(vectors: np.ndarray) -> float:
    """Mean of 1 - cosine over all pairs of vectors, in [0, 2]; NaN for fewer than two.

    Args:
        vectors: (N, D); one of length 0 has the cosine 0 with every other.

    >>> distance(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])).__round__(4)
    0.6667
    """
    count = len(vectors)
    if count < 2:
        return math.nan
    length_N = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit_ND = np.divide(vectors, length_N, out=np.zeros(vectors.shape), where=length_N > 0)
    # |sum|^2 has every pair twice, and each vector with itself
    pairs = float((unit_ND.sum(0) ** 2).sum() - (unit_ND**2).sum())
    return 1 - pairs / (count * (count - 1))


def diversity(texts: Mapping[str, Sequence[str]], encode: Encode | None = None) -> dict[str, float]:
    """Means over prompts: prompt -> its texts. What no prompt has a value for is left out.

    Args:
        encode: gives the distances of the texts that are not empty; without it there are none.
    """
    found = {f"distinct_{n}": [distinct(each, n) for each in texts.values()] for n in GRAMS}
    found["self_bleu"] = [self_bleu(each) for each in texts.values()]
    if encode is not None:
        said = [[text for text in each if text.strip()] for each in texts.values()]
        found["distance"] = [distance(encode(each)) for each in said if len(each) > 1]
    kept = {name: [value for value in values if not math.isnan(value)] for name, values in found.items()}
    return {name: sum(values) / len(values) for name, values in kept.items() if values}


def _grams(split: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(split[place : place + n]) for place in range(len(split) - n + 1)]
