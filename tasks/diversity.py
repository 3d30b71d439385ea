"""How different texts are from each other: distinct n-grams and self-BLEU, of the answers to one prompt.

Source: Li et al., 2016, arXiv:1510.03055, for distinct-n; Zhu et al., 2018, arXiv:1802.01886, for self-BLEU, here by
sacrebleu. Words are those of tasks/answers.py, so that Chinese and Japanese need no setting.
"""

import math
from collections.abc import Mapping, Sequence

from tasks.answers import words

__all__ = ["distinct", "diversity", "self_bleu"]

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


def diversity(texts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Means over prompts: prompt -> its texts. What no prompt has a value for is left out."""
    found = {f"distinct_{n}": [distinct(each, n) for each in texts.values()] for n in GRAMS}
    found["self_bleu"] = [self_bleu(each) for each in texts.values()]
    kept = {name: [value for value in values if not math.isnan(value)] for name, values in found.items()}
    return {name: sum(values) / len(values) for name, values in kept.items() if values}


def _grams(split: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(split[place : place + n]) for place in range(len(split) - n + 1)]
