"""Any log of users and items: tables with a user and an item a row, or a user's items as a list or a line of text.

Columns are recognised by their usual names or named by the settings; ids are integers or strings and may have gaps.
A list of items (Parquet), or a text file whose lines are a user and then items, gives a row for each, with the place in
the list as its time. Where one file's name begins with train and another's with test (and perhaps val or valid), the
names give the split. Tables without a user or an item, such as items' attributes, are left out.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from tasks.datasets._rules import Rule, at_least_rows, in_set, not_null

__all__ = ["KIND", "NoInteractions", "expectations", "fetch", "left_out", "read"]

KIND = "interactions"
SETTINGS = "columns.json"  # beside the files: what the settings say about them
SPLITS = ("train", "val", "test")
SUFFIXES = (".parquet", ".csv", ".tsv", ".txt")
USUAL = {  # the first that is there wins
    "user": ("user_id", "user", "userid", "uid", "CustomerID", "session"),
    "item": ("item_id", "item", "items", "itemid", "iid", "product_id", "movieId", "StockCode"),
    "time": ("time", "stime", "timestamp", "ts", "event_time", "InvoiceDate"),
    "behaviour": ("behaviour", "behavior", "event_id", "event_type", "event"),
    "split": ("split",),
}


class NoInteractions(ValueError):
    """The folder's files are no log of users and items, or their columns cannot be told."""


def read(raw: Path) -> pl.LazyFrame:
    """user_id and item_id (Int64 or String), time (Int64, see below), behaviour and split (String); null where unknown.

    `time` orders a user's rows: microseconds since 1970 where the log has times of that type, else the log's numbers,
    else the place in a list.

    Raises:
        NoInteractions: no file has both a user and an item, or ids that are neither integers nor strings.
    """
    raw = Path(raw)
    told = json.loads((raw / SETTINGS).read_text()) if (raw / SETTINGS).is_file() else {}
    parts = [_conform(file, frame, told).with_columns(split=split) for file, frame, split in _tables(raw, told)]
    kinds = {name: {part.collect_schema()[name] for part in parts} for name in ("user_id", "item_id")}
    for name, found in kinds.items():
        if len(found) > 1:
            raise NoInteractions(f"{name} is an integer in some files and a string in others; make them alike")
    rows = pl.concat(parts)
    wanted = told.get("behaviours")
    return rows.filter(pl.col("behaviour").is_in(wanted)) if wanted else rows


def left_out(raw: Path) -> dict[str, int]:
    """What read() leaves out."""
    raw = Path(raw)
    told = json.loads((raw / SETTINGS).read_text()) if (raw / SETTINGS).is_file() else {}
    used = len(_tables(raw, told))
    return {"files without users and items": len(_files(raw, None)) - used}


def expectations() -> list[Rule]:
    """Ids in every row, known splits, two rows at least. A pair may be there many times: an item bought again."""
    return [*map(not_null, ("user_id", "item_id")), in_set("split", SPLITS), at_least_rows(2)]


def fetch(
    out: Path,
    source: Path,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    behaviour: str | None = None,
    behaviours: Sequence[str] | None = None,
    splits: Mapping[str, str] | None = None,
    files: Sequence[str] | None = None,
) -> None:
    """Copy the log's files, and write beside them what the settings say.

    Args:
        out: an empty folder.
        source: a file or folder.
        user: the column of the users; None recognises it. Alike:
        item: of the items.
        time: of the times.
        behaviour: of what the user did.
        behaviours: only rows with one of these are read, such as [buy].
        splits: {train: file, val: file, test: file}, where their names do not tell.
        files: only these are read.

    Raises:
        NoInteractions: a setting names a split or file that is not there.
        OSError: the source is not there.
    """
    from tasks.fetch import copy_files

    copy_files(Path(out), Path(source))
    if unknown := sorted(set(splits or {}) - set(SPLITS)):
        raise NoInteractions(f"splits has {', '.join(unknown)}; it takes {', '.join(SPLITS)}")
    named = [*(splits or {}).values(), *(files or [])]
    if absent := sorted(name for name in named if not (Path(out) / name).is_file()):
        raise NoInteractions(f"the settings name {', '.join(absent)}, which {source} does not have")
    given = {"user": user, "item": item, "time": time, "behaviour": behaviour,
             "behaviours": behaviours, "splits": splits, "files": files}  # fmt: skip
    told = {name: value for name, value in given.items() if value is not None}
    (Path(out) / SETTINGS).write_text(json.dumps(told, sort_keys=True) + "\n")


