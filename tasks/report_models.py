"""What a report says of the models: who is champion, each slice before and after, calibration, training curves.

All of it comes from the gates' verdicts, the promotions' receipts, the predictions and the curves that stages left.
"""

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import polars as pl

from tasks.files import read_if_there, read_json
from tasks.page import folded, number
from tasks.report_svg import forest, legend, lines, reliability

__all__ = ["calibration", "curves", "differences", "standings", "verdicts"]

SEEN, ROWS = 10, 60  # lines of a table that are seen at once, and in all
MODELS = 10  # with a table of their own
INTERVALS = 30  # in one picture
AT_ONCE, FIGURES = 9, 40  # pictures of one kind that are seen at once, and in all
STATE = {True: "<span class=good>open</span>", False: "<span class=bad>closed</span>"}


def verdicts(artifacts: Path) -> dict[str, tuple[dict, Path]]:
    """Every gate's verdict and its folder, by the registered model's name."""
    found = {}
    for pattern in ("gate/*/verdict.json", "*/gate/*/verdict.json"):
        for path in sorted(artifacts.glob(pattern)):
            verdict = read_json(path)
            found[verdict["model"]] = verdict, path.parent
    return found


def standings(found: Mapping[str, tuple[dict, Path]], page: Path) -> str:
    """A line for each model that a gate judged: open or closed, which version, who is champion, why not.

    Args:
        page: the report, from which the verdicts' pages are linked.
    """
    rows = []
    for model, (verdict, folder) in sorted(found.items()):
        receipt = read_if_there(folder.parents[1] / "receipt" / f"{folder.name}.json")
        failed = [check["name"] for check in verdict["checks"] if check["passed"] is False]
        link = escape(os.path.relpath(folder / "verdict.html", page.parent))
        rows.append([f"<a href='{link}'>{escape(model)}</a>", STATE[verdict["passed"]], str(len(verdict["checks"])),
                     escape(receipt.get("status", "-")), str(receipt.get("version", "-")),
                     str(receipt.get("champion") or "-"),
                     escape("; ".join(failed[:3]) + (f" and {len(failed) - 3} more" if len(failed) > 3 else ""))
                     ])  # fmt: skip
    head = ["model", "gate", "checks", "registry", "version", "champion", "failed"]
    return folded(head, rows, MODELS, ROWS) if rows else _none("No gate has judged anything yet.")


def differences(found: Mapping[str, tuple[dict, Path]]) -> str:
    """All models beside the champions they were judged against: intervals, slices, other metrics, the worst first."""
    judged = [verdict for _, (verdict, _) in sorted(found.items()) if verdict["champion"] is not None]
    changed = [verdict for verdict in judged if verdict["champion"].get("content") != verdict["candidate"]]
    same = [verdict["model"] for verdict in judged if verdict not in changed]
    first = sorted(model for model, (verdict, _) in found.items() if verdict["champion"] is None)
    parts = [_intervals(changed), _slices(changed), *filter(None, [_measured(verdict) for verdict in changed][:MODELS])]
    parts += [_none(f"The very bytes of the champion: {', '.join(same)}.")] * bool(same)
    parts += [_none(f"First of its kind, so there is nothing to compare with: {', '.join(first)}.")] * bool(first)
    return "".join(parts) or _none("No gate has judged anything yet.")


def _intervals(changed: Sequence[Mapping]) -> str:
    """A picture for each metric and margin that gates compare by."""
    asked = defaultdict(list)
    for verdict in changed:
        wanted = (verdict.get("rules") or {}).get("improvement")
        for name, interval in (verdict.get("intervals") or {}).items():
            if wanted and name != "popularity" and None not in interval:
                own = f"{verdict['name']}: {name}" if name != verdict["name"] else name
                beside = f"{own}, version {verdict['champion']['version']}"
                asked[wanted["metric"], wanted["margin"]].append((beside, interval))
    figures = []
    for (metric, margin), pairs in asked.items():
        worst = dict(sorted(pairs, key=lambda pair: pair[1][0])[:INTERVALS])
        drawn = forest(f"{metric}, candidate minus champion", worst, margin, f"{metric}: candidate minus champion")
        left = f" {len(pairs) - INTERVALS} better ones are not shown." if len(pairs) > INTERVALS else ""
        figures.append(f"<figure class=chart>{drawn}<figcaption class=dim>The dashed line is what the gate asks for at "
                       f"the low end of the interval.{left}</figcaption></figure>")  # fmt: skip
    return _grid(figures) if figures else ""


def _slices(changed: Sequence[Mapping]) -> str:
    key = lambda part: (part["task"], part["column"], part["value"])
    both = []
    for verdict in changed:
        before = {key(part): part for part in verdict["champion"].get("slices") or () if "auc" in part}
        both += [(now, before[key(now)]) for now in verdict["slices"] if "auc" in now and key(now) in before]
    both.sort(key=lambda pair: pair[0]["auc"] - pair[1]["auc"])
    rows = [[escape(now["task"]), f"{escape(now['column'])} = {escape(now['value'])}", str(now["rows"]),
             str(now["positives"]), number(then["auc"]), number(now["auc"]), f"{now['auc'] - then['auc']:+.4f}",
             number(then["calibration"]), number(now["calibration"])] for now, then in both]  # fmt: skip
    head = ["task", "slice", "rows", "positives", "AUC before", "AUC now", "difference", "calibration before", "now"]
    return "<h3>Slices</h3>" + folded(head, rows, SEEN, ROWS) if rows else ""


