"""Ingested texts -> streams of tokens, by as many processes as there are cores; the same bytes for any number of them.

A job is a fixed number of rows of one split. Workers read their own rows, so that nothing but numbers passes between
processes, and the results are appended in the order of the rows; few are in flight at a time, so memory does not grow
with the corpus.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl

from tasks.command import run
from tasks.files import new_folder, read_json, write_json
from tasks.ingest_text import STREAMS, TextRejected, listed
from tasks.pieces import Pieces
from tasks.settings import SettingsError
from tasks.shards import Writer
from tasks.tokenizer import Vocabulary

__all__ = ["WorkerDied", "tokens"]

JOB_ROWS = 1024
AHEAD = 2  # jobs in flight for each worker


class WorkerDied(OSError):
    """A process that cut texts was killed."""


def tokens(tokenizer: str | Path, ingested: str | Path, out: str | Path, workers: int = 1) -> dict:
    """Cut the texts of every split of an ingested dataset.

    Args:
        tokenizer: folder of `tasks.tokenizer`.
        ingested: folder of `tasks.ingest`, with texts.
        out: takes <split>/<stream>/ (see `tasks.shards`; for the streams of each kind `tasks.ingest_text.STREAMS`) and
            manifest.json. Document d is the same row in all streams of a split; rows of which a stream has no token are
            left out and counted.
        workers: processes.

    Returns:
        The manifest.

    Raises:
        SettingsError: `workers` is no number from 1 on.
        TextRejected: no texts, or none of them has a token.
        WorkerDied: a worker was killed; nothing was written.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise SettingsError(f"workers is {workers!r}; it must be a number of processes from 1 on")
    source = read_json(Path(ingested) / "manifest.json")
    if source.get("kind") not in STREAMS:
        raise TextRejected(f"{ingested} holds no texts (documents, pairs, instructions or examples)")
    vocabulary = Vocabulary.open(tokenizer)
    facts = {"tokenizer": vocabulary.sha256, "dataset": source["digest"], "kind": source["kind"]}
    manifest = {**facts, "splits": {}, "left_out": 0}
    with new_folder(out) as folder:
        for split in source["rows"]:
            writers = {stream: Writer(folder / split / stream, vocabulary.size) for stream in STREAMS[source["kind"]]}
            path = Path(ingested) / "rows" / f"{split}.parquet"
            for blocks, left_out in _results(str(tokenizer), str(path), source["kind"], workers):
                manifest["left_out"] += left_out
                for writer, block in zip(writers.values(), blocks, strict=True):
                    writer.append(*block)
            manifest["splits"][split] = {
                stream: _counts(writer.close(**facts, split=split, stream=stream)) for stream, writer in writers.items()
            }
        if empty := [
            split for split, streams in manifest["splits"].items() if not all(s["tokens"] for s in streams.values())
        ]:
            raise TextRejected(
                f"{ingested}: no text of {', '.join(empty)} has a token; is the tokenizer for this language?"
            )
        write_json(folder / "manifest.json", manifest)
    return manifest


def _counts(manifest: dict) -> dict:
    return {key: manifest[key] for key in ("tokens", "sentences", "documents", "dtype")}


def _results(tokenizer: str, path: str, kind: str, workers: int) -> Iterator[tuple[list[tuple], int]]:
    """What `_job` makes of the rows of a file, in their order."""
    rows = pl.scan_parquet(path).select(pl.len()).collect().item()
    jobs = ((tokenizer, path, kind, first, JOB_ROWS) for first in range(0, rows, JOB_ROWS))
    # One thread a process: the processes share the cores. Read when a process starts or first cuts a text.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if workers == 1 or rows <= JOB_ROWS:
        yield from (_job(*job) for job in jobs)
        return
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = deque(pool.submit(_job, *job) for job in islice(jobs, AHEAD * workers))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(_job, *job) for job in islice(jobs, 1))
        except BrokenExecutor:
            raise WorkerDied("a worker was killed (out of memory?); nothing was written, try fewer workers") from None


@cache
def _pieces(tokenizer: str) -> Pieces:
    return Pieces(tokenizer)


def _job(tokenizer: str, path: str, kind: str, first: int, rows: int) -> tuple[list[tuple], int]:
    """Blocks for `Writer.append`, one a stream, of some rows of a file, and how many of the rows are left out."""
    columns = [c for columns in STREAMS[kind].values() for c in columns]
    frame = pl.scan_parquet(path).select(columns).slice(first, rows).collect()
    cut = [_block(_pieces(tokenizer), listed(frame, columns)) for columns in STREAMS[kind].values()]
    kept = np.all([counts > 0 for *_, counts in cut], axis=0)
    return [_only(kept, *block) for block in cut], int(len(kept) - kept.sum())


def _block(pieces: Pieces, texts: list[list[str]]) -> tuple[np.ndarray, ...]:
    """ids, words, lengths and counts; sentences without a token are dropped."""
    ids, words, lengths = pieces([text for row in texts for text in row])
    row = np.repeat(np.arange(len(texts)), [len(r) for r in texts])
    there = lengths > 0
    return ids, words, lengths[there], np.bincount(row[there], minlength=len(texts))


def _only(kept: np.ndarray, ids, words, lengths, counts) -> tuple[np.ndarray, ...]:
    if kept.all():
        return ids, words, lengths, counts
    sentences = np.repeat(kept, counts)
    chosen = np.repeat(sentences, lengths)
    return ids[chosen], words[chosen], lengths[sentences], counts[kept]


def main(tokenizer: str, ingested: str, out: str, workers: str = "") -> None:
    """python -m tasks.tokens artifacts/tokenizer artifacts/ingest/corpora artifacts/tokens/corpora [workers]"""
    if workers and not workers.isdigit():
        raise SettingsError(f"workers is {workers!r}; it must be a number of processes from 1 on")
    manifest = tokens(tokenizer, ingested, out, int(workers) if workers else min(4, len(os.sched_getaffinity(0))))
    counts = {split: [f"{s['tokens']:,}" for s in streams.values()] for split, streams in manifest["splits"].items()}
    sizes = [f"{split} {' + '.join(numbers)}" for split, numbers in counts.items()]
    left = f", {manifest['left_out']} rows without a token left out" if manifest["left_out"] else ""
    print(f"{out}: tokens: {', '.join(sizes)}{left}")


if __name__ == "__main__":
    run(main)
