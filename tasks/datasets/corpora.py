"""Documents of plain text, cut into sentences: what a language model is pre-trained on.

Takes Parquet, JSON lines, JSON, CSV, TSV and text files, also with .gz, in any mixture of these forms:

    sentences   a list: one document a record
    text, content, document, body, line, sentence, the first that is there: a text, cut into sentences here
    file, document_id or doc_id beside it: records on end with the same value are one document, and if `sent` numbers
                them, each is one sentence as it stands
    line, and text files: a blank line ends a document; if there is none, each line is one. Where a file begins with a
                heading of WikiText (` = Title = `), headings of that level begin documents and the others are left out

`language` and `licence` are settings of the dataset (one value, or one for each pattern of file names), unless the
records have such columns. When the source is this file, listings of a made-up marketplace are written; when it is
sample.py beside it, those of the items whose log that writes.
"""

import json
import re
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path

import polars as pl

from tasks.datasets._listings import LICENCE, Listing, ListingError, check_languages, draw, texts_of_items
from tasks.datasets._rules import Rule
from tasks.datasets._text import (
    TextUnreadable,
    language_of,
    licence_of,
    note,
    of_the_sample,
    records,
    rules,
    scan,
    split_sentences,
    stated,
)

__all__ = ["KIND", "SCHEMA", "expectations", "fetch", "read"]

KIND = "documents"
SCHEMA = {"sentences": pl.List(pl.String), "language": pl.String, "licence": pl.String, "source": pl.String}
TEXTS = ("text", "content", "document", "body", "line", "sentence")
GROUPS = ("file", "document_id", "doc_id")
HEADING = re.compile(r"^\s*=(?!\s*=)\s(.*\S)\s=\s*$")  # of the first level
ANY_HEADING = re.compile(r"^\s*(= ?)+\S.*(= ?)+\s*$")
LANGUAGES = (("en", 85), ("zh", 10), ("ja", 5))  # of made-up listings, in percent


def read(raw: Path) -> pl.LazyFrame:
    """sentences, language, licence (null where nobody states one) and source (the file); a row is a document."""
    return scan(raw, SCHEMA, _documents)


def expectations() -> list[Rule]:
    """At most a tenth of the documents occur twice."""
    return rules({"sentences": "language"})


def fetch(
    out: Path,
    source: Path,
    documents: int = 1500,
    seed: int = 7,
    languages: dict[str, int] | None = None,
    language: str | dict | None = None,
    licence: str | dict | None = None,
) -> None:
    """Copy a file or folder, or make `documents` listings when `source` is this file or sample.py.

    Args:
        out: an empty folder.
        source: texts, or this file; or sample.py beside it, for listings of the synthetic marketplace's items.
        documents: listings to make.
        seed: other listings.
        languages: of those that are made: {en: 60, zh: 30, ja: 10}, in percent; None for 85, 10 and 5.
        language: of the texts; without it each document's is guessed from its script.
        licence: of the texts.

    Raises:
        ListingError: `languages` are not those of listings, or not a hundred percent.
    """
    sample = of_the_sample(source)
    if not sample and note(out, source, __file__, language=language, licence=licence):
        return
    shares = check_languages(languages or dict(LANGUAGES))
    if sum(shares.values()) != 100:
        raise ListingError(f"languages add up to {sum(shares.values())}; they are percent of the documents: 100 in all")
    listings = texts_of_items(documents, seed) if sample else [Listing(seed, number) for number in range(documents)]
    with open(out / "listings.jsonl", "w", encoding="utf-8") as file:
        for number, listing in enumerate(listings):
            spoken = _language(shares, seed, number)
            record = {
                "sentences": [listing.title(spoken), *listing.description(spoken)],
                "language": spoken,
                "licence": LICENCE,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _language(shares: dict[str, int], seed: int, number: int) -> str:
    left = draw(100, seed, number, "language")
    for name, share in shares.items():
        if left < share:
            return name
        left -= share
    raise AssertionError("the shares add up to 100")


def _documents(path: Path, file: str, facts: dict) -> Iterator[dict]:
    for sentences, record in _cut(path):
        kept = [s for s in sentences if s]
        if kept:
            language = record.get("language") or stated(facts.get("language"), file)
            yield {
                "sentences": kept,
                "language": language or language_of("\n".join(kept)),
                "licence": licence_of(record, facts, file),
                "source": file,
            }


def _cut(path: Path) -> Iterator[tuple[list[str], dict]]:
    """The sentences of each document, and a record with what else is known of it."""
    found = records(path)
    first = next(found, None)
    if first is None:
        return
    column, group = _columns(path, first)
    stream = _again(first, found)
    if column == "sentences":
        yield from (([s.strip() for s in r["sentences"] if s], r) for r in stream if r["sentences"])
    elif column == "line" and group is None:
        yield from _of_lines((r["line"] or "" for r in stream), *_marks(path))
    elif group is None:
        yield from ((split_sentences(r[column] or ""), r) for r in stream)
    else:
        for _, rows in groupby(stream, key=lambda r: r[group]):
            rows = list(rows)
            whole = [
                [r[column].strip()] if "sent" in r and r[column] else split_sentences(r[column] or "") for r in rows
            ]
            yield [sentence for part in whole for sentence in part], rows[0]


def _columns(path: Path, record: dict) -> tuple[str, str | None]:
    """Which column has the text, and which tells documents apart."""
    column = "sentences" if isinstance(record.get("sentences"), list) else next((c for c in TEXTS if c in record), None)
    if column is None:
        raise TextUnreadable(f"{path} has the columns {', '.join(record)}: none of sentences, {', '.join(TEXTS)}")
    return column, next((c for c in GROUPS if c in record and c != column), None)


def _marks(path: Path) -> tuple[bool, bool]:
    """Whether a file of lines begins with a heading of WikiText, and whether it has blank lines."""
    lines = [line for record in islice(records(path), 3) if (line := record["line"] or "").strip()]
    titled = bool(lines) and bool(HEADING.match(lines[0]))
    return titled, any(not (record["line"] or "").strip() for record in records(path))


def _of_lines(lines: Iterator[str], titled: bool, blank: bool) -> Iterator[tuple[list[str], dict]]:
    document: list[str] = []
    for line in lines:
        empty = not line.strip()
        ends = bool(HEADING.match(line)) if titled else empty
        if (ends or not (blank or titled)) and document:
            yield document, {}
            document = []
        if not empty and not (titled and ANY_HEADING.match(line)):
            document += split_sentences(line)
    if document:
        yield document, {}


def _again(first: dict, rest: Iterator[dict]) -> Iterator[dict]:
    yield first
    yield from rest