def _measured(verdict: Mapping) -> str:
    """Metrics that both the candidate and the champion have, under the names of either; the most changed first."""
    before, champion = verdict["champion"].get("metrics") or {}, verdict["champion"]["version"]
    now = {name: value for part, values in verdict["metrics"].items() for metric, value in values.items()
           for name in (metric, f"{part}_{metric}")}  # fmt: skip
    both = [name for name in sorted(before) if _real(before[name]) and _real(now.get(name))]
    both.sort(key=lambda name: -abs(now[name] - before[name]) / (abs(before[name]) or 1))
    rows = [
        [escape(name), number(before[name]), number(now[name]), f"{now[name] - before[name]:+.4g}"] for name in both
    ]
    title = f"<h3>{escape(verdict['model'])} beside version {champion}</h3>"
    return title + folded(["metric", "before", "now", "difference"], rows, SEEN, ROWS) if rows else ""


def calibration(found: Mapping[str, tuple[dict, Path]], artifacts: Path) -> str:
    """A diagram a model: from a task's own predictions on the test rows, or as its gate measured."""
    figures = []
    for model, (verdict, _) in sorted(found.items()):
        if bins := _bins(artifacts / "prompt" / verdict["name"] / "test.parquet", verdict):
            drawn = reliability(f"Calibration of {model}", bins)
            figures.append(f"<figure class=chart><figcaption><b>{escape(model)}</b></figcaption>{drawn}"
                           f"<p class=legend>{legend(list(bins))}</p></figure>")  # fmt: skip
    if not figures:
        return _none("No model that gives probabilities was judged.")
    note = ("<p class=dim>Across: the mean prediction of a bin of rows; up: the share of them that was positive. On "
            "the dashed line predictions are true rates. The area of a dot is its share of the rows.</p>")  # fmt: skip
    return note + _grid(figures)


def _bins(predictions: Path, verdict: Mapping) -> dict[str, list[tuple[float, float, float]]]:
    """Task -> (mean prediction, share of positives, rows) of each bin."""
    if not predictions.is_file():
        known = verdict.get("reliability") or {}
        return {task: list(zip(*(part[name] for name in ("predicted", "observed", "rows")), strict=True))
                for task, part in known.items()}  # fmt: skip
    import torch

    from models import metrics

    rows = pl.read_parquet(predictions, columns=["probability", "label"]).filter(pl.col("label") >= 0)
    sides = (torch.tensor(rows[name].to_list(), dtype=torch.float64) for name in ("probability", "label"))
    return {verdict["name"]: list(zip(*(part.tolist() for part in metrics.reliability(*sides).values()), strict=True))}


def curves(artifacts: Path) -> str:
    """A picture of each curve.csv: what was measured on held-out rows if anything was, else the loss."""
    figures, files = (
        [],
        sorted(path for pattern in ("*/curve.csv", "*/*/curve.csv") for path in artifacts.glob(pattern)),
    )
    for path in files:
        frame = pl.read_csv(path, infer_schema_length=None)
        if frame.is_empty():
            continue
        name = path.parent.relative_to(artifacts).as_posix()
        for columns in _shown(frame.columns):
            series = {column: [(step, value) for step, value in zip(frame["step"], frame[column], strict=True)
                               if _real(value)] for column in columns}  # fmt: skip
            if drawn := lines(name, series, "step"):
                figures.append(f"<figure class=chart><figcaption><b>{escape(name)}</b></figcaption>{drawn}"
                               f"<p class=legend>{legend(list(series))}</p></figure>")  # fmt: skip
    if not figures:
        return _none("Nothing was trained here.")
    return _grid(figures)


def _shown(columns: list[str]) -> list[list[str]]:
    """The columns of a picture of losses, and of one of what else was judged by."""
    judged = [name for name in columns if name.startswith("val_auc")] or [
        name for name in ("val_recall@20", "heldout_accuracy", "heldout_score") if name in columns][:1]  # fmt: skip
    loss = ["heldout_loss" if "heldout_loss" in columns else "loss"]
    return [judged] if judged and loss == ["loss"] else [part for part in (loss, judged) if part]


def _grid(figures: list[str]) -> str:
    """Side by side where there is room, the first ones at once."""
    box = lambda some: f"<div class=grid>{''.join(some)}</div>"
    if len(figures) <= AT_ONCE:
        return box(figures)
    more, left = figures[AT_ONCE:FIGURES], len(figures) - FIGURES
    unseen = _none(f"{left} more are not shown.") if left > 0 else ""
    return box(figures[:AT_ONCE]) + f"<details><summary>{len(more)} more</summary>{box(more)}{unseen}</details>"


def _none(words: str) -> str:
    return f"<p class=dim>{escape(words)}</p>"


def _real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
