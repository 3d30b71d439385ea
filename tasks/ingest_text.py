"""Texts -> rows in the order of their hashes, without duplicates, a fixed share held out; or nothing.

    sieve    filters of a data set's own, if it has any (tasks/text_filters.py), drop texts and count them
    spill    one scan hashes every row's text (BLAKE2b, 128 bits) and moves the row to its bucket, a range of hashes
    arrange  bucket by bucket: sort by hash, drop duplicates, mark the split, write

The order is that of the hashes: it depends neither on the order of rows nor on how they are cut into files, and mixes
the sources. A text is held out by its own hash, so it stays where it is when others come or go. A bucket fits in memory
(16 MB of raw files, up to 128 buckets; beyond, buckets grow), and no more than one is there at a time.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from tasks.files import digest, new_folder, read_json, write_json
from tasks.settings import SettingsError

__all__ = ["HELDOUT", "STREAMS", "TextRejected", "batches", "count", "ingest_text", "listed", "sentences"]

STREAMS = {  # kind -> stream of tokens -> columns whose texts are its sentences
    "documents": {"text": ("sentences",)},
    "pairs": {"source": ("source",), "target": ("target",)},
    "instructions": {"prompt": ("instruction", "input"), "response": ("output",)},
    "examples": {"text": ("text", "second")},
}
HELDOUT = 0.05  # of the texts, where a dataset does not say
SPLITS = ("test", "dev", "train")  # of examples: a text stays in the first that has it
BUCKET_BYTES, BUCKETS = 16_000_000, 128
GROUP_ROWS = 1024  # fixed, or the same rows would not give the same bytes
SPILL_BYTES = 64_000_000  # rows are kept until they are as many, then written to their buckets
BATCH_ROWS = 1024  # a row group: what is read at a time is decoded once


class TextRejected(ValueError):
    """The texts cannot be used: unreadable, too few, or of a wrong shape."""


def ingest_text(
    kind: str,
    rows: pl.LazyFrame,
    raw_bytes: int,
    out: str | Path,
    heldout: float = HELDOUT,
    filters: Mapping[str, Mapping | None] | None = None,
    needs: Sequence[str] | None = None,
) -> dict:
    """Write rows/<split>.parquet and manifest.json to the folder `out`, whole or not at all.

    Args:
        kind: documents, pairs, instructions or examples; see STREAMS for the columns that hold their texts.
        rows: what the dataset's read() gives.
        raw_bytes: size of the raw files, from which the number of buckets follows.
        out: takes train and heldout; examples keep their own train, dev and test, and a text of a later split leaves
            the earlier ones.
        heldout: share of the texts, by hash.
        filters: of languages and quality, see tasks/text_filters.py; without any, every text that is read is kept.
        needs: splits that must have rows; None for train, and for what is held out by hash.

    Returns:
        The manifest: kind, columns, rows by split, rows_in, duplicates_removed, overlaps_removed, languages,
        licences, digest; under filters also what they dropped.

    Raises:
        TextRejected: a file cannot be read, or a split would have no rows.
        SettingsError: `heldout` is no share, or the filters cannot be made.
    """
    if kind not in STREAMS:
        raise SettingsError(f"KIND is {kind!r}; it is one of {', '.join(STREAMS)}")
    if isinstance(heldout, bool) or not isinstance(heldout, (int, float)) or not 0 < heldout < 1:
        raise SettingsError(f"heldout is {heldout!r}; it is the share of texts that is held out, e.g. {HELDOUT}")
    sieve = None
    if filters:
        from tasks.text_filters import Filters  # whose libraries nobody else waits for

        sieve = Filters(kind, filters)
    buckets = min(BUCKETS, math.ceil(raw_bytes / BUCKET_BYTES) or 1)
    with new_folder(out) as folder:
        spill, rows_in = folder / ".spill", 0
        try:
            columns = rows.collect_schema().names()
            _spill(rows, kind, buckets, spill, sieve)
        except pl.exceptions.PolarsError as error:
            raise TextRejected(f"the texts cannot be read; nothing was written: {_reason(error)}") from None
        facts: dict[str, Counter] = {name: Counter() for name in ("rows", "languages", "licences", "removed")}
        for bucket in sorted(spill.glob("*")):
            frame = pl.read_parquet(bucket / "*.parquet")
            rows_in += len(frame)
            for split, part in _arranged(frame, kind, heldout, facts["removed"]).items():
                count(part, split, facts)
                _write(part.select(columns), folder / ".parts" / split / f"{bucket.name}.parquet")
            _remove(bucket)
        rows_in += sum(sieve.dropped.values()) if sieve else 0
        _refuse_empty(kind, facts["rows"], rows_in, needs, sieve)
        for split in facts["rows"]:
            (folder / "rows").mkdir(exist_ok=True)
            pl.scan_parquet(sorted((folder / ".parts" / split).iterdir())).sink_parquet(
                folder / "rows" / f"{split}.parquet", row_group_size=GROUP_ROWS, compression="zstd", compression_level=3
            )
        for left in (spill, folder / ".parts"):
            _remove(left)
        manifest = {
            "kind": kind,
            "columns": columns,
            "rows": dict(facts["rows"]),
            "rows_in": rows_in,
            "duplicates_removed": facts["removed"]["duplicates"],
            "overlaps_removed": facts["removed"]["overlaps"],
            "languages": dict(facts["languages"]),
            "licences": dict(facts["licences"]),
            "settings": {"heldout": heldout} if kind != "examples" else {},
            **({"filters": sieve.report} if sieve else {}),
            "digest": digest(folder),
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


def batches(folder: str | Path, split: str, rows: int = BATCH_ROWS) -> Iterator[pl.DataFrame]:
    """The rows of a split of an ingested folder, in order, so many at a time.

    Raises:
        TextRejected: the folder has no such split.
    """
    path = Path(folder) / "rows" / f"{split}.parquet"
    if not path.is_file():
        raise TextRejected(f"{path} does not exist; run the ingest stage")
    frame = pl.scan_parquet(path)
    for first in range(0, frame.select(pl.len()).collect().item(), rows):
        yield frame.slice(first, rows).collect()


def sentences(folder: str | Path, split: str) -> Iterator[str]:
    """Every text of a split, stream by stream within a batch of rows."""
    kind = read_json(Path(folder) / "manifest.json")["kind"]
    for frame in batches(folder, split):
        for columns in STREAMS[kind].values():
            yield from listed(frame, columns).explode().drop_nulls()


def listed(frame: pl.DataFrame, columns: tuple[str, ...]) -> pl.Series:
    """Each row's texts in these columns, in order, as a list; empty and null ones are left out."""
    lists = [pl.col(c).fill_null([]) if frame[c].dtype == pl.List else pl.col(c).cast(pl.String) for c in columns]
    joined = frame.select(pl.concat_list(lists).cast(pl.List(pl.String))).to_series()
    return joined.list.eval(pl.element().filter(pl.element() != ""))


