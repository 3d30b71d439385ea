"""Pairs: a class for two texts, such as entailment or paraphrase."""

from tasks.kinds._classes import Classes

__all__ = ["Pairs"]


class Pairs(Classes):
    """Reads text, second and label."""

    reads = ("text", "second", "label")
