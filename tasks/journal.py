"""Which stages ran in this run: a line per started work unit, so that a proof can say that only its own stage ran.

A run is one `dvc repro` (found among the ancestors of this process), or one flow (ROOTSTOCK_RUN, set by tasks/make.py).
"""

import json
import os
import sys
import time
from pathlib import Path

__all__ = ["record", "stages_so_far"]

FOLDER = Path(".dvc/tmp/rootstock/journal")


def record() -> None:
    """Write down that this work unit started; nothing when it was started by hand, outside of any run."""
    if (file := _file()) and sys.argv[0].endswith(".py"):
        file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"unit": Path(sys.argv[0]).stem, "words": sys.argv[1:], "time": time.time()})
        with open(file, "a") as lines:
            lines.write(line + "\n")


def stages_so_far() -> list[str]:
    """The work units of this run so far, this one included: `tune_prompt offer_make`, in order of their start."""
    file = _file()
    if not file or not file.is_file():
        return []
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [" ".join([line["unit"], *line["words"]]) for line in lines]


def _file() -> Path | None:
    if name := os.environ.get("ROOTSTOCK_RUN"):
        return FOLDER / f"{name}.jsonl"
    import psutil

    for parent in psutil.Process().parents():
        words = parent.cmdline()
        if any(Path(word).name == "dvc" for word in words[:3]):  # `dvc repro` and `python -m dvc repro`
            return FOLDER / f"dvc-{parent.pid}-{int(parent.create_time())}.jsonl"
    return None
