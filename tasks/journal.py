"""Which stages ran in this run, and what they took: a line per start and per end of a work unit.

A run is one `dvc repro`, found among the ancestors of this process, or one flow: ROOTSTOCK_RUN, by tasks/repro.py.
A proof reads in it that only its own stage ran; the report reads in it what a run did and what that cost.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.files import on_disk

__all__ = ["Entry", "entries", "recorded", "stages_so_far"]

FOLDER = Path(".dvc/tmp/rootstock/journal")


@dataclass(frozen=True)
class Entry:
    """One work unit that ran; None is what is not known, of one that is still running or was killed."""

    run: str
    unit: str
    words: tuple[str, ...]
    started: float  # seconds since 1970
    seconds: float | None = None
    peak_memory_mb: float | None = None  # resident, of its largest process
    failed: bool | None = None


@contextmanager
def recorded() -> Iterator[None]:
    """Write down that this work unit started and how it ended; nothing when it was started by hand, outside any run."""
    file = _file() if sys.argv[0].endswith(".py") else None
    if file is None:
        yield
        return
    started, failed = time.time(), True
    _write(file, started)
    try:
        yield
        failed = False
    finally:
        largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        _write(file, started, seconds=time.time() - started, peak_memory_mb=largest / 1024, failed=failed)


def stages_so_far() -> list[str]:
    """The work units of this run so far, this one included: `tune_prompt offer_make`, in order of their start."""
    file = _file()
    return [" ".join([entry.unit, *entry.words]) for entry in (_read(file) if file and file.is_file() else [])]


def entries(folder: Path = FOLDER) -> list[Entry]:
    """All that ran in this checkout, in order of the start."""
    found = [entry for file in folder.glob("*.jsonl") for entry in _read(file)]
    return sorted(found, key=lambda entry: entry.started)


def _read(file: Path) -> list[Entry]:
    """A unit's last line stands for it; a line that a kill or a full disk cut short tells nothing."""
    found = {}
    for line in file.read_text().splitlines():
        try:
            told = json.loads(line)
        except json.JSONDecodeError:
            continue
        ended = {key: told.get(key) for key in ("seconds", "peak_memory_mb", "failed")}
        made = Entry(file.stem, told["unit"], tuple(told["words"]), told["time"], **ended)
        found[made.unit, made.words, made.started] = made
    return sorted(found.values(), key=lambda entry: entry.started)


def _write(file: Path, started: float, **ended) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"unit": Path(sys.argv[0]).stem, "words": sys.argv[1:], "time": started, **ended})
    with on_disk(file), open(file, "a") as lines:
        lines.write(line + "\n")


def _file() -> Path | None:
    if name := os.environ.get("ROOTSTOCK_RUN"):
        return FOLDER / f"{name}.jsonl"
    if "DVC_STAGE" not in os.environ:  # as `starter` finds, which needs psutil for it
        return None
    from tasks.orphan import starter

    dvc = starter()
    return dvc and FOLDER / f"dvc-{dvc.pid}-{int(dvc.create_time())}.jsonl"
