"""Any labelled set of texts: a folder of train, dev and test files, as GLUE, CLUE, SuperGLUE, SQuAD and C3 have them.

Tables (Parquet, CSV, TSV, JSON lines) become examples by their columns, which are recognised by their usual names or
named by the settings; SQuAD's JSON gives `spans`, C3's gives `choices`. A file belongs to the split with whose name it
begins (train; dev, val; test). Of several, the one named exactly so is taken, else the one that ends in `_all`; files
named as unlabelled are left out. Without a train file all rows are cut 80/10/10, without a dev file train is cut 90/10,
by a hash of the row's longest text: rows about one context stay together, and no row ever moves. Rows without an
answer are left out; a control character becomes a space (CoLA and STS-B have some).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from tasks.datasets._examples import CONTROL, SPLITS, conform, rules
from tasks.datasets._rules import Rule

__all__ = ["KIND", "NoExamples", "expectations", "fetch", "read"]

KIND = "examples"
SETTINGS = "columns.json"  # beside the files: what the settings say about them
PREFIXES = {"train": ("train",), "dev": ("dev", "val"), "test": ("test",)}
EXACT = {"train": ("train",), "dev": ("dev", "val", "validation"), "test": ("test",)}
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json")

# Usual names, the first that is there wins: (text, second).
PAIRS = (
    (("word", "sentence1"), ("sentence2",)),  # WiC: which word is meant belongs to the question
    (("sentence1",), ("sentence2",)),
    (("premise",), ("hypothesis",)),
    (("question",), ("passage",)),
    (("text_a",), ("text_b",)),
    (("text",), ("second",)),
)
SINGLES = ("text", "sentence", "text_a", "review", "title", "content", "premise", "question", "Question")
LABELS = ("label", "label_desc", "score", "answer", "Answer", "category", "cat")
CHOICES = (("choice1", "choice2"), ("choice1", "choice2", "choice3", "choice4"), ("A", "B", "C", "D"))


class NoExamples(ValueError):
    """The folder's files are no labelled set, or its columns cannot be told."""


def read(raw: Path) -> pl.LazyFrame:
    """Examples in the columns of `tasks/datasets/_examples.py`.

    Raises:
        NoExamples: no split can be found, a column is missing or cannot be told; says which setting decides it.
    """
    raw = Path(raw)
    chosen = json.loads((raw / SETTINGS).read_text()) if (raw / SETTINGS).is_file() else {}
    licence, files = chosen.pop("licence", "unknown"), chosen.pop("splits", None)
    parts = []
    for split, file in _files(raw, files):
        part = _read_file(file, chosen)
        parts.append(conform(part.with_columns(split=pl.lit(split, pl.String), licence=pl.lit(licence))))
    rows = pl.concat(parts).filter(
        pl.col("label").is_not_null() | pl.col("labels").is_not_null() | pl.col("spans").is_not_null()
    )
    return _split(rows.collect()).lazy()


def expectations() -> list[Rule]:
    """Those of all examples."""
    return rules()


def fetch(
    out: Path,
    source: Path,
    text: str | Sequence[str] | None = None,
    second: str | Sequence[str] | None = None,
    label: str | None = None,
    choices: Sequence[str] | None = None,
    splits: Mapping[str, str] | None = None,
    licence: str = "unknown",
) -> None:
    """Copy the set's files, and write beside them what the settings say.

    Args:
        out: an empty folder.
        source: a file or folder.
        text: column of the text, or several to be joined by spaces; None recognises it. Alike:
        second: the second text's; "" for none.
        label: the answer's; "" for a set to read without answers is refused, as nothing could be learned from it.
        choices: columns of the options.
        splits: {train: file, dev: file, test: file}, names in the folder, where their names do not tell.
        licence: of the texts.

    Raises:
        NoExamples: `splits` names a split or file that is not there.
        OSError: the source is not there.
    """
    from tasks.fetch import copy_files

    copy_files(Path(out), Path(source))
    if unknown := sorted(set(splits or {}) - set(SPLITS)):
        raise NoExamples(f"splits has {', '.join(unknown)}; it takes {', '.join(SPLITS)}")
    if absent := sorted(name for name in (splits or {}).values() if not (Path(out) / name).is_file()):
        raise NoExamples(f"splits names {', '.join(absent)}, which {source} does not have")
    given = {"text": text, "second": second, "label": label, "choices": choices, "splits": splits, "licence": licence}
    told = {name: value for name, value in given.items() if value is not None}
    (Path(out) / SETTINGS).write_text(json.dumps(told, sort_keys=True) + "\n")


