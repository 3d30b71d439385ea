"""Near duplicates leave the training texts: those of one another, of any held-out text, and of every benchmark.

    python -m tasks.near params.yaml:language.near artifacts/ingest OUT

with near: {train: {data: [corpora, parallel]}, benchmarks: {data: [mmlu]}}, and what tasks/shingles.py calls Likeness.
Benchmarks and held-out texts are protected: they stay, and a training text that repeats one, or that has one inside
it, goes. Of training texts that are alike the first stays, in the order of the sets and of their rows. Every removed
row is named, with what it repeats and how much of it. How two texts are compared: tasks/shingles.py.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tasks.command import run
from tasks.files import digest, new_folder, read_json, write_json
from tasks.ingest_text import GROUP_ROWS, STREAMS, TextRejected, batches, count
from tasks.progress import counted
from tasks.settings import SettingsError, read
from tasks.shingles import Likeness, Runs, Seen, units, words

__all__ = ["Verdict", "leaks", "near"]

SHORT = 16  # units: input and answer of fewer may well be those of another instruction
SHOWN = 200  # characters of a text that a report names
VERDICTS = {"set": pl.String, "split": pl.String, "row": pl.Int64, "text": pl.String, "how": pl.String,
            "share": pl.Float64, "of": pl.String, "of_split": pl.String, "of_row": pl.Int64,
            "of_text": pl.String}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A text of a data set, by its place."""

    set: str
    split: str
    row: int
    text: str  # its beginning
    protected: bool


@dataclass(frozen=True)
class Verdict:
    """A training text that repeats another text, and which."""

    what: Text
    how: str  # near: alike as a whole; inside: the other lies within this one
    share: float  # Jaccard similarity, or share of the other's runs
    of: Text

    def row(self) -> dict:
        """As a row of removed.parquet."""
        what, of = asdict(self.what), asdict(self.of)
        return {name: what[name] for name in ("set", "split", "row", "text")} | {
            "how": self.how, "share": self.share, "of": of["set"], "of_split": of["split"], "of_row": of["row"],
            "of_text": of["text"],
        }  # fmt: skip


def near(
    train: Mapping[str, str | Path],
    benchmarks: Mapping[str, str | Path],
    out: str | Path,
    like: Likeness | None = None,
) -> dict:
    """Write every training set without near duplicates, as ingestion wrote it: `out`/<set>/rows and manifest.json.

    Args:
        train: name -> folder of ingested documents, pairs, instructions or examples, in the order in which they count.
        benchmarks: name -> folder of ingested examples, or of other texts that nothing may be learned from.
        out: takes besides report.json and removed.parquet: set, split, row and text of what was removed, how (near,
            inside), share, and the same of what it repeats.
        like: when texts count as the same.

    Returns:
        The report: rows of each set before and after, what was removed by reason, benchmark items found by benchmark.

    Raises:
        TextRejected: a folder was not ingested; a set would have no training rows left.
        SettingsError: a set that is both.
    """
    if both := sorted(set(train) & set(benchmarks)):
        raise SettingsError(f"{', '.join(both)} is both a training set and a benchmark; nothing would be left of it")
    like = like or Likeness()
    seen, runs, too_short = _protected(train, benchmarks, like)
    removed: dict[str, list[Verdict]] = {name: [] for name in train}
    for verdict in _verdicts(train, seen, runs, among=True):
        removed[verdict.what.set].append(verdict)
    with new_folder(out) as folder:
        report = {
            "likeness": asdict(like),
            "sets": {name: _write(name, Path(train[name]), removed[name], folder / name) for name in train},
            "benchmarks": _found(benchmarks, [v for found in removed.values() for v in found]),
            "too_short": too_short,
        }
        rows = [verdict.row() for found in removed.values() for verdict in found]
        pl.DataFrame(rows, schema=VERDICTS).write_parquet(folder / "removed.parquet")
        write_json(folder / "report.json", report)
    return report


