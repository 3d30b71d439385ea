"""The numbers of one system's texts: grounding over all of them, then what each job asks for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.authoring.filters import LENGTHS
from tasks.authoring.grounding import Lexicon, invented, rates
from tasks.authoring.measures import (
    BM25,
    classified,
    corpus_bleu,
    kept_facts,
    overlap_at_k,
    retrieval_gain,
    rouge_l,
    terms_found,
    words,
)
from tasks.diversity import distinct, self_bleu

__all__ = ["Known", "score"]

ABOUT = 0.5  # of the title's words that the input shows: an advertisement with fewer is about something else
STATED = ("ad", "title", "intent", "query", "brand", "attributes")  # features in which an invented fact is a fault


@dataclass(frozen=True)
class Known:
    """What texts are judged by.

    Args:
        lexicon: of the catalogue.
        taxonomy: its categories.
        index: of the titles among which an item is looked for.
        places: title -> its number in the index.
    """

    lexicon: Lexicon
    taxonomy: frozenset[str]
    index: BM25
    places: Mapping[str, int]


def score(rows: Sequence[Mapping], texts: Sequence[str | None], known: Known) -> dict[str, float]:
    """Flat names -> numbers; what no row asks for is not there, nor is a text that a system does not have (None)."""
    pairs = [(row, text) for row, text in zip(rows, texts, strict=True) if text is not None]
    found = {"empty": _mean([not text for _, text in pairs])}
    stated = [(row, text) for row, text in pairs if row["requires"] in STATED]
    wrong = [invented(text, f"{row['instruction']}\n{row['input']}", known.lexicon) for row, text in stated]
    if stated:
        found |= rates(wrong)
        # a model that says nothing invents nothing either, and is not grounded
        found["grounding"] = _mean(
            [bool(text.strip()) and not one for (_, text), one in zip(stated, wrong, strict=True)]
        )
    by = lambda feature: [(row, text) for row, text in pairs if row["requires"] == feature]
    found |= _ads([(row, text, one) for (row, text), one in zip(stated, wrong, strict=True) if row["requires"] == "ad"])
    titles = [(row, text) for row, text in by("title") if row["query"]]
    found |= _titles(titles, known) | _said_categories(by("category"), known) | _others(by)
    return {name: value for name, value in found.items() if math.isfinite(value)}  # one text is not varied


def _ads(ads: Sequence[tuple]) -> dict[str, float]:
    """Of advertisements; one passes that is about its product, invents nothing, has its length and its occasion."""
    if not ads:
        return {}
    shown = lambda row: " ".join(sorted(set(words(row["title"])) & set(words(row["input"]))))
    about = [terms_found(shown(row), text) for row, text, _ in ads]
    asked = [row["occasion"].lower() in text.lower() for row, text, _ in ads if row["occasion"]]
    low, high = LENGTHS["ad"]
    size = lambda row: 2 if row["language"] in ("zh", "ja") else 1
    passed = [
        share >= ABOUT and not wrong and low / size(row) <= len(text) <= high / size(row)
        and (not row["occasion"] or row["occasion"].lower() in text.lower())
        for share, (row, text, wrong) in zip(about, ads, strict=True)
    ]  # fmt: skip
    texts = [text for _, text, _ in ads]
    found = {
        "ads_invented": _mean([bool(wrong) for _, _, wrong in ads]), "ads_about": _mean(about),
        "ads_pass": _mean(passed),
        "ads_distinct_1": distinct(texts, 1), "ads_distinct_2": distinct(texts, 2), "ads_self_bleu": self_bleu(texts),
        "ads_bleu": corpus_bleu(texts, [row["output"] for row, _, _ in ads]),
        "ads_rouge_l": _mean([rouge_l(text, row["output"]) for row, text, _ in ads]),
    }  # fmt: skip
    return found | ({"ads_occasion": _mean(asked)} if asked else {})


def _titles(titles: Sequence[tuple], known: Known) -> dict[str, float]:
    """Of titles that were rewritten for a query."""
    if not titles:
        return {}
    high = LENGTHS["title"][1]
    found = {
        "title_query_recall": _mean([terms_found(row["query"], text) for row, text in titles]),
        "title_fact_retention": _mean([kept_facts(row["title"], text, row["brand"] or "") for row, text in titles]),
        "title_within_limit": _mean(
            [0 < len(text) <= high / (2 if row["language"] in ("zh", "ja") else 1) for row, text in titles]),
        "title_rouge_l": _mean([rouge_l(text, row["title"]) for row, text in titles]),
        "title_changed": _mean([text.strip() != row["title"] for row, text in titles]),
    }  # fmt: skip
    sought = [(row, text) for row, text in titles if row["heldout_query"] and row["title"] in known.places]
    if sought:
        places = [known.places[row["title"]] for row, _ in sought]
        asked = [row["heldout_query"] for row, _ in sought]
        gain = retrieval_gain(known.index, asked, places, [text for _, text in sought])
        found |= {f"retrieval_{key}": value for key, value in gain.items()}
    return found


def _said_categories(rows: Sequence[tuple], known: Known) -> dict[str, float]:
    """Categories as free text; constrained ones are told by tasks/authoring/evaluate.py."""
    if not rows:
        return {}
    said, right = [text for _, text in rows], [row["output"] for row, _ in rows]
    free = {f"free_classification_{key}": value for key, value in classified(said, right).items()}
    return free | {"free_classification_illegal": _mean([text not in known.taxonomy for text in said])}


def _others(by) -> dict[str, float]:
    found = {}
    for feature in ("intent", "answer", "query"):
        if rows := by(feature):
            name = {"answer": "qa"}.get(feature, feature)
            found[f"{name}_rouge_l"] = _mean([rouge_l(text, row["output"]) for row, text in rows])
    for feature in ("brand", "attributes"):
        if rows := by(feature):
            found[f"{feature}_exact"] = _mean([text.strip() == row["output"] for row, text in rows])
    if told := [(row, text) for row, text in by("intent") if row["related"]]:
        found["intent_overlap"] = _mean([overlap_at_k(text, row["related"]) for row, text in told])
    if asked := [(row, text) for row, text in by("answer") if row["key_facts"]]:
        key = lambda row, text: sum(fact.lower() in text.lower() for fact in row["key_facts"]) / len(row["key_facts"])
        found["qa_key_facts"] = _mean([key(row, text) for row, text in asked])
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(map(float, values)) / len(values) if values else 0.0
