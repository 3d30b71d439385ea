"""Pairs of texts that say the same in two languages: what a translation model, and ChatFlow's second stage, learn from.

Takes Parquet, JSON lines, JSON, CSV and TSV, also with .gz. A record has source and target, or two columns named after
languages (en and zh), or "translation": {"en": ..., "zh": ...}. source_language and target_language are columns, the
settings `source_language` and `target_language`, the names of the columns, or else guessed from the script. Fields
that tell one kind of pair from another (field, kind) make the origin, after the name of the file. Pairs without text on
one side are left out. When the source is this file, made-up listings are written, in English and Chinese
unless `languages` says otherwise.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from tasks.datasets._listings import LICENCE, Listing, ListingError, check_languages, texts_of_items
from tasks.datasets._rules import Rule
from tasks.datasets._text import (
    SCRIPTS,
    TextUnreadable,
    language_of,
    licence_of,
    note,
    of_the_sample,
    records,
    rules,
    scan,
    stated,
)

__all__ = ["KIND", "SCHEMA", "expectations", "fetch", "read"]

KIND = "pairs"
NAMES = ("source", "target", "source_language", "target_language", "licence", "origin")
SCHEMA = dict.fromkeys(NAMES, pl.String)
KINDS = ("field", "kind")
LOPSIDED = 15  # how many times as long one side may be as the other; a Han character counts as three letters
FEW = 30  # letters: shorter texts have no lengths worth comparing


def read(raw: Path) -> pl.LazyFrame:
    """source, target, source_language, target_language, licence and origin; a row is a pair."""
    return scan(raw, SCHEMA, _pairs)


def expectations() -> list[Rule]:
    """Both sides have text of their language, of lengths that go together, and are not the same."""
    size = {side: _size(pl.col(side)) for side in ("source", "target")}
    longer, shorter = pl.max_horizontal(*size.values()), pl.min_horizontal(*size.values())
    lopsided = (longer > FEW) & (longer > shorter * LOPSIDED)
    same = pl.col("source") == pl.col("target")
    return [
        *rules({"source": "source_language", "target": "target_language"}),
        Rule(
            name="lengths",
            text=f"at most 1 % of the pairs have a side more than {LOPSIDED} times as long as the other",
            columns=("source", "target"),
            measure=lopsided.mean(),
            high=0.01,
            offending=lopsided,
        ),
        Rule(
            name="untranslated",
            text="at most 2 % of the pairs have the same text on both sides",
            columns=("source", "target"),
            measure=same.mean(),
            high=0.02,
            offending=same,
        ),
    ]


def fetch(
    out: Path,
    source: Path,
    pairs: int = 1000,
    seed: int = 7,
    languages: Sequence[str] = ("en", "zh"),
    source_language: str | None = None,
    target_language: str | None = None,
    licence: str | dict | None = None,
) -> None:
    """Copy a file or folder, or make `pairs` pairs of sentences when `source` is this file or sample.py.

    Args:
        out: an empty folder.
        source: pairs, or this file; or sample.py beside it, for listings of the synthetic marketplace's items.
        pairs: to make.
        seed: other listings.
        languages: of those that are made: the first one, paired with each of the others in turn; en, zh, ja.
        source_language: of the files, where they do not say it.
        target_language: likewise.
        licence: of the files.

    Raises:
        ListingError: fewer than two languages, or one that listings do not have.
    """
    facts = {"source_language": source_language, "target_language": target_language, "licence": licence}
    sample = of_the_sample(source)
    if not sample and note(out, source, __file__, **facts):
        return
    if len(check_languages(languages)) < 2:
        raise ListingError(f"languages is {list(languages)}; a pair has two of them")
    half = (pairs + 1) // 2
    listings = texts_of_items(half, seed) if sample else [Listing(seed, number) for number in range(half)]
    with open(out / "listings.jsonl", "w", encoding="utf-8") as file:
        for number in range(pairs):
            listing, titled = listings[number // 2], number % 2 == 0  # the title, then its first two sentences
            spoken = languages[0], languages[1 + number // 2 % (len(languages) - 1)]
            record = {one: _said(listing, one, titled) for one in spoken} | {"licence": LICENCE}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _said(listing, language: str, titled: bool) -> str:
    """The title, or the first two sentences of the description."""
    between = " " if language == "en" else ""
    return listing.title(language) if titled else between.join(listing.description(language)[:2])


def _size(text: pl.Expr) -> pl.Expr:
    return text.str.len_chars() + 2 * text.str.count_matches(SCRIPTS["ja"])


def _pairs(path: Path, file: str, facts: dict) -> Iterator[dict]:
    for record in records(path):
        record = record | (record.get("translation") or {})
        first, second = _sides(path, record)
        texts = {"source": (record[first] or "").strip(), "target": (record[second] or "").strip()}
        if not all(texts.values()):
            continue
        spoken = {}
        for side, column in (("source", first), ("target", second)):
            key = f"{side}_language"
            known = record.get(key) or stated(facts.get(key), file) or (column if column != side else None)
            spoken[key] = known or language_of(texts[side])
        kinds = [str(record[name]) for name in KINDS if record.get(name)]
        yield {**texts, **spoken, "licence": licence_of(record, facts, file), "origin": ":".join([file, *kinds])}


def _sides(path: Path, record: dict) -> tuple[str, str]:
    if "source" in record and "target" in record:
        return "source", "target"
    named = [column for column in record if column in SCRIPTS]
    if len(named) != 2:
        raise TextUnreadable(
            f"{path} has the columns {', '.join(record)}: source and target, or two of {', '.join(SCRIPTS)}, are needed"
        )
    return named[0], named[1]
