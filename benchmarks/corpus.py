"""How many tokens per second does tasks.tokens write, next to `datasets.map` with the same fast tokenizer?

    python benchmarks/corpus.py CACHE TEXTS...     # the tables, into benchmarks/results/corpus.md

CACHE is a folder outside the repository for what is written; TEXTS are files or folders that tasks/datasets/corpora.py
reads, each measured on its own. Needs the `datasets` package, which nothing else here does. Both get Parquet files of
the same sentences and two cores; ours also finds where words start. Each run is a process of its own, in turn.
Linux only: memory is read from /proc.
"""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

REPEATS, WORKERS, VOCABULARY = 3, 2, 21_128
KINDS = ("wordpiece", "bpe")
SIZES = (2, 4, 8)  # copies of the first texts, for the memory


def main(cache: str, *texts: str) -> None:
    if not texts:
        sys.exit(__doc__)
    cache = Path(cache)
    lines, memory = [], []
    for place, source in enumerate(texts):
        home = prepared(cache / str(place), Path(source))
        for kind in KINDS:
            ours, theirs = [], []
            for _ in range(REPEATS):
                ours.append(measured("ours", home, kind))
                theirs.append(measured("datasets", home, kind))
            assert {run["tokens"] for run in ours + theirs} == {ours[0]["tokens"]}, "not the same tokens"
            lines += [row("/".join(Path(source).parts[-2:]), kind, ours, theirs)]
            print(lines[-1])
    for copies in SIZES:
        run = measured("ours", cache / "0", KINDS[0], copies)
        each = " + ".join(f"{mib:.0f}" for mib in run["peaks"])
        memory.append(f"| {run['tokens']:,} | {run['peak']:.0f} | {each} | {run['seconds']:.1f} |")
        print(memory[-1])
    write(lines, memory)


def prepared(home: Path, source: Path) -> Path:
    """Rows of documents, the same as rows of sentences, and a tokenizer of each kind, trained on them."""
    import polars as pl

    from tasks.datasets import corpora
    from tasks.files import write_json
    from tasks.ingest_text import GROUP_ROWS
    from tasks.tokenizer import make_tokenizer

    shutil.rmtree(home, ignore_errors=True)
    frame = corpora.read(source).collect()
    for copies in (1, *SIZES):
        folder = home / f"rows{copies}"
        (folder / "rows").mkdir(parents=True)
        pl.concat([frame] * copies).write_parquet(folder / "rows/train.parquet", row_group_size=GROUP_ROWS)
        write_json(folder / "manifest.json", {"kind": "documents", "rows": {"train": 0}, "digest": ""})
    frame.select(pl.col("sentences").explode().alias("text")).write_parquet(home / "sentences.parquet")
    for kind in KINDS:
        make_tokenizer({"kind": kind, "vocabulary": VOCABULARY}, [home / "rows1"], home / kind)
    return home


def measured(name: str, home: Path, kind: str, copies: int = 1) -> dict:
    """Run one program in a process of its own.

    peak: the sum of the greatest memory of it and of each of its workers (`peaks`), in MiB, without mapped files; pages
    that several processes share are divided among them.
    """
    import psutil

    words = [sys.executable, __file__, "--run", name, str(home), kind, str(copies)]
    told = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    process, peaks = subprocess.Popen(words, env=told, stdout=subprocess.PIPE, text=True), {}
    while process.poll() is None:
        try:
            known = psutil.Process(process.pid)
            for each in (known, *known.children(recursive=True)):
                peaks[each.pid] = max(peaks.get(each.pid, 0), own_memory(each.pid))
        except (psutil.NoSuchProcess, OSError):
            pass
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{name} ended with {process.returncode}")
    peaks = sorted(peaks.values(), reverse=True)
    return {**json.loads(process.stdout.read().splitlines()[-1]), "peak": sum(peaks), "peaks": peaks}


def own_memory(pid: int) -> float:
    """MiB that no file stands behind."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1024


def ours(home: Path, kind: str, copies: int) -> int:
    from tasks.tokens import tokens

    manifest = tokens(home / kind, home / f"rows{copies}", home / "out", WORKERS)
    return manifest["splits"]["train"]["text"]["tokens"]


def theirs(home: Path, kind: str, copies: int) -> int:
    import datasets
    import numpy as np
    from transformers import AutoTokenizer

    datasets.disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(home / kind)
    read = datasets.load_dataset("parquet", data_files=str(home / "sentences.parquet"), cache_dir=str(home / "hf"))
    cut = lambda batch: tokenizer(
        batch["text"], add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
    )
    done = read["train"].map(cut, batched=True, num_proc=WORKERS, remove_columns=["text"])
    return int(np.sum([len(chunk.values) for chunk in done.data.column("input_ids").chunks]))


def row(source: str, kind: str, ours: list[dict], theirs: list[dict]) -> str:
    speed = [[run["tokens"] / run["seconds"] / 1000 for run in runs] for runs in (ours, theirs)]
    peak = [median(run["peak"] for run in runs) for runs in (ours, theirs)]
    told = [f"{median(s):,.0f} ({min(s):,.0f} to {max(s):,.0f})" for s in speed]
    ratio = median(speed[0]) / median(speed[1])
    work = [f"{median(run['cpu'] for run in runs):.1f}" for runs in (ours, theirs)]
    cells = [source, kind, f"{ours[0]['tokens']:,}", *told, f"{ratio:.2f}", *work, *(f"{mib:.0f}" for mib in peak)]
    return f"| {' | '.join(cells)} |"


def write(lines: list[str], memory: list[str]) -> None:
    from importlib.metadata import version

    names = ("tokenizers", "datasets", "transformers", "polars", "rjieba")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    text = f"""# Corpus preparation against `datasets.map`

    python benchmarks/corpus.py CACHE TEXTS...

{versions}, Python {platform.python_version()};
{WORKERS} processes at most on {len(os.sched_getaffinity(0))} cores shared with other work: read the ratios.
Medians of {REPEATS} runs in turn (least to greatest), from the call to the files on disk, workers' start included,
imports not. The same tokens in both; ours also writes where words start. Tokenizers trained on the same texts,
{VOCABULARY:,} ids at most. CPU: seconds of all processes together. Memory: the greatest of each process, added up,
without mapped files.

| texts | tokenizer | tokens | 1,000 tokens/s | `datasets.map` | ratio | CPU s | theirs | MiB | theirs |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

The first texts {", ".join(map(str, SIZES))} times, ours, wordpiece, one run each:

| tokens | memory, MiB | of each process | seconds |
|---|---|---|---|
{chr(10).join(memory)}
"""
    (REPOSITORY / "benchmarks/results/corpus.md").write_text(text)


def run(name: str, home: str, kind: str, copies: str) -> None:
    import tasks.tokens  # noqa: F401 (imports are not measured)

    if name == "datasets":
        import datasets  # noqa: F401
        import transformers  # noqa: F401
    began, worked = time.perf_counter(), time.process_time()
    count = {"ours": ours, "datasets": theirs}[name](Path(home), kind, int(copies))
    seconds, workers = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() - worked + workers.ru_utime + workers.ru_stime
    print(json.dumps({"tokens": count, "seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