def leaks(
    benchmarks: Mapping[str, str | Path], train: Mapping[str, str | Path], like: Likeness | None = None
) -> pl.DataFrame:
    """Benchmark items that training texts repeat or hold: the columns of removed.parquet, one row for each place.

    Args:
        benchmarks: name -> folder of ingested examples.
        train: name -> folder that a model learned from.
        like: when texts count as the same.
    """
    like = like or Likeness()
    seen, runs, _ = _protected({}, benchmarks, like)
    return pl.DataFrame([v.row() for v in _verdicts(train, seen, runs, among=False)], schema=VERDICTS)


# ---------------------------------------------------------------- what is compared


def _protected(
    train: Mapping[str, str | Path], benchmarks: Mapping[str, str | Path], like: Likeness
) -> tuple[Seen, Runs, dict[str, int]]:
    """Indices of all that must not be learned, and how many texts are too short to be found inside another."""
    seen, runs, too_short = Seen(like), Runs(like), Counter()
    for name, folder, splits in [
        *((name, folder, None) for name, folder in benchmarks.items()),
        *((name, folder, ("heldout", "dev", "test")) for name, folder in train.items()),
    ]:
        for place, whole, probes in _probes(name, Path(folder), splits, like):
            seen.add(place, units(whole))
            added = [runs.add(place, found) for found in probes]
            too_short[name] += not any(added)
    return seen, runs, {name: count for name, count in too_short.items() if count}


def _probes(
    name: str, folder: Path, splits: Sequence[str] | None, like: Likeness
) -> Iterator[tuple[Text, str, list[np.ndarray]]]:
    """Every text of these splits, as a whole, and the parts that would be known if they stood in another text.

    A question that several rows ask ("Which of these is true?") and one of few words ("When does the film begin?") tell
    nothing: they are joined with their options.
    """
    kind, there = _kind(folder), _splits(folder)
    for split in there if splits is None else [split for split in splits if split in there]:
        if kind != "examples":
            for place, row in _rows(name, folder, split, kind, protected=True):
                yield place, _whole(kind, row), [units(_whole(kind, row))]
            continue
        asked = Counter(row["text"] for frame in batches(folder, split) for row in frame.iter_rows(named=True))
        for place, row in _rows(name, folder, split, kind, protected=True):
            question = units(row["text"])
            if asked[row["text"]] > 1 or words(row["text"]) < like.run:
                question = units("\n".join([row["text"], *(row.get("choices") or [])]))
            yield place, _whole(kind, row), [question, *([units(row["second"])] if row.get("second") else [])]


def _verdicts(train: Mapping[str, str | Path], seen: Seen, runs: Runs, among: bool) -> Iterator[Verdict]:
    """Every training text that repeats a protected one; with `among`, or an earlier training text."""
    for name, folder in train.items():
        kind = _kind(Path(folder))
        rows = _rows(name, Path(folder), "train", kind, protected=False)
        total = read_json(Path(folder) / "manifest.json")["rows"].get("train", 0)
        for place, row in counted(rows, f"near {name}", "text", total):
            found = units(_whole(kind, row))
            held = runs.inside(found)
            alike = seen.nearest(found, place if among and not held else None)
            yield from (Verdict(place, "inside", share, of) for of, share in held)
            if alike and (not held if among else alike[0] not in {of for of, _ in held}):
                yield Verdict(place, "near", alike[1], alike[0])


def _rows(name: str, folder: Path, split: str, kind: str, protected: bool) -> Iterator[tuple[Text, dict]]:
    number = 0
    for frame in batches(folder, split):
        for row in frame.iter_rows(named=True):
            yield Text(name, split, number, _whole(kind, row)[:SHOWN], protected), row
            number += 1


