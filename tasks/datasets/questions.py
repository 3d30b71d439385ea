"""Multiple-choice questions of any benchmark in the forms of MMLU, CMMLU, C-Eval and C3, with their subjects.

    tables    Parquet, CSV, TSV and JSON lines: a question, options named A, B, C ... and an answer: a letter, or as the
              hub has it a place from 0 on. MMLU's own CSV files have no header: question, options, answer
    C3        JSON: [texts of a dialogue or article, [{question, choice, answer}, ...], id]

A column `subject` names it, or else the file does, without its split. A file is of the split that its name ends in, or
its folder's: `dev` has the examples that are shown first, `test` is asked. Where `test` has no answers `val` is asked
(C-Eval), or `dev` (C3); a `val` that is not asked is kept as train. Questions that cannot be asked are left out and
counted. When the source is this file, questions about made-up listings are written: a fixture, whose scores say nothing
about what a model knows.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from tasks.datasets import _examples
from tasks.datasets._examples import CONTROL
from tasks.datasets._listings import (
    CATEGORIES,
    COLOURS,
    CONDITIONS,
    LANGUAGES,
    LICENCE,
    Listing,
    check_languages,
    draw,
)
from tasks.datasets._rules import Rule, not_null
from tasks.datasets._text import ABOUT, TextUnreadable, language_of, note, records, stated

__all__ = ["KIND", "NEEDS", "SCHEMA", "expectations", "fetch", "left_out", "read"]

KIND = "examples"
NEEDS = ("test",)  # the split without which nothing can be measured; nothing is learned from a benchmark
SCHEMA = _examples.COLUMNS | {"subject": pl.String, "language": pl.String, "number": pl.Int64}
LETTERS = "ABCDEFGHIJ"
NAMES = {"question": ("question", "text"), "answer": ("answer", "label"), "context": ("context", "passage", "second")}
FILES = (".parquet", ".jsonl", ".csv", ".tsv", ".json")
PLACES = {"dev": "dev", "val": "val", "valid": "val", "validation": "val", "test": "test", "train": "train"}
FIRST = 1 << 33  # number of the first made-up listing: none is in a corpus or among the labelled ones
NO_ANSWER, EMPTY = "questions without an answer", "questions with an empty or a single option"
ASKED = {  # of made-up listings: subject -> question in each language
    "category": {"en": "Which category is it?", "zh": "它属于哪个类别？", "ja": "どのカテゴリーですか。"},
    "thing": {"en": "What is for sale?", "zh": "出售什么？", "ja": "何を売りますか。"},
    "colour": {"en": "What colour is it?", "zh": "它是什么颜色？", "ja": "何色ですか。"},
    "condition": {"en": "In which condition is it?", "zh": "它的状况如何？", "ja": "どんな状態ですか。"},
}


def read(raw: Path) -> pl.LazyFrame:
    """The columns of `tasks/datasets/_examples.py`, then subject, language, and number: the place in its file."""
    return pl.DataFrame(list(_all(Path(raw), Counter())), schema=SCHEMA, orient="row").lazy()


def left_out(raw: Path) -> dict[str, int]:
    """What `read` does not give, by reason."""
    reasons: Counter = Counter()
    for _ in _all(Path(raw), reasons):
        pass
    return dict(reasons)


def expectations() -> list[Rule]:
    """Those of all examples; every question has options, a subject and a language."""
    return [*_examples.rules(), *map(not_null, ("choices", "label", "subject", "language"))]


def fetch(
    out: Path,
    source: Path,
    questions: int = 300,
    seed: int = 7,
    languages: Sequence[str] = ("en", "zh"),
    language: str | dict | None = None,
    licence: str | dict = "unknown",
) -> None:
    """Copy a file or folder, or make `questions` questions when `source` is this file.

    Args:
        out: an empty folder.
        source: questions, or this file.
        questions: to make.
        seed: other listings.
        languages: of those that are made: en, zh, ja.
        language: of the files, where their records do not say it; else guessed from the script of each question.
        licence: of the files, one value or one for each pattern of file names.

    Raises:
        ListingError: a language that made-up listings do not have.
    """
    if note(out, source, __file__, language=language, licence=licence):
        return
    check_languages(languages)
    with (
        open(out / "listings_test.jsonl", "w", encoding="utf-8") as test,
        open(out / "listings_dev.jsonl", "w", encoding="utf-8") as dev,
    ):
        for number in range(questions):
            record = _made(Listing(seed, FIRST + number), languages[number % len(languages)])
            (dev if number % 10 < len(languages) else test).write(json.dumps(record, ensure_ascii=False) + "\n")


def _made(listing: Listing, spoken: str) -> dict:
    place = LANGUAGES.index(spoken)
    subject = list(ASKED)[draw(len(ASKED), listing.seed, listing.number, "subject")]
    if subject == "category":
        right, known = CATEGORIES[listing.category]["names"][place], [c["names"][place] for c in CATEGORIES.values()]
    elif subject == "condition":
        said = (0, 2, 3)[place]
        right, known = listing.condition[said], [condition[said] for condition in CONDITIONS]
    elif subject == "colour":
        right, known = listing.words["colour"][place], [colour.split()[place] for colour in COLOURS]
    else:
        things = (thing for entry in CATEGORIES.values() for thing in entry["things"])
        right, known = listing.words["thing"][place], [thing[place] for thing in things]
    wrong = list(dict.fromkeys(option for option in known if option != right))
    chosen = [wrong.pop(draw(len(wrong), listing.seed, listing.number, "wrong", turn)) for turn in range(3)]
    at = draw(4, listing.seed, listing.number, "place")
    options = [*chosen[:at], right, *chosen[at:]]
    stop, between = (".", " ") if spoken == "en" else ("。", "")
    text = between.join([listing.title(spoken) + stop, *listing.description(spoken)])
    return {
        "question": ASKED[subject][spoken],
        "context": text,
        **dict(zip(LETTERS, options, strict=False)),
        "answer": LETTERS[at],
        "subject": subject,
        "language": spoken,
        "licence": LICENCE,
    }


# ---------------------------------------------------------------- reading


def _all(raw: Path, reasons: Counter) -> Iterator[dict]:
    files = [raw] if raw.is_file() else sorted(p for p in raw.rglob("*") if p.is_file() and p.name[0] != ".")
    files = [p for p in files if p.name != ABOUT and p.suffix in FILES]
    if not files:
        raise TextUnreadable(f"{raw} has no file that ends in {', '.join(FILES)}")
    base = raw if raw.is_dir() else raw.parent
    facts = json.loads((base / ABOUT).read_text(encoding="utf-8")) if (base / ABOUT).is_file() else {}
    answered = {_split(file) for file in files if any(record["answer"] for record in _records(file))}
    asked = next((split for split in ("test", "val", "dev", "train") if split in answered), "test")
    for file in files:
        split = "test" if _split(file) == asked else "train" if _split(file) == "val" else _split(file)
        for number, record in enumerate(_records(file)):
            if not record["answer"]:
                reasons[NO_ANSWER] += 1
            elif len(record["options"]) < 2 or not all(record["options"]):
                reasons[EMPTY] += 1
            else:
                yield _row(record, file.relative_to(base).as_posix(), facts) | {"split": split, "number": number}


def _row(record: dict, file: str, facts: dict) -> dict:
    row = dict.fromkeys(SCHEMA)
    row |= {"text": record["question"], "second": record["context"], "choices": record["options"]}
    row |= {"label": str(record["answer"] - 1), "subject": record["subject"]}
    row["language"] = record["language"] or stated(facts.get("language"), file) or language_of(record["question"])
    return row | {"licence": record["licence"] or stated(facts.get("licence"), file)}


def _split(file: Path) -> str:
    """Of a file's last word, its folder, or its first word; test where none tells."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    found = (PLACES.get(word) for word in (words[-1], file.parent.name.lower(), words[0], *words))
    return next(filter(None, found), "test")


