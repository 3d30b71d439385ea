"""What text datasets share: reading files of any of the usual forms, cutting sentences, and the rules that texts keep.

Files are read row by row, decoded strictly: a byte that is no UTF-8 is refused with its file and line. A language that
nobody states is guessed from the script (Latin counts as English): cheap, and all that the rules can judge.
"""

import csv
import gzip
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import polars as pl

from tasks.datasets._rules import Rule, at_least_rows, never

__all__ = [
    "ABOUT",
    "SCRIPTS",
    "TextUnreadable",
    "language_of",
    "licence_of",
    "note",
    "of_the_sample",
    "records",
    "rules",
    "scan",
    "split_sentences",
    "stated",
]

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt")
ABOUT = "about.json"  # written by fetch: language and licence of files that do not state their own
BATCH = 1024  # rows of a frame
SCRIPTS = {  # language -> its letters; a language that is not listed is not judged
    "en": r"\p{Latin}",
    "de": r"\p{Latin}",
    "fr": r"\p{Latin}",
    "es": r"\p{Latin}",
    "it": r"\p{Latin}",
    "pt": r"\p{Latin}",
    "zh": r"\p{Han}",
    "ja": r"[\p{Han}\p{Hiragana}\p{Katakana}]",
    "ko": r"[\p{Hangul}\p{Han}]",
    "ru": r"\p{Cyrillic}",
}
LETTERS = r"[\p{L}]"
CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"  # tabs and line ends are not among them
MISREAD = r"[\x80-\x9f\x{fffd}]"  # Windows' quotes read as Latin-1, and what stands for a byte that was no text
GUESSES = (  # in this order: Japanese has Han letters too
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("zh", re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
)
LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
# A sentence ends at . ! ? with what closes it, before a space; CJK marks need no space. An ellipsis ends none.
BORDER = re.compile(
    r"(?:(?<!\.)\.|[!?])[\"'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f]+[\u201d\u2019\u300d\u300f\uff09]*|[\r\n]+"
)


class TextUnreadable(ValueError):
    """A file is no text, or not of the form that its name says."""


def note(out: Path, source: Path, module: str, **facts) -> bool:
    """Copy the files of `source` to the folder `out`, and the facts that are given beside them as about.json.

    Returns:
        False when `source` is the module's own file: then nothing was copied, and the module makes its texts.
    """
    if Path(source).resolve() == Path(module).resolve():
        return False
    from tasks.fetch import copy_files  # which imports the modules of datasets by name

    copy_files(Path(out), Path(source))
    if given := {key: value for key, value in facts.items() if value is not None}:
        (Path(out) / ABOUT).write_text(json.dumps(given, ensure_ascii=False) + "\n", encoding="utf-8")
    return True


def of_the_sample(source: Path) -> bool:
    """Whether a source is the synthetic marketplace, whose listings are then written."""
    return Path(source).resolve() == Path(__file__).with_name("sample.py").resolve()


def stated(value, file: str) -> str | None:
    """A setting for a file: the value itself, or that of the first pattern its path matches."""
    if not isinstance(value, Mapping):
        return value
    return next(
        (v for pattern, v in value.items() if fnmatch(file, pattern) or fnmatch(Path(file).stem, pattern)), None
    )


def licence_of(record: dict, facts: dict, file: str) -> str | None:
    """The licence that a record states, else its file's."""
    return record.get("licence") or record.get("license") or stated(facts.get("licence"), file)


def language_of(text: str) -> str:
    """en, zh, ja, ko or ru by the script of the first thousand characters; und where there is no letter."""
    text = text[:1000]
    counts = {name: len(pattern.findall(text)) for name, pattern in GUESSES}
    if counts["ja"] * 10 > counts["zh"] and counts["ja"]:
        counts["ja"] += counts.pop("zh")
    # a Latin word has about five letters where a Han word has two
    counts["en"] = len(LATIN.findall(text)) / 2
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else "und"


def split_sentences(text: str) -> list[str]:
    """Cut a paragraph at sentence ends and line ends; what lies between is kept as it is, but for outer spaces."""
    found, begin = [], 0
    for match in BORDER.finditer(text):
        found.append(text[begin : match.end()])
        begin = match.end()
    return [s for sentence in (*found, text[begin:]) if (s := sentence.strip())]


def scan(raw: Path, schema: dict, rows: Callable[[Path, str, dict], Iterator[dict]]) -> pl.LazyFrame:
    """A lazy frame of what `rows(path, relative name, facts)` yields for every file below `raw`, a batch at a time.

    Raises:
        TextUnreadable: no file of a known form.
    """
    raw = Path(raw)
    files = [raw] if raw.is_file() else sorted(p for p in raw.rglob("*") if p.is_file() and p.name[0] != ".")
    files = [p for p in files if p.name != ABOUT and _form(p)]
    if not files:
        raise TextUnreadable(f"{raw} has no file that ends in {', '.join(SUFFIXES)} (or these with .gz)")
    base = raw if raw.is_dir() else raw.parent
    facts = json.loads((base / ABOUT).read_text(encoding="utf-8")) if (base / ABOUT).is_file() else {}

    def source(columns, predicate, limit, batch_size) -> Iterator[pl.DataFrame]:
        for frame in _frames(files, base, facts, schema, rows):
            frame = frame if columns is None else frame.select(columns)
            frame = frame if predicate is None else frame.filter(predicate)
            if limit is not None:
                frame = frame.head(limit)
                limit -= len(frame)
            yield frame
            if limit == 0:
                return

    return pl.io.plugins.register_io_source(source, schema=schema, is_pure=True)


def _frames(files, base, facts, schema, rows) -> Iterator[pl.DataFrame]:
    waiting = []
    for path in files:
        for row in rows(path, path.relative_to(base).as_posix(), facts):
            waiting.append(row)
            if len(waiting) == BATCH:
                yield pl.DataFrame(waiting, schema=schema, orient="row")
                waiting = []
    if waiting:
        yield pl.DataFrame(waiting, schema=schema, orient="row")


def records(path: Path) -> Iterator[dict]:
    """The records of a file: columns by name; a line of plain text is {"line": ...}.

    Raises:
        TextUnreadable: it is not UTF-8, or not of the form that its name says; names file and line.
    """
    form = _form(path)
    if form == ".parquet":
        yield from _parquet(path)
    elif form == ".txt":
        for _, line in _lines(path):
            yield {"line": line}
    elif form == ".jsonl":
        for number, line in _lines(path):
            if line.strip():
                yield _object(path, number, line)
    elif form == ".json":
        content = "\n".join(line for _, line in _lines(path))
        yield from _objects(path, content)
    else:
        csv.field_size_limit(sys.maxsize)
        reader = csv.DictReader((line + "\n" for _, line in _lines(path)), delimiter="\t" if form == ".tsv" else ",")
        for record in reader:
            if None in record or None in record.values():
                raise TextUnreadable(f"{path}, line {reader.line_num}: not as many fields as the header has names")
            yield record


def _form(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _parquet(path: Path) -> Iterator[dict]:
    frame = pl.scan_parquet(path)
    for first in range(0, frame.select(pl.len()).collect().item(), BATCH):
        yield from frame.slice(first, BATCH).collect().iter_rows(named=True)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1; the last one counts whether or not it ends."""
    with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
                raise TextUnreadable(f"{path}, line {number}: not UTF-8 ({found}); convert the file") from None
            yield number, text.rstrip("\r\n")


def _object(path: Path, number: int, line: str) -> dict:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise TextUnreadable(f"{path}, line {number}: no JSON ({error.msg})") from None
    if not isinstance(value, dict):
        raise TextUnreadable(f"{path}, line {number}: a JSON object was expected, not {type(value).__name__}")
    return value


def _objects(path: Path, content: str) -> Iterator[dict]:
    """A list of objects, or {"data": [...]}."""
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise TextUnreadable(f"{path}, line {error.lineno}: no JSON ({error.msg})") from None
    value = value.get("data") if isinstance(value, dict) else value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise TextUnreadable(f"{path}: a list of JSON objects was expected")
    yield from value


# ---------------------------------------------------------------- rules


def rules(columns: Mapping[str, str], least: int = 2, longest: int = 1_000_000, duplicates: float = 0.1) -> list[Rule]:
    """The rules that every text dataset keeps.

    Args:
        columns: text column (a string, or a list of sentences) -> the column that names its language.
        least: rows.
        longest: characters of a text.
        duplicates: share of the rows that may repeat another's texts.
    """
    texts = {column: joined(column, column == "sentences") for column in columns}
    found = [replace(at_least_rows(least), text=f"there are {least} texts or more"), *present_licence()]
    for column, language in columns.items():
        text = texts[column]
        found += [
            never(f"{column} not empty", f"{column} has text", ~(text.str.contains(r"\S").fill_null(False)), column),
            never(
                f"{column} length",
                f"{column} has at most {longest:,} characters",
                text.str.len_chars() > longest,
                column,
            ),
            *no_control(column, text),
            misread(column, text),
            in_script(column, language, text),
        ]
    whole = pl.concat_str([text.fill_null("") for text in texts.values()], separator="\x1f")
    found.append(
        Rule(
            name="duplicates",
            text=f"at most {100 * duplicates:.4g} % of the rows repeat the texts of another",
            columns=tuple(columns),
            measure=1 - whole.hash(seed=0).n_unique() / pl.len(),
            high=duplicates,
        )
    )
    return found


def joined(column: str, listed: bool) -> pl.Expr:
    """A column's text: the sentences of a list are joined by line ends."""
    return pl.col(column).list.join("\n") if listed else pl.col(column)


def present_licence() -> list[Rule]:
    """Every row says under which licence it came."""
    empty = ~pl.col("licence").str.contains(r"\S").fill_null(False)
    name, text = "licence", "every row names its licence (`licence` of the dataset, or a column of the files)"
    return [Rule(name, text, ("licence",), measure=empty.sum(), offending=empty, required=True)]


def no_control(column: str, text: pl.Expr, most: float = 0.001) -> list[Rule]:
    """Hardly a text has control characters, and those that do are named."""
    found = text.str.contains(CONTROL)
    said = f"at most {100 * most:.4g} % of {column} has control characters"
    any_at_all = never(f"{column} control seen", f"{column} has no control characters", found, column)
    limit = Rule(f"{column} control", said, (column,), measure=found.mean(), high=most, offending=found)
    return [limit, any_at_all.as_warning()]


def misread(column: str, text: pl.Expr, most: float = 0.1) -> Rule:
    """Few texts were decoded wrongly somewhere before."""
    found = text.str.contains(MISREAD)
    return Rule(
        name=f"{column} misread",
        text=f"at most {100 * most:.4g} % of {column} has signs of a wrong decoding (U+0080 to U+009F, U+FFFD)",
        columns=(column,),
        measure=found.mean(),
        high=most,
        offending=found,
    )


def in_script(column: str, language: str, text: pl.Expr, most: float = 0.05) -> Rule:
    """Texts are written in the letters of their language; a few quotations of another are let through."""
    letters, wrong = text.str.count_matches(LETTERS), pl.lit(False)
    for name, script in SCRIPTS.items():
        foreign = text.str.count_matches(script) * 2 < letters
        wrong = pl.when(pl.col(language) == name).then(foreign).otherwise(wrong)
    return Rule(
        name=f"{column} in its language",
        text=f"at most {100 * most:.4g} % of {column} has mostly letters of another script than its {language}",
        columns=(column, language),
        measure=wrong.mean(),
        high=most,
        offending=wrong,
    )
