"""One page about a run: what ran, what was fresh, what it took, the models before and after, samples of their work."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tasks.command import run
from tasks.fetch import dataset
from tasks.files import read_if_there, read_json, write_text
from tasks.journal import FOLDER
from tasks.labels import Task, label
from tasks.page import folded, number, start
from tasks.report_data import drifted, sizes
from tasks.report_graph import Stage, costs, graph, last_run, moment, stages
from tasks.report_models import calibration, curves, differences, standings, verdicts
from tasks.report_samples import recommendations, texts
from tasks.report_svg import STYLE as PICTURES
from tasks.settings import read

__all__ = ["attach", "best_auc", "publish", "report"]

SEEN, MOST = 20, 200  # tasks of the table that are seen at once, and in all
EVENT = re.compile(r"event_id\s*=\s*'(\w+)'")
STYLE = """
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem } h2 { border-top: 1px solid var(--line); padding-top: 1rem }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; margin: 1rem 0 }
dl div { background: var(--soft); border-radius: 8px; padding: .5rem .8rem; display: flex; flex-direction: column }
dt { color: var(--dim); font-size: .85rem; order: 2 }
dd { margin: 0; font-size: 1.2rem; font-weight: 600; font-variant-numeric: tabular-nums }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: .8rem 0 }
nav a { display: inline-block; padding: .25rem 0 } table { font-size: .9rem } summary { cursor: pointer }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: 1rem }
.grid figure, .chart { margin: .5rem 0; min-width: 0; max-width: 26rem }
.legend { margin: .2rem 0 0; font-size: .85rem } .legend span { margin-right: .8rem; white-space: nowrap }
.bar { display: block; height: .7em; margin-top: .4em; background: var(--s0); border-radius: 2px; min-width: 1px }
td:has(> .bar) { min-width: 6rem } .text { min-width: 10rem; max-width: 30rem }
.graph { border: 1px solid var(--line); border-radius: 8px; padding: .4rem }
.node rect { fill: var(--paper); stroke: var(--dim) } .node text { font-size: 12px } .node .dim { font-size: 11px }
.node.ran rect { stroke: var(--good); stroke-width: 2 } .node.ran .dim { fill: var(--good) }
.node.failed rect, .node.stale rect { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 5 3 }
.node.failed .dim, .node.stale .dim { fill: var(--bad) }
td { white-space: nowrap } th { vertical-align: bottom } .graph svg { margin: auto }
.text { white-space: normal } details { margin: .4rem 0 }
"""


@dataclass(frozen=True)
class Ran:
    """What tells this run from what was there before; see `report`."""

    journal: Path
    since: float | None
    stale: Collection[str] | None


def report(
    params: str, artifacts: Path, data: Path, out: Path, since: float | None = None,
    stale: Collection[str] | None = None, journal: Path = FOLDER,
) -> dict[str, dict]:  # fmt: skip
    """Write the page and return its main table: task -> {auc, best, gate, status, version, share, seconds}.

    Args:
        params: params.yaml; dvc.lock and data.dvc lie beside it.
        artifacts: folder of the stages' outputs; what is missing is said so in a line.
        data: folder of raw files, for data sets whose hidden truth is known.
        since: seconds since 1970: what started later ran in this run; None: the newest run of the journal.
        stale: stages that DVC calls stale; None: nobody asked it.
        journal: folder of tasks/journal.py.
    """
    found = _measured(read(f"{params}:recommend"), artifacts, data)
    ran = Ran(journal, since if since is not None else last_run(journal), stale)
    write_text(out, _page(params, artifacts, found, out, ran))
    return found


def publish(params: str, artifacts: Path, data: Path, out: Path, since: float | None = None) -> tuple[dict, list[str]]:
    """Ask DVC what is stale, write the page and keep it with the runs that it is about; see `report` and `attach`."""
    from tasks.repro import stale

    since = last_run(FOLDER) if since is None else since
    return report(params, artifacts, data, out, since, stale()), attach(out, artifacts, since)


def attach(out: Path, artifacts: Path, since: float | None) -> list[str]:
    """Keep the page with the MLflow run of every model whose promotion wrote its receipt since then; those runs.

    Args:
        out: the page.
        artifacts: folder of the stages' outputs.
        since: seconds since 1970, or None: of every model.

    Raises:
        RegistryUnreachable: nothing was kept, or not with all of them.
    """
    from tasks import track

    receipts = [path for pattern in ("receipt/*.json", "*/receipt/*.json") for path in sorted(artifacts.glob(pattern))]
    told = [read_json(path) for path in receipts if since is None or path.stat().st_mtime >= since]
    runs = list(dict.fromkeys(receipt["run"] for receipt in told if receipt.get("run")))
    alone = re.sub(r"<a href='\.\./[^']*'>(.*?)</a>", r"\1", out.read_text())  # pages that do not travel with it
    for each in runs:
        track.attach(each, "report/index.html", alone)
    return runs


def _measured(chosen: dict, artifacts: Path, data: Path) -> dict[str, dict]:
    """The main table, empty where no backbone was trained."""
    base = read_if_there(artifacts / "backbone/metrics.json")
    if not base:
        return {}
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
    return found


def best_auc(chosen: dict, features: Path, raw: Path) -> dict[str, float]:
    """The AUC that knowing the hidden truth gives on the test rows, for each task that has one; {} for real logs.

    Telling views from sampled items has none: how hard it is depends on how the negatives are drawn, not on the log.
    A model may reach a little more by chance: the truth is a probability, and the labels are one draw of it.
    """
    module = dataset(chosen["data"])
    if not hasattr(module, "best_scores"):
        return {}
    import polars as pl
    import torch

    from models.metrics import auc

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


def _page(params: str, artifacts: Path, found: dict[str, dict], out: Path, ran: Ran) -> str:
    every = read(params)
    chosen, recommenders = every["recommend"], (every.get("recommenders") or {}).get("models") or {}
    judged = verdicts(artifacts)
    built, absent = stages(Path(params).parent, ran.journal, ran.since, ran.stale)
    sections = {
        "what ran": _ran(built, absent, ran),
        "tasks": _tasks(chosen, found),
        "champions": standings(judged, out),
        "before and after": differences(judged),
        "calibration": calibration(judged, artifacts),
        "training": curves(artifacts),
        "data": sizes(every["datasets"], artifacts / "ingest"),
        "drift": drifted(every["datasets"], artifacts),
        "recommendations": recommendations(chosen, recommenders, artifacts),
        "texts": texts(artifacts),
    }
    name = lambda title: title.replace(" ", "-")
    links = " ".join(f"<a href='#{name(title)}'>{title}</a>" for title in sections)
    parts = [
        start("Rootstock: what was built", STYLE + PICTURES),
        f"<h1>Rootstock: what was built</h1>{_begun(ran)}{_cards(found, judged, built)}",
        f"<nav aria-label=Sections>{links}</nav><main>{_said(chosen, artifacts, out)}",
        *(f"<section><h2 id='{name(title)}'>{title.capitalize()}</h2>{part}</section>"
          for title, part in sections.items()),
    ]  # fmt: skip
    return "\n".join(parts) + "</main></html>\n"


def _begun(ran: Ran) -> str:
    since = "No run was written down here yet." if ran.since is None else f"The run since {moment(ran.since)} UTC."
    return f"<p class=dim>{since}</p>"


def _cards(found: dict[str, dict], judged: dict, built: list[Stage]) -> str:
    """The few numbers that a reader looks for first."""
    mine = [stage for stage in built if stage.state in ("ran", "failed")]
    took = sum(stage.seconds or 0 for stage in mine)
    held = max((stage.peak_memory_mb or 0 for stage in mine), default=0)
    closed = sum(not verdict["passed"] for verdict, _ in judged.values())
    cards = [
        (f"{len(mine)} of {len(built)}", "stages ran"),
        (f"{took:.0f} s", "they took"),
        (f"{held:.0f} MB", "the largest held"),
        (f"{len(judged) - closed} of {len(judged)}", "gates open"),
        (str(len(found)), "recommender tasks"),
    ]
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for value, name in cards) + "</dl>"


def _ran(built: list[Stage], absent: list[str], ran: Ran) -> str:
    if not built:
        return "<p class=dim>No stage has left anything here.</p>"
    said = "Fresh is what DVC found unchanged." if ran.stale is not None else "DVC was not asked what is stale."
    away = (f"<details><summary>Stages of dvc.lock without results in this checkout: {len(absent)}</summary>"
            f"<p class=dim>{escape(', '.join(absent))}</p></details>") if absent else ""  # fmt: skip
    return (f"<p class=dim>{said} A box is a kind of stage; a line leads from what makes to what needs it.</p>"
            f"<div class='scroll graph' role=region aria-label='The graph' tabindex=0>{graph(built)}</div>{away}"
            f"<h3>Seconds and memory</h3><p class=dim>Wall time and the largest process, of the last time that a "
            f"stage ran here; a dash is a result from DVC's cache.</p>{costs(built)}")  # fmt: skip


def _said(chosen: dict, artifacts: Path, out: Path) -> str:
    """The log and the backbone in two sentences."""
    log = read_if_there(artifacts / "ingest" / chosen["data"] / "manifest.json")
    about = read_if_there(artifacts / "backbone/backbone.json")
    docs = f"../validation/{chosen['data']}/docs/index.html"
    parts = []
    if log:
        splits = sorted(log["splits"].items(), key=lambda split: split[1]["first"])
        sizes = ", ".join(f"{name} {part['rows']:,}" for name, part in splits)
        parts.append(f"{escape(chosen['data'])}: {log['rows']:,} events ({sizes}), {log['users']:,} users, "
                     f"{log['items']:,} items. {log['cold']['test']['item_share']:.1%} of the test events are of items "
                     f"that training never saw.")  # fmt: skip
        if (out.parent / docs).exists():
            parts.append(f"<a href='{escape(docs)}'>What was checked</a>.")
    if about:
        counted = about["parameters"]
        sizes = f"{counted['all']:,} parameters, {counted['without_embeddings']:,} without embeddings"
        parts.append(f"Backbone {escape(about['method'])}: {sizes}, best epoch {about['best_epoch']}.")
    return f"<p>{' '.join(parts)}</p>" if parts else "<p class=dim>No log was read here yet.</p>"


def _tasks(chosen: dict, found: dict[str, dict]) -> str:
    if not found:
        return "<p class=dim>No backbone was trained here.</p>"
    rows = [
        [
            escape(name),
            "prompt" if name in chosen["tasks"] else "backbone",
            *(number(task[key]) for key in ("auc", "best", "positives")),
            task["gate"], str(task["status"]), str(task["version"]),
            *("-" if task[key] is None else f"{task[key]:.1%}" for key in ("share", "tuning")),
            {True: "bit for bit", False: "NO", None: "-"}[task["unchanged"]],
        ]
        for name, task in found.items()
    ]  # fmt: skip
    head = ["task", "learned by", "AUC", "best possible", "positives", "gate", "registry", "version",
            "trained", "seconds", "old tasks"]  # fmt: skip
    note = """<p class=dim>AUC on the test days. Best possible: what the generator's hidden truth scores on the same
rows. Trained: parameters of the head over those of the backbone, embeddings counted in neither. Seconds: of tuning (and
of representing the rows, where this head was the first to need them) over those of training the backbone. Old tasks:
whether their predictions and every tensor of the backbone are as before, bit for bit.</p>"""
    return folded(head, rows, SEEN, MOST) + note


def main(params: str, artifacts: str, data: str, out: str, since: str | None = None) -> None:
    """python -m tasks.report params.yaml artifacts data artifacts/report/index.html [SINCE]

    SINCE: seconds since 1970; what started later ran in this run. Without it the newest `dvc repro` or flow is it.
    """
    found, kept = publish(params, Path(artifacts), Path(data), Path(out), float(since) if since else None)
    width = max(map(len, found), default=4)
    print(f"{'task':<{width}}  test AUC  best possible")
    for name, task in found.items():
        best = "-" if task["best"] is None else f"{task['best']:.4f}"
        print(f"{name:<{width}}  {task['auc']:.4f}    {best}" if task["auc"] is not None else f"{name:<{width}}  -")
    print(f"report: {out}" + (f", and with {len(kept)} runs in MLflow" if kept else ""))


if __name__ == "__main__":
    run(main)