def _records(file: Path) -> Iterator[dict]:
    """question, context, options, answer (from 1 on, or 0), subject, language, licence of every question of a file."""
    subject = re.sub(rf"[_-]({'|'.join(PLACES)})$", "", file.stem, flags=re.IGNORECASE)
    subject = file.parent.name if subject.lower() in PLACES and subject == file.stem else subject
    if file.suffix == ".json":
        yield from _c3(file, subject)
    elif file.suffix == ".csv" and _bare(file):
        with open(file, encoding="utf-8-sig", newline="") as content:
            for fields in csv.reader(content):
                yield _question({"question": fields[0], **dict(zip(LETTERS, fields[1:-1], strict=False)),
                                 "answer": fields[-1]}, file, subject)  # fmt: skip
    else:
        for record in records(file):
            yield _question(record, file, subject)


def _bare(file: Path) -> bool:
    """Whether the first line of a CSV file is a question and no header."""
    with open(file, encoding="utf-8-sig", newline="") as content:
        first = next(csv.reader(content), [])
    return len(first) > 3 and first[-1].strip() in LETTERS[: len(first) - 2] and "A" not in first[:-1]


def _question(record: dict, file: Path, subject: str) -> dict:
    named = {str(key).lower(): key for key in record}
    at = {what: next((named[n] for n in names if n in named), None) for what, names in NAMES.items()}
    if at["question"] is None or at["answer"] is None or "A" not in record:
        raise TextUnreadable(f"{file} has the columns {', '.join(record)}: a question, options A, B ... and an answer "
                             "are needed")  # fmt: skip
    letters = [letter for letter in LETTERS if letter in record]
    options = [_clean(record[letter]) for letter in letters]
    while options and not options[-1]:  # questions with fewer options than the table has columns
        options.pop()
    said = _clean(record[at["answer"]])
    place = letters.index(said) if said in letters else int(said) if said.isdecimal() else len(options)
    return {
        "question": _clean(record[at["question"]]),
        "context": _clean(record[at["context"]]) or None if at["context"] else None,
        "options": options,
        "answer": place + 1 if place < len(options) else 0,
        "subject": record.get("subject") or subject,
        "language": record.get("language"),
        "licence": record.get("licence"),
    }


def _c3(file: Path, subject: str) -> Iterator[dict]:
    """arXiv:1904.09679."""
    try:
        whole = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise TextUnreadable(f"{file}, line {error.lineno}: no JSON ({error.msg})") from None
    if not isinstance(whole, list) or not all(isinstance(one, list) and len(one) >= 2 for one in whole):
        raise TextUnreadable(f"{file} is not of C3's form: a list of [texts, questions, id]")
    for lines, questions, *_ in whole:
        for one in questions:
            options = [_clean(option) for option in one["choice"]]
            answer = _clean(one.get("answer"))
            yield {
                "question": _clean(one["question"]),
                "context": "\n".join(map(_clean, lines)),
                "options": options,
                "answer": options.index(answer) + 1 if answer in options else 0,
                "subject": subject,
                "language": None,
                "licence": None,
            }


def _clean(text) -> str:
    return re.sub(CONTROL, " ", "" if text is None else str(text)).strip("\ufeff \n\r\t")