def _files(raw: Path, named: Sequence[str] | None) -> list[Path]:
    if named:
        return [raw / name for name in sorted(named)]
    return [raw] if raw.is_file() else sorted(p for p in raw.rglob("*") if p.suffix in SUFFIXES and p.is_file())


def _tables(raw: Path, told: Mapping) -> list[tuple[Path, pl.LazyFrame, pl.Expr]]:
    """Every file with users and items, opened, and the split that its name gives."""
    splits = {raw / name: split for split, name in told.get("splits", {}).items()}
    opened = [(file, _open(file)) for file in _files(raw, told.get("files") or [*told.get("splits", {}).values()])]
    kept = [(file, frame) for file, frame in opened if _column(frame, "user", told) and _column(frame, "item", told)]
    if not kept:
        columns = "; ".join(f"{file.name}: {', '.join(frame.collect_schema().names())}" for file, frame in opened[:5])
        raise NoInteractions(f"no file of {raw} has a user and an item ({columns or 'no table at all'}); name their "
                             f"columns by the settings `user` and `item`")  # fmt: skip
    if not splits:
        begins = {file: next((s for s in SPLITS if file.stem.startswith(s)), None) for file, _ in kept}
        splits = begins if {"train", "test"} <= set(begins.values()) else {}
    if splits and (odd := [file.name for file, _ in kept if splits.get(file) is None]):
        raise NoInteractions(f"{', '.join(odd)} is of no split, while other files are; set `files` or `splits`")
    return [(file, frame, _split(frame, splits.get(file), told)) for file, frame in kept]


def _split(frame: pl.LazyFrame, named: str | None, told: Mapping) -> pl.Expr:
    column = _column(frame, "split", told)
    return pl.lit(named, pl.String) if named or not column else pl.col("split")


def _open(file: Path) -> pl.LazyFrame:
    if file.suffix == ".parquet":
        return pl.scan_parquet(file)
    if file.suffix in (".csv", ".tsv"):
        return pl.scan_csv(file, separator="\t" if file.suffix == ".tsv" else ",", infer_schema_length=10_000)
    one = {"has_header": False, "separator": "\n", "quote_char": None, "infer_schema": False}
    lines = pl.scan_csv(file, new_columns=["line"], **one)
    words = pl.col("line").str.strip_chars().str.split(" ")
    return lines.select(user=words.list.first(), items=words.list.slice(1)).filter(pl.col("items").list.len() > 0)


def _column(frame: pl.LazyFrame, name: str, told: Mapping) -> str | None:
    there = frame.collect_schema().names()
    return next((column for column in ([told[name]] if told.get(name) else USUAL[name]) if column in there), None)


def _conform(file: Path, frame: pl.LazyFrame, told: Mapping) -> pl.LazyFrame:
    """The columns of read(), the split as the file has it."""
    found = {name: _column(frame, name, told) for name in USUAL}
    schema = frame.collect_schema()
    if schema[found["item"]].base_type() == pl.List:
        lists = frame.with_columns(pl.int_ranges(pl.col(found["item"]).list.len()).alias("place"))
        frame, found["time"] = lists.explode(found["item"], "place"), found["time"] or "place"
        schema = frame.collect_schema()
    columns = [_id(file, schema, found[name]).alias(f"{name}_id") for name in ("user", "item")]
    columns.append(_time(schema, found["time"]).alias("time"))
    for name in ("behaviour", "split"):
        columns.append((pl.col(found[name]).cast(pl.String) if found[name] else pl.lit(None, pl.String)).alias(name))
    return frame.select(columns)


def _id(file: Path, schema: pl.Schema, column: str) -> pl.Expr:
    kind = schema[column]
    if kind.is_integer():
        return pl.col(column).cast(pl.Int64)
    if kind == pl.String:
        return pl.col(column)
    raise NoInteractions(f"{file.name}: {column} is {kind}; ids are integers or strings, cast them")


def _time(schema: pl.Schema, column: str | None) -> pl.Expr:
    if column is None:
        return pl.lit(None, pl.Int64)
    if schema[column].is_temporal():
        return pl.col(column).cast(pl.Datetime("us")).to_physical()
    return pl.col(column).cast(pl.Int64)