# ---------------------------------------------------------------- files and splits


def _files(raw: Path, named: Mapping[str, str] | None) -> list[tuple[str | None, Path]]:
    """(split, file); None where no split is named: all rows are cut by hash."""
    if named:
        return [(split, raw / name) for split, name in sorted(named.items())]
    files = [raw] if raw.is_file() else sorted(p for p in raw.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    files = [p for p in files if p.name != SETTINGS and "unlabel" not in p.stem and "index" not in p.stem]
    found = {split: _one(split, files) for split in SPLITS}
    chosen = [(split, file) for split, file in found.items() if file]
    if found["train"]:
        return chosen
    if chosen:
        return [(None, file) for _, file in chosen]
    if not files:
        raise NoExamples(f"{raw} has no file that ends in {', '.join(SUFFIXES)}")
    return [(None, file) for file in files]


def _one(split: str, files: list[Path]) -> Path | None:
    candidates = [p for p in files if p.stem.lower().startswith(PREFIXES[split])]
    exact = [p for p in candidates if p.stem.lower() in EXACT[split]]
    everything = [p for p in candidates if p.stem.endswith("_all")]
    for kind in (exact, everything, candidates):
        if len(kind) == 1:
            return kind[0]
        if len(kind) > 1:
            raise NoExamples(
                f"{len(kind)} files could be {split}: {', '.join(p.name for p in kind)}; name it in `splits`"
            )
    return None


def _split(rows: pl.DataFrame) -> pl.DataFrame:
    """Cut by hash what no file decided."""
    shares = {None: (80, 90), "train": (90, 100)}
    present = set(rows["split"].unique().to_list())
    moved = None if None in present else ("train" if "dev" not in present else ...)
    if moved is ...:
        return rows
    train, dev = shares[moved]
    context = [max(a, b or "", key=len) for a, b in rows.select("text", "second").iter_rows()]
    place = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100 for text in context]
    cut = ["train" if p < train else "dev" if p < dev else "test" for p in place]
    kept = rows["split"].to_list()
    return rows.with_columns(
        split=pl.Series([new if old == moved else old for new, old in zip(cut, kept, strict=True)])
    )


# ---------------------------------------------------------------- forms


def _read_file(file: Path, chosen: Mapping) -> pl.DataFrame:
    if file.suffix == ".json":
        whole = json.loads(file.read_text(encoding="utf-8-sig"))
        if isinstance(whole, dict) and "data" in whole:
            return pl.DataFrame(list(_squad(whole)), schema_overrides=_TYPES)
        if isinstance(whole, list) and whole and isinstance(whole[0], list):
            return pl.DataFrame(list(_c3(whole)), schema_overrides=_TYPES)
        raise NoExamples(
            f"{file.name} is neither SQuAD's JSON (data, paragraphs, qas) nor C3's ([texts, questions, id])"
        )
    return _columns(_table(file), chosen, file.name)


_TYPES = {"spans": pl.List(pl.Struct({"start": pl.Int64, "text": pl.String})), "choices": pl.List(pl.String)}


