"""Ingested texts -> streams of tokens, by as many processes as there are cores; the same bytes for any number of them.

A job is a fixed number of rows of one split. Workers read their own rows, so that nothing but numbers passes between
processes, and the results are appended in the order of the rows; few are in flight at a time, so memory does not grow
with the corpus.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl

from tasks.command import run
from tasks.files import new_folder, read_json, write_json
from tasks.ingest_text import STREAMS, TextRejected, listed
from tasks.pieces import Pieces
from tasks.progress import progress
from tasks.settings import SettingsError
from tasks.shards import Writer
from tasks.tokenizer import Vocabulary

__all__ = ["WorkerDied", "tokens"]

JOB_ROWS = 1024
WORTH = 8_000_000  # bytes of files for which another process is started: some seconds of work, its start costs one half
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
        workers: processes at most; small texts are done sooner by one with as many threads.

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
    paths = {split: Path(ingested) / "rows" / f"{split}.parquet" for split in source["rows"]}
    processes = min(workers, 1 + sum(path.stat().st_size for path in paths.values()) // WORTH)
    with new_folder(out) as folder, _started(processes, workers) as pool:
        for split, path in paths.items():
            writers = {stream: Writer(folder / split / stream, vocabulary.size) for stream in STREAMS[source["kind"]]}
            rows = pl.scan_parquet(path).select(pl.len()).collect().item()
            job = partial(_job, str(tokenizer), str(path), source["kind"], JOB_ROWS)
            with progress(rows, f"tokens of {split}", "text") as bar:
                for blocks, left_out in _results(pool, processes, job, rows):
                    manifest["left_out"] += left_out
                    for writer, block in zip(writers.values(), blocks, strict=True):
                        writer.append(*block)
                    bar.update(min(JOB_ROWS, rows - bar.n))
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


def _started(processes: int, threads: int) -> AbstractContextManager[Executor | None]:
    """A pool, or None where one process does: then the library's threads share the work."""
    alone = processes == 1
    # Read when a process starts or first cuts a text. Several processes have a thread each: they share the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if alone and threads > 1 else "false")
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    if alone:
        return nullcontext()
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def _results(pool: Executor | None, workers: int, job: Callable, rows: int) -> Iterator[tuple[list[tuple], int]]:
    """What `job` makes of the rows first .. first + JOB_ROWS - 1 for each first, in their order."""
    firsts = iter(range(0, rows, JOB_ROWS))
    if pool is None:
        yield from map(job, firsts)
        return
    waiting = deque(pool.submit(job, first) for first in islice(firsts, AHEAD * workers))
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(job, first) for first in islice(firsts, 1))
    except BrokenExecutor:
        raise WorkerDied("a worker was killed (out of memory?); nothing was written, try fewer workers") from None


@cache
def _pieces(tokenizer: str) -> Pieces:
    return Pieces(tokenizer)


def _job(tokenizer: str, path: str, kind: str, rows: int, first: int) -> tuple[list[tuple], int]:
    """Blocks for `Writer.append`, one a stream, of some rows of a file, and how many of the rows are left out."""
    columns = [c for columns in STREAMS[kind].values() for c in columns]
    frame = pl.scan_parquet(path).select(columns).slice(first, rows).collect()
    cut = [_block(_pieces(tokenizer), listed(frame, columns)) for columns in STREAMS[kind].values()]
    kept = np.all([counts > 0 for *_, counts in cut], axis=0)
    return [_only(kept, *block) for block in cut], int(len(kept) - kept.sum())


def _block(pieces: Pieces, texts: pl.Series) -> tuple[np.ndarray, ...]:
    """ids, words, lengths and counts; sentences without a token are dropped."""
    ids, words, lengths = pieces(texts.explode().drop_nulls())
    row = np.repeat(np.arange(len(texts)), texts.list.len().to_numpy())
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
