"""One page about what is built: the data, each task against the best possible, verdicts, champions, proofs."""

import re
from html import escape
from pathlib import Path

import polars as pl
import torch

from models.metrics import auc
from tasks.command import run
from tasks.fetch import dataset
from tasks.files import read_if_there, read_json, write_text
from tasks.labels import Task, label
from tasks.page import STYLE, number, table
from tasks.settings import read

__all__ = ["best_auc", "report"]

EVENT = re.compile(r"event_id\s*=\s*'(\w+)'")


def report(params: str, artifacts: Path, data: Path, out: Path) -> dict[str, dict]:
    """Write the page and return its main table: task -> {auc, best, gate, status, version, share, seconds}.

    Args:
        params: params.yaml.
        artifacts: folder of the stages' outputs; what is missing shows as "-".
        data: folder of raw files, for data sets whose hidden truth is known.
    """
    chosen = read(f"{params}:recommend")
    base = read_json(artifacts / "backbone/metrics.json")
    verdicts = {name: read_if_there(artifacts / f"gate/{name}/verdict.json") for name in ("backbone", *chosen["tasks"])}
    receipts = {name: read_if_there(artifacts / f"receipt/{name}.json") for name in verdicts}
    best = best_auc(chosen, artifacts / "features", data / chosen["data"])
    found = {}
    for task in (*base, *chosen["tasks"]):
        name = "backbone" if task in base else task
        measured = base.get(task) or read_if_there(artifacts / f"prompt/{task}/metrics.json")
        proof = {} if task in base else read_if_there(artifacts / f"prompt/{task}/proof.json")
        found[task] = {
            "auc": measured.get("auc"),
            "best": best.get(task),
            "positives": measured.get("positives"),
            "gate": {True: "open", False: "closed"}.get(verdicts[name].get("passed"), "-"),
            "status": receipts[name].get("status", "-"),
            "version": receipts[name].get("version", "-"),
            "share": proof.get("trained_share"),
            "tuning": proof.get("tuning_share"),
            "unchanged": bool(proof.get("backbone_unchanged") and proof.get("old_predictions_equal"))
            if proof
            else None,
        }
    write_text(out, _page(chosen, artifacts, found, out))
    return found


def best_auc(chosen: dict, features: Path, raw: Path) -> dict[str, float]:
    """The AUC that knowing the hidden truth gives on the test rows, for each task that has one; {} for real logs.

    Telling views from sampled items has none: how hard it is depends on how the negatives are drawn, not on the log.
    A model may reach a little more by chance: the truth is a probability, and the labels are one draw of it.
    """
    module = dataset(chosen["data"])
    if not hasattr(module, "best_scores"):
        return {}
    rows = pl.read_parquet(features / "rows/test.parquet")
    events = pl.scan_parquet(
        features.parent / "ingest" / chosen["data"] / "events/**/*.parquet", hive_partitioning=False
    )
    truth = module.best_scores(raw).collect()
    found = {}
    for name, declared in (chosen["backbone"]["tasks"] | chosen["tasks"]).items():
        event = EVENT.fullmatch(declared["positive"].strip())
        if not event or f"p_{event[1]}" not in truth.columns or declared["within"] != "session":
            continue
        joined = rows.join(truth, on=["user_id", "session_id", "item_id"], how="left", maintain_order="left")
        score = joined[f"p_{event[1]}"].fill_null(0.0)
        answer = label(Task(name, **declared), rows, events)
        asked = answer >= 0
        found[name] = float(
            auc(torch.tensor(score.to_numpy()[asked]), torch.tensor(answer[asked], dtype=torch.float32))
        )
    return found


def _page(chosen: dict, artifacts: Path, found: dict[str, dict], out: Path) -> str:
    backbone = read_json(artifacts / "backbone/backbone.json")
    log = read_json(artifacts / "ingest" / chosen["data"] / "manifest.json")
    rows = [
        [
            f"<a href='../gate/{name if name in chosen['tasks'] else 'backbone'}/verdict.html'>{escape(name)}</a>",
            "prompt" if name in chosen["tasks"] else "backbone",
            *(number(task[key]) for key in ("auc", "best", "positives")),
            task["gate"], str(task["status"]), str(task["version"]),
            *("-" if task[key] is None else f"{task[key]:.1%}" for key in ("share", "tuning")),
            {True: "bit for bit", False: "NO", None: "-"}[task["unchanged"]],
        ]
        for name, task in found.items()
    ]  # fmt: skip
    head = ["task", "learned by", "AUC", "best possible", "positives", "gate", "registry", "version",
            "trained / backbone", "seconds / backbone", "old tasks unchanged"]  # fmt: skip
    splits = sorted(log["splits"].items(), key=lambda split: split[1]["first"])
    sizes = ", ".join(f"{name} {part['rows']:,}" for name, part in splits)
    docs = f"../validation/{escape(chosen['data'])}/docs/index.html"
    counted = backbone["parameters"]
    lines = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Rootstock</title><style>{STYLE}</style>",
        "<h1>Rootstock: what is built</h1>",
        f"<p>{escape(chosen['data'])}: {log['rows']:,} events ({sizes}), {log['users']:,} users, ",
        f"{log['items']:,} items.",
        f"{log['cold']['test']['item_share']:.1%} of the test events are of items that training never saw.",
        f"<a href='{docs}'>What was checked</a>.</p>" if (out.parent / docs).exists() else "</p>",
        f"<p>Backbone {escape(backbone['method'])}: {counted['all']:,} parameters, {counted['without_embeddings']:,} ",
        f"without embeddings, best epoch {backbone['best_epoch']}.</p>",
        table(head, rows),
        "<p class=dim>AUC on the test days. Best possible: what the generator's hidden truth scores on the same rows.",
        "Trained: parameters of the head over those of the backbone, embeddings counted in neither. Seconds: of tuning",
        "(and of representing the rows, where this head was the first to need them) over those of training the",
        "backbone.</p>",
    ]
    return "\n".join(lines) + "\n"


def main(params: str, artifacts: str, data: str, out: str) -> None:
    """python -m tasks.report params.yaml artifacts data artifacts/report/index.html"""
    found = report(params, Path(artifacts), Path(data), Path(out))
    width = max(len(name) for name in found)
    print(f"{'task':<{width}}  test AUC  best possible")
    for name, task in found.items():
        best = "-" if task["best"] is None else f"{task['best']:.4f}"
        print(f"{name:<{width}}  {task['auc']:.4f}    {best}" if task["auc"] is not None else f"{name:<{width}}  -")
    print(f"report: {out}")


if __name__ == "__main__":
    run(main)