def _table(file: Path) -> pl.DataFrame:
    if file.suffix == ".parquet":
        return pl.read_parquet(file)
    if file.suffix == ".jsonl":
        return pl.read_ndjson(file, infer_schema_length=None)
    tab = file.suffix == ".tsv"  # GLUE's TSV files do not quote: a lone quotation mark is a letter
    return pl.read_csv(file, separator="\t" if tab else ",", quote_char=None if tab else '"', infer_schema_length=0)


def _squad(whole: Mapping) -> Iterator[dict]:
    """arXiv:1606.05250; the answers' starts count characters. A wrong start is corrected where the text occurs once."""
    for article in whole["data"]:
        for paragraph in article["paragraphs"]:
            context = paragraph["context"]
            for question in paragraph["qas"]:
                answers = [{"start": _start(context, a), "text": a["text"]} for a in question["answers"]]
                answers = [a for a in answers if a["start"] >= 0]
                if answers or not question["answers"]:
                    yield {"text": question["question"], "second": context, "spans": answers}


def _start(context: str, answer: Mapping) -> int:
    start, text = answer["answer_start"], answer["text"]
    if context[start : start + len(text)] == text and start >= 0:
        return start
    return context.find(text) if context.count(text) == 1 else -1


def _c3(whole: Sequence) -> Iterator[dict]:
    """arXiv:1904.09679: [texts of a dialogue or article, questions, id]."""
    for lines, questions, *_ in whole:
        for one in questions:
            yield {
                "text": one["question"],
                "second": "\n".join(lines),
                "choices": one["choice"],
                "label": str(one["choice"].index(one["answer"])) if "answer" in one else None,
            }


def _columns(table: pl.DataFrame, chosen: Mapping, file: str) -> pl.DataFrame:
    there, listed = table.columns, lambda value: [value] if isinstance(value, str) else list(value)
    text, second = _texts(there)
    options = next((names for names in reversed(CHOICES) if set(names) <= set(there)), None)
    text = listed(chosen["text"]) if "text" in chosen else text
    second = listed(chosen["second"]) if chosen.get("second") else [] if "second" in chosen else second
    options = chosen.get("choices", options)
    if options and "question" in there and "second" not in chosen:
        second = ["question"]
    label = chosen.get("label") or next((name for name in LABELS if name in there), None)
    if "label_desc" in there and "label" not in chosen:
        label = "label_desc"  # a number's name says more than the number
    asked = [*text, *second, *(options or []), *([label] if label else [])]
    if absent := [name for name in asked if name not in there]:
        raise NoExamples(f"{file} has no column {', '.join(absent)}; it has: {', '.join(there)}")
    if not text or not label:
        what = "text" if not text else "label"
        raise NoExamples(
            f"{file}: no column is known as {what} among {', '.join(there)}; name it with `{what}: COLUMN`"
        )
    clean = lambda name: pl.col(name).cast(pl.String).fill_null("").str.replace_all(CONTROL, " ")
    join = lambda names: pl.concat_str([clean(name) for name in names], separator=" ")
    columns = {"text": join(text).str.strip_chars("\ufeff \n\r\t"), "label": _label(table, label, options)}
    columns |= {"second": join(second)} if second else {}
    columns |= {"choices": pl.concat_list(pl.col(name).cast(pl.String) for name in options)} if options else {}
    if "labels" in there and label != "labels":
        columns["labels"] = pl.col("labels")
    return table.select(**columns)


def _texts(there: Sequence[str]) -> tuple[list[str], list[str]]:
    for text, second in PAIRS:
        if {*text, *second} <= set(there):
            return list(text), list(second)
    return [name for name in SINGLES if name in there][:1], []


def _label(table: pl.DataFrame, name: str, options: Sequence[str] | None) -> pl.Expr:
    """The answer as text; a letter or an option's own column name becomes the option's place."""
    label = pl.col(name).cast(pl.String)
    if options:
        places = {str(option): str(place) for place, option in enumerate(options)}
        return label.replace(places)
    return label if table[name].dtype != pl.Boolean else label.str.to_lowercase()
