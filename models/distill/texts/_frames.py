"""Labelled lines: what a teacher is asked to answer in, and what a training document is framed with.

A document is the text, then a line `Label: value` for each label, in one order. No value has a line end, so that every
document can be read back. Values of a list are set apart by "; ", and `none` is an empty one.
"""

import re
from collections.abc import Mapping, Sequence

__all__ = ["LISTS", "NONE", "as_line", "frame", "plain", "read_answer", "read_frame"]

LISTS = ("Entities",)
NONE = "none"
Value = str | tuple[str, ...]


def plain(text: str) -> str:
    """A text on one line.

    >>> plain(" two\\n  lines ")
    'two lines'
    """
    return " ".join(text.split())


def as_line(label: str, value: Value) -> str:
    """`Label: value`."""
    return f"{label}: {('; '.join(value) or NONE) if label in LISTS else value}"


def frame(text: str, values: Mapping[str, Value]) -> list[str]:
    """The lines of a document.

    >>> frame("Oslo is cold.", {"Entities": ("Oslo",), "Question": "What is Oslo?"})
    ['Oslo is cold.', 'Entities: Oslo', 'Question: What is Oslo?']
    """
    return [plain(text), *(as_line(label, value) for label, value in values.items())]


def read_frame(lines: Sequence[str], labels: Sequence[str]) -> tuple[str, dict[str, Value]]:
    """What `frame` was made of.

    Raises:
        ValueError: these are not the lines of such a document.
    """
    if len(lines) != 1 + len(labels):
        raise ValueError(f"a document has a text and {len(labels)} lines, got {len(lines) - 1}: {lines!r}")
    values = {}
    for line, label in zip(lines[1:], labels, strict=True):
        if not line.startswith(f"{label}: "):
            raise ValueError(f"a line must begin with {label!r}, got {line!r}")
        values[label] = _value(label, line[len(label) + 2 :], r"; ")
    return lines[0], values


def read_answer(answer: str, labels: Sequence[str]) -> dict[str, Value] | None:
    """What a teacher answered under each label, or None where it left one out.

    A label may be numbered or starred; a value runs to the next label, so it may have several lines.
    """
    found: dict[str, str] = {}
    label = None
    known = {each.lower(): each for each in labels}
    start = re.compile(rf"^[\W\d_]*({'|'.join(known)})[*_\s]*:[*_\s]*(.*)$", re.IGNORECASE)
    for line in answer.splitlines():
        if match := start.match(line):
            label = known[match[1].lower()]
            found.setdefault(label, "")
            line = match[2]
        if label is not None:
            found[label] = f"{found[label]} {line}"
    if set(found) != set(labels):
        return None
    # a comma between names is as common as a semicolon in what models write
    between = {each: r"\s*;\s*" if ";" in found[each] else r"\s*,\s*" for each in labels}
    return {each: _value(each, plain(found[each]), between[each]) for each in labels}


def _value(label: str, text: str, between: str) -> Value:
    if label not in LISTS:
        return text
    parts = re.split(between, text)
    return tuple(dict.fromkeys(part for part in parts if part and part.lower().strip(".") != NONE))
