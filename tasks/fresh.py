"""Score rows with a registered version in a fresh process, as another team would: nothing of ours leaks into it."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from tasks import track
from tasks.files import read_json

__all__ = ["FreshProcessFailed", "score"]

SECONDS = 600


class FreshProcessFailed(ValueError):
    """A registered version cannot be loaded or scored from the registry alone."""


def score(uri: str, rows: pl.DataFrame) -> tuple[pl.DataFrame, dict]:
    """Probabilities of raw rows by `models:/<name>/<version>`, and the times that tasks/score.py took.

    Raises:
        FreshProcessFailed: with what the process said last.
    """
    with TemporaryDirectory() as folder:
        given, out, times = (Path(folder) / name for name in ("rows.parquet", "out.parquet", "times.json"))
        rows.write_parquet(given)
        script = Path(__file__).with_name("score.py")
        # -P keeps the script's folder off the import path: only what the version brings can be imported.
        command = [sys.executable, "-P", str(script), uri, str(given), str(out), str(times)]
        try:
            done = subprocess.run(command, env=os.environ | {"MLFLOW_TRACKING_URI": track.uri()}, text=True,
                                  capture_output=True, timeout=SECONDS, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            raise FreshProcessFailed(f"{uri} did not answer within {SECONDS} s in a fresh process") from None
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise FreshProcessFailed(
                f"{uri} failed in a fresh process: {said[-1][:600] if said else f'exit {done.returncode}'}"
            )
        return pl.read_parquet(out), read_json(times)
