"""How much memory a piece of code needs, in a process of its own: this one's would hide it."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["peak"]

ROOT = Path(__file__).parents[2]
TOLD = "\nfrom pathlib import Path\nprint(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"


def peak(code: str, *words: object) -> float:
    """The greatest resident memory of a Python process, in MiB; the code finds `words` in sys.argv[1:]."""
    told = {**os.environ, "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1"}
    ran = [sys.executable, "-c", code + TOLD, *map(str, words)]
    return int(subprocess.run(ran, env=told, capture_output=True, text=True, check=True).stdout.split()[-1]) / 1024