def _whole(kind: str, row: Mapping) -> str:
    """What makes a row the same as another.

    Of an instruction with an input that is input and answer, since many rows share one instruction; but where these are
    short ("5", "7") it is what tells them apart.
    """
    if kind == "documents":
        return "\n".join(row["sentences"])
    if kind == "pairs":
        return f"{row['source']}\n{row['target']}"
    if kind == "instructions":
        said = f"{row['input']}\n{row['output']}"
        return said if row["input"] and len(units(said)) >= SHORT else f"{row['instruction']}\n{said}"
    return "\n".join([row["text"], *filter(None, [row.get("second")]), *(row.get("choices") or [])])


def _kind(folder: Path) -> str:
    if not (folder / "manifest.json").is_file():
        raise TextRejected(f"{folder} was not ingested: it has no manifest.json; run its ingest stage")
    kind = read_json(folder / "manifest.json").get("kind")
    if kind not in STREAMS:
        raise TextRejected(f"{folder} holds {kind or 'events'}; near duplicates are told of {', '.join(STREAMS)}")
    return kind


def _splits(folder: Path) -> list[str]:
    return [split for split in ("test", "dev", "heldout", "train") if (folder / "rows" / f"{split}.parquet").is_file()]


# ---------------------------------------------------------------- what is written


def _write(name: str, source: Path, removed: list[Verdict], target: Path) -> dict:
    """A set without the removed rows; returns its part of the report."""
    (target / "rows").mkdir(parents=True)
    gone = sorted({verdict.what.row for verdict in removed})
    manifest, before = read_json(source / "manifest.json"), {}
    for split in _splits(source):
        frame = pl.read_parquet(source / "rows" / f"{split}.parquet")
        before[split] = len(frame)
        if split == "train":
            frame = frame.filter(~pl.int_range(pl.len()).is_in(gone))
            if not len(frame):
                raise TextRejected(f"{name}: all {before[split]} training texts repeat others; nothing was written. "
                                   "Raise `threshold`, or bring other texts")  # fmt: skip
        frame.write_parquet(target / "rows" / f"{split}.parquet", row_group_size=GROUP_ROWS, compression="zstd",
                            compression_level=3)  # fmt: skip
    facts = {name: Counter() for name in ("rows", "languages", "licences")}
    for split in before:
        count(pl.read_parquet(target / "rows" / f"{split}.parquet"), split, facts)
    manifest |= {name: dict(found) for name, found in facts.items()}
    write_json(target / "manifest.json", manifest | {"near_removed": len(gone), "digest": digest(target)})
    first = {verdict.what.row: verdict for verdict in reversed(removed)}
    reasons = Counter(
        f"{verdict.how} {'a benchmark or held-out text' if verdict.of.protected else 'a training text'}"
        for verdict in first.values()
    )
    return {"rows": before["train"], "kept": facts["rows"]["train"], "removed": dict(sorted(reasons.items()))}


def _found(benchmarks: Mapping, verdicts: list[Verdict]) -> dict[str, dict[str, int]]:
    """Items of each benchmark, and how many of them training texts held."""
    return {
        name: {
            "items": sum(read_json(Path(folder) / "manifest.json")["rows"].values()),
            "found": len({(v.of.split, v.of.row) for v in verdicts if v.of.set == name}),
        }
        for name, folder in benchmarks.items()
    }


def main(address: str, ingested: str, out: str) -> None:
    """python -m tasks.near params.yaml:language.near artifacts/ingest artifacts/near"""
    chosen = dict(read(address))
    parts = [(chosen.pop(part, None) or {}).get("data", []) for part in ("train", "benchmarks")]
    folders = [{name: Path(ingested) / name for name in ([p] if isinstance(p, str) else p)} for p in parts]
    report = near(*folders, out, Likeness.read(chosen))
    for name, found in report["sets"].items():
        told = ", ".join(f"{count:,} {reason}" for reason, count in found["removed"].items()) or "none"
        print(f"{out}/{name}: {found['kept']:,} of {found['rows']:,} training texts kept; removed: {told}")
    for name, found in report["benchmarks"].items():
        if found["found"]:
            print(f"warning: {name}: {found['found']:,} of {found['items']:,} items were in training texts, which were "
                  f"removed; they are named in {out}/removed.parquet", file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    run(main)
