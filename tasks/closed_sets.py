"""Questions whose right answers are all known: probes that need neither a network nor a judge.

An answer is right if, in lower case and without punctuation and articles, it is one of the set's names. The sets are
ours; the measure `mapk` is that of the paper's repository (arXiv:2410.02284).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.answers import words
from tasks.files import read_json
from tasks.settings import SettingsError

__all__ = ["ClosedSet", "closed_sets", "mapk"]


@dataclass(frozen=True)
class ClosedSet:
    """A question and its right answers.

    Args:
        names: normalised name -> number of the answer; an answer may have several names.
    """

    instruction: str
    names: Mapping[str, int]

    def number(self, text: str) -> int | None:
        """Which answer a text is, None for a wrong one."""
        return self.names.get(_plain(text))


def closed_sets(chosen: Sequence[str] | None = None, file: str | Path | None = None) -> dict[str, ClosedSet]:
    """Sets by name.

    Args:
        chosen: names; None for all.
        file: JSON {name: {"instruction": ..., "answers": [[name, other name ...], ...]}} in place of ours.

    Raises:
        SettingsError: no such set, or one without an instruction or answers.
    """
    place = Path(file) if file else Path(__file__).with_suffix(".json")
    found = read_json(place)
    if unknown := [name for name in chosen or () if name not in found]:
        raise SettingsError(f"{place.name} has no set {', '.join(unknown)}; it has {', '.join(found)}")
    sets = {}
    for name in chosen or found:
        entry = found[name]
        if not isinstance(entry, dict) or not entry.get("instruction") or not entry.get("answers"):
            raise SettingsError(f"{place}: {name} needs an instruction and answers, a list of lists of names")
        names = {_plain(alias): number for number, each in enumerate(entry["answers"]) for alias in each}
        sets[name] = ClosedSet(entry["instruction"], names)
    return sets


def mapk(right: Sequence[bool], k: int = 10) -> float:
    """Mean over the first 1, 2 ... k answers of their precision; fewer answers than k are all there is.

    >>> mapk([True, False], 2)
    0.75
    """
    shares = [sum(right[:count]) / count for count in range(1, min(k, len(right)) + 1)]
    return sum(shares) / len(shares) if shares else 0.0


def _plain(text: str) -> str:
    return " ".join(words(text))
