"""Use a model in a fresh process, as another team would: nothing of ours leaks into it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from tasks import track
from tasks.files import read_json

__all__ = ["FreshProcessFailed", "recall", "score"]

SECONDS = 600


class FreshProcessFailed(ValueError):
    """A model cannot be loaded or asked from its files alone."""


def score(uri: str, rows: pl.DataFrame) -> tuple[pl.DataFrame, dict]:
    """Probabilities of raw rows by `models:/<name>/<version>`, and the times that tasks/score.py took.

    Raises:
        FreshProcessFailed: with what the process said last.
    """
    with TemporaryDirectory() as folder:
        given, out, times = (Path(folder) / name for name in ("rows.parquet", "out.parquet", "times.json"))
        rows.write_parquet(given)
        _run("score.py", uri, uri, given, out, times)
        return pl.read_parquet(out), read_json(times)


def recall(*models: Path) -> list[tuple[dict, dict]]:
    """What language models' folders answer to the pinned texts of tasks/recall.py, and what was seen on loading them.

    Args:
        models: transformers layouts, or MLflow models; asked in one process, each by itself.

    Raises:
        FreshProcessFailed: with what the process said last.
    """
    from safetensors import safe_open

    with TemporaryDirectory() as folder:
        outs = [Path(folder) / f"{place}.safetensors" for place in range(len(models))]
        words = [word for model, out in zip(models, outs, strict=True) for word in (model.resolve(), out)]
        _run("recall.py", " and ".join(map(str, models)), *words)
        found = []
        for out in outs:
            with safe_open(out, "pt") as file:
                answers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
                found.append((answers, json.loads(file.metadata()["seen"])))
        return found


def _run(script: str, who: str, *words) -> None:
    # -P keeps the script's folder off the import path: only what the model brings can be imported.
    command = [sys.executable, "-P", str(Path(__file__).with_name(script)), *map(str, words)]
    try:
        done = subprocess.run(command, env=os.environ | {"MLFLOW_TRACKING_URI": track.uri()}, text=True,
                              capture_output=True, timeout=SECONDS, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FreshProcessFailed(f"{who} did not answer within {SECONDS} s in a fresh process") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise FreshProcessFailed(
            f"{who} failed in a fresh process: {said[-1][:600] if said else f'exit {done.returncode}'}"
        )
