"""An evaluation as one HTML page that a person can read: who wrote the set, the numbers side by side, texts."""

from collections.abc import Mapping, Sequence
from html import escape

from tasks.page import STYLE, number, table

__all__ = ["page"]

SHOWN = 30  # exchanges
PARTS = {  # heading -> measures, by the beginning of their names
    "Invented facts: the share of texts that state something their input does not show": ("grounding", "invented"),
    "Advertisements": ("ads_",),
    "Titles for a query": ("title_", "retrieval_"),
    "Categories, constrained to the taxonomy and as free text": ("classification_", "free_classification_"),
    "Other answers": ("intent_", "qa_", "query_", "brand_", "attributes_", "empty", "too_long"),
}
MARK = "mark { background: #c2410c33; color: inherit } td { max-width: 22rem; overflow-wrap: anywhere }"


def page(name: str, found: Mapping[str, float], told: Mapping, systems: Sequence[str]) -> str:
    """The page of metrics.json and samples.json.

    Args:
        found: numbers by flat names.
        told: content of samples.json.
        systems: beginnings of the names that are columns; "" is the model itself.
    """
    kind = "templates, no language model" if told["teacher_kind"] == "templates" else told["teacher_kind"]
    shares = ", ".join(f"{key.removeprefix('share_')} {value:.0%}" for key, value in found.items()
                       if key.startswith("share_"))  # fmt: skip
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(name)}: authoring</title><style>{STYLE}{MARK}</style><h1>{escape(name)}: authoring</h1>",
        f"<p>Teacher: {escape(told['teacher'])} ({escape(kind)}). Where the set's answers come from: {shares}. What "
        f"templates wrote is their grammar: these numbers compare with nothing that is published.</p>",
    ]
    heads = ["measure", *("model" if not system else system.rstrip("_") for system in systems)]
    for title, starts in PARTS.items():
        plain = [key for key in found if key.startswith(starts)]
        rows = [[escape(key), *(number(found.get(f"{system}{key}")) for system in systems)] for key in plain]
        parts.append(f"<h2>{escape(title)}</h2>{table(heads, rows)}" if rows else "")
    parts.append(f"<h2>Texts</h2>{_texts(told['samples'][:SHOWN])}")
    return "\n".join(parts) + "\n"


def _texts(samples: Sequence[Mapping]) -> str:
    rows = []
    for one in samples:
        asked = f"{escape(one['instruction'])}<br><span class=dim>{escape(one['input'])}</span>"
        own = _marked(one["texts"].get("tuned", ""), one["invented"].get("tuned", []))
        rows.append([escape(one["split"]), asked.replace("\n", "<br>"), escape(one["reference"]), own,
                     escape(one["texts"].get("base", ""))])  # fmt: skip
    return table(["split", "asked", "in the set", "model", "base"], rows)


def _marked(text: str, inventions: Sequence[Mapping]) -> str:
    """A text with its invented facts marked."""
    parts, place = [], 0
    for one in sorted(inventions, key=lambda one: one["start"]):
        if one["start"] >= place:
            end = one["start"] + len(one["text"])
            fact = f"<mark title={one['kind']}>{escape(text[one['start'] : end])}</mark>"
            parts += [escape(text[place : one["start"]]), fact]
            place = end
    return "".join(parts) + escape(text[place:])
