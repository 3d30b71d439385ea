"""What a champion answers to new rows beside what it answers to old ones, and to labels that have come in."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import torch

from models import metrics
from tasks import fresh, track
from tasks.files import read_json
from tasks.labels import TaskError, label, read_tasks
from tasks.shift import Counts, auc_interval, bins, grid_of, ks, psi

__all__ = ["compare"]

PARTS = ("given", "positive", "within")


def compare(settings, model: str, ingest: Path, features: Path) -> dict[str, dict]:
    """Compare one model's champion on rows of both sides where its task is asked; {} where there is no champion.

    Args:
        settings: of tasks/monitor.py.
        model: recommend-backbone, recommend-<task>.
        ingest, features: folders of the log and of its rows.

    Returns:
        model, of several tasks model/task, -> {"version", "rows", "psi", "ks", "auc", "auc_reference" (at promotion),
        "auc_low", "auc_high", "calibration", "calibration_reference", "over", "fault": why it could not be asked, or
        null}. A champion that cannot answer is over. Labels are those that have come in: with one class only, and
        before any positive, `auc` is null and does not count.

    Raises:
        RegistryUnreachable: whether there is a champion cannot be known.
    """
    version = track.by_alias(model, "champion")
    if version is None:
        return {}
    params, measured = track.run_data(version.run)
    declared = declarations(model, params)
    names = {task: model if list(declared) == [model.removeprefix("recommend-")] else f"{model}/{task}"
             for task in declared}  # fmt: skip
    try:
        sides = _asked(settings, version, declared, ingest, features)
    except (fresh.FreshProcessFailed, TaskError, pl.exceptions.PolarsError) as error:
        lost = dict.fromkeys(("psi", "ks", "auc", "auc_reference", "auc_low", "auc_high", "calibration",
                              "calibration_reference"))  # fmt: skip
        fault = f"version {version.number} cannot be asked: {str(error).splitlines()[0][:300]}"
        return {name: lost | {"version": version.number, "rows": 0, "over": True, "fault": fault}
                for name in names.values()}  # fmt: skip
    return {name: _facts(settings, version, task, measured, [side[task] for side in sides])
            for task, name in names.items()}  # fmt: skip


def declarations(model: str, params: Mapping[str, str]) -> dict[str, dict]:
    """The tasks that a version was judged by, from the params of its run: of a head its own, else all by name.

    >>> declarations("recommend-x", {"tasks.given": "a", "tasks.positive": "b", "tasks.within": "row"})
    {'x': {'given': 'a', 'positive': 'b', 'within': 'row'}}
    """
    found: dict[str, dict] = {}
    for key, value in params.items():
        names, _, part = key.rpartition(".")
        step, _, task = names.partition(".")
        if step == "tasks" and part in PARTS:
            found.setdefault(task or model.removeprefix("recommend-"), {})[part] = value
    return found


def _asked(settings, version, declared: Mapping, ingest: Path, features: Path) -> list[dict[str, tuple]]:
    """Of both sides: task -> (predictions, labels) of at most `settings.rows` evenly spaced rows where it is asked."""
    tasks = read_tasks(declared, ingest, read_json(features / "manifest.json"))
    events = pl.scan_parquet(ingest / "events/**/*.parquet")
    parts = []
    for split in (settings.answered, settings.new):
        rows = pl.read_parquet(features / f"rows/{split}.parquet")
        labels = np.stack([label(task, rows, events) for task in tasks], axis=1)
        some = np.flatnonzero((labels >= 0).any(axis=1))
        some = some[np.linspace(0, len(some) - 1, min(settings.rows, len(some))).astype(int)]
        parts.append((rows[some], labels[some]))
    whole = pl.concat([rows for rows, _ in parts])
    scores = fresh.score(version.uri, whole)[0] if len(whole) else pl.DataFrame(schema={"probability": pl.Float64})
    found, start = [], 0
    for rows, labels in parts:
        side = scores[start : start + len(rows)]
        start += len(rows)
        told = [side["probability" if "probability" in side.columns else task.name].to_numpy() for task in tasks]
        asked = [labels[:, place] >= 0 for place in range(len(tasks))]
        found.append({task.name: (told[place][asked[place]], labels[asked[place], place])
                      for place, task in enumerate(tasks)})  # fmt: skip
    return found


def _facts(settings, version, task: str, measured: Mapping[str, float], sides: list[tuple]) -> dict:
    (before, _), (now, truth) = sides
    known = {"version": version.number, "rows": len(now), "auc_reference": measured.get(f"{task}.auc"),
             "calibration_reference": measured.get(f"{task}.calibration"), "fault": None}  # fmt: skip
    auc, low, high = (None if np.isnan(value) else value for value in auc_interval(now, truth))
    known |= {"auc": auc, "auc_low": low, "auc_high": high, "psi": None, "ks": None}
    mean = float(metrics.calibration(torch.from_numpy(now), torch.from_numpy(truth))) if len(now) else float("nan")
    known["calibration"] = mean if np.isfinite(mean) else None
    if len(before) and len(now):
        counts = [Counts(grid_of(before)) for _ in sides]
        for count, values in zip(counts, (before, now), strict=True):
            count.add(values)
        known |= {"psi": psi(*bins(*counts, settings.bins)), "ks": ks(*counts)}
    over = any(known[key] is not None and known[key] > getattr(settings, key) for key in ("psi", "ks"))
    if high is not None and known["auc_reference"] is not None:
        over |= high < known["auc_reference"] - settings.auc_drop
    return known | {"over": over}