def _spill(rows: pl.LazyFrame, kind: str, buckets: int, spill: Path, sieve) -> None:
    """Write spill/<bucket>/: all rows whose hash lies in the bucket's range, with .key and .row."""
    texts = [c for columns in STREAMS[kind].values() for c in columns if c in rows.collect_schema().names()]

    def hashed(row: pl.Series) -> pl.Series:
        keys = [[_hash({c: r[c] for c in texts}), _hash({c: v for c, v in r.items() if c != "split"})] for r in row]
        return pl.Series(
            [{".key": key, ".row": whole, ".bucket": int.from_bytes(key[:4]) * buckets >> 32} for key, whole in keys],
            dtype=HASHES,
        )

    made = pl.struct(pl.all()).map_batches(hashed, return_dtype=HASHES, is_elementwise=True)
    # polars' own sink of partitions keeps more and more of the rows in memory
    held, size, part = [], 0, 0
    for read in rows.collect_batches(chunk_size=BATCH_ROWS, maintain_order=False):
        kept = sieve(read) if sieve else read  # before it is hashed: a row may get another language
        frame = kept.with_columns(made.alias(".made")).unnest(".made")
        held, size = [*held, frame], size + frame.estimated_size()
        if size > SPILL_BYTES:
            _flush(held, spill, part)
            held, size, part = [], 0, part + 1
    _flush(held, spill, part)


def _flush(frames: list[pl.DataFrame], spill: Path, part: int) -> None:
    """Add a file to every bucket that has rows among these."""
    if not frames:
        return
    for (bucket,), frame in pl.concat(frames).partition_by(".bucket", include_key=False, as_dict=True).items():
        path = spill / f"{bucket:03d}" / f"{part}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path, compression="lz4")


HASHES = pl.Struct({".key": pl.Binary, ".row": pl.Binary, ".bucket": pl.UInt16})


def _hash(value: dict) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _arranged(frame: pl.DataFrame, kind: str, heldout: float, removed: Counter) -> dict[str, pl.DataFrame]:
    """The rows of a bucket by split, sorted by hash, without duplicates; counts what it removes."""
    frame = frame.sort(".key", ".row")
    if kind != "examples":
        kept = frame.unique(".key", keep="first", maintain_order=True)
        removed["duplicates"] += len(frame) - len(kept)
        border = math.ceil(heldout * 2**32)
        held = pl.Series([int.from_bytes(key[-4:]) < border for key in kept[".key"]], dtype=pl.Boolean)
        return {"train": kept.filter(~held), "heldout": kept.filter(held)}
    kept = frame.unique([".key", ".row", "split"], keep="first", maintain_order=True)
    removed["duplicates"] += len(frame) - len(kept)
    rank = (
        pl.col("split").cast(pl.String).replace_strict({name: i for i, name in enumerate(SPLITS)}, return_dtype=pl.Int8)
    )
    alone = kept.filter(rank == rank.min().over(".key"))
    removed["overlaps"] += len(kept) - len(alone)
    return {name: alone.filter(pl.col("split").cast(pl.String) == name) for name in reversed(SPLITS)}


def count(part: pl.DataFrame, split: str, facts: dict[str, Counter]) -> None:
    """Add a part of a split to the manifest's rows, languages and licences."""
    if not len(part):
        return
    facts["rows"][split] += len(part)
    for name, columns in {
        "languages": ("language", "source_language", "target_language"),
        "licences": ("licence",),
    }.items():
        for column in (c for c in columns if c in part.columns):
            facts[name].update(part[column].cast(pl.String).fill_null("null").to_list())


def _refuse_empty(kind: str, rows: Counter, rows_in: int, needs: Sequence[str] | None, sieve) -> None:
    wanted = needs or (("train",) if kind == "examples" else ("train", "heldout"))
    if empty := [split for split in wanted if not rows[split]]:
        dropped = "".join(
            f"; filters dropped {n:,} ({reason})" for reason, n in (sieve.dropped if sieve else {}).items()
        )
        raise TextRejected(
            f"{rows_in} rows leave {' and '.join(empty)} without any; nothing was written: bring more texts, or raise "
            f"the dataset's `heldout`{dropped}"
        )


def _reason(error: Exception) -> str:
    return str(error).split("\n\n")[0]


def _write(frame: pl.DataFrame, path: Path) -> None:
    if len(frame):
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.rechunk().write_parquet(path, compression="lz4", row_group_size=GROUP_ROWS)


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
