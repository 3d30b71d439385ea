"""Products with their facts, what authoring begins from: a shop's own table, or made-up listings in two languages.

A table (Parquet, CSV, TSV or JSON lines) has `title` and `category`, a path with " > " between its parts; what stands
in brand, condition, size, colour, material, price, use and language, where there are such columns, are facts. A product
belongs to a split by a hash of its title, so it never moves. When the source is this file, listings are made up.
"""

import hashlib
from pathlib import Path

import polars as pl

from tasks.datasets import listings
from tasks.datasets._examples import conform, rules
from tasks.datasets._rules import Rule
from tasks.datasets._text import TextUnreadable, records
from tasks.files import write_json

__all__ = ["KIND", "expectations", "fetch", "read"]

KIND = "examples"
FACTS = ("language", "brand", "condition", "size", "colour", "material", "price", "use")
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
MADE, NOTE = "examples.parquet", "licence.json"
CUT = (80, 90)  # percent of the products in train, and in train and dev


def read(raw: Path) -> pl.LazyFrame:
    """Examples: text is the title, second a fact a line, label the category.

    Raises:
        TextUnreadable: no table, or one without title or category; says what it has.
    """
    raw = Path(raw)
    if (raw / MADE).is_file():
        return conform(pl.scan_parquet(raw / MADE))
    files = sorted(path for path in raw.rglob("*") if path.suffix in SUFFIXES)
    if not files:
        raise TextUnreadable(f"{raw} holds no table; a catalogue is Parquet, CSV, TSV or JSON lines")
    licence = pl.read_json(raw / NOTE)["licence"].item() if (raw / NOTE).is_file() else "unknown"
    rows = [row for path in files for row in _products(path)]
    return conform(pl.DataFrame(rows, schema=["text", "second", "label", "split"], orient="row").with_columns(
        licence=pl.lit(licence)))  # fmt: skip


def expectations() -> list[Rule]:
    """Those of all examples."""
    return rules()


def fetch(
    out: Path, source: Path, rows: int = 2000, seed: int = 7, language: str = "en+zh", licence: str = "unknown"
) -> None:
    """Copy a table or a folder of them, or make `rows` products when `source` is this file.

    Args:
        out: an empty folder.
        source: a table, a folder, or this file.
        rows, seed: of made-up products.
        language: en, zh or ja, or several, such as en+zh; of made-up products.
        licence: of the table's texts.

    Raises:
        FileNotFoundError: no such table.
    """
    source, out = Path(source), Path(out)
    if source.resolve() == Path(__file__).resolve():
        listings.fetch(out, source, rows, seed, "catalogue", language)
        return
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.suffix in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{source} is no table and holds none; a catalogue is {', '.join(SUFFIXES)}")
    for path in files:
        (out / path.name).write_bytes(path.read_bytes())
    write_json(out / NOTE, {"licence": licence})


def _products(path: Path) -> list[tuple[str, str, str, str]]:
    found = []
    for row in records(path):
        if missing := [name for name in ("title", "category") if name not in row]:
            raise TextUnreadable(f"{path} has no column {' and '.join(missing)}; it has {', '.join(row)}")
        title, category = (str(row[name] or "").strip() for name in ("title", "category"))
        if title and category:
            facts = "\n".join(f"{name}: {row[name]}" for name in FACTS if row.get(name) not in (None, ""))
            found.append((title, facts or None, category, _split(title)))
    return found


def _split(title: str) -> str:
    place = int(hashlib.sha256(title.encode()).hexdigest(), 16) % 100
    return "train" if place < CUT[0] else "dev" if place < CUT[1] else "test"
