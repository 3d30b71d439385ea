"""The whole MerRec benchmark on any MerRec-schema data: six groups of models, one table with intervals.

    python -m tasks.merrec_benchmark benchmarks/merrec.yaml:small sample INGEST OUT

INGEST is the folder of an ingested data set, `sample` its file in tasks/datasets. OUT takes features/ (made once),
parts/ (one file for each model and seed, written when it is done), checkpoints/ (of the model in work), table.md,
table.json and picture.png. The same command goes on where it stopped; other settings or data start anew.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from io import BytesIO
from json import dumps
from pathlib import Path

import models
from models import names
from tasks.command import run
from tasks.features import make_features
from tasks.fetch import dataset
from tasks.files import digest, read_if_there, read_json, write_json, write_text
from tasks.labels import TaskError
from tasks.merrec_groups import GROUPS, Data
from tasks.sequences import SequenceError
from tasks.settings import SettingsError, read
from tasks.slots import slot
from tasks.training import use_threads

__all__ = ["benchmark"]

KNOWN = ("seeds", "features", "negatives", "tasks", *GROUPS)
FAMILIES = {"ctr": "recommend.ctr", "multitask": "recommend"}  # the others: recommend.session
FLOORS = ("popularity", "item_knn")
WIDE = 8  # metrics of a table whose models are columns, not rows


def benchmark(settings: Mapping, name: str, ingest: Path, out: Path) -> Path:
    """Run what is not there yet, and write the table.

    Args:
        settings: `seeds`, `features`, `negatives`, `tasks` (declared as recommend.tasks) and the groups, each with
            `models` (name -> its settings), `training` and its budgets: `rows` of training, `cases` of evaluation.
        name: of the data set.
        ingest: folder of its ingested log.
        out: see the module's first lines.

    Returns:
        `out`/table.md.

    Raises:
        SettingsError: an unknown key, group or model; nothing is run.
        FeatureError, EmptySplit: the rows of click and multi-task models cannot be made.
        FloatingPointError: a model diverged; what was done before stays.
    """
    use_threads()
    _check(settings)
    module = dataset(name)
    features = out / "features"
    declared = {key: settings[key] for key in ("features", "negatives") if key in settings}
    source = _key(declared, digest(ingest / "manifest.json"))
    if read_if_there(out / "features.json").get("key") != source:
        make_features(declared, ingest, features, module.FEATURES, module.EVENTS)
        write_json(out / "features.json", {"key": source})
    data = Data(ingest, features, tuple(module.EVENTS), settings["tasks"])
    rows, refused, code = [], {}, code_digest()
    for group in (group for group in GROUPS if group in settings):
        for model, own in settings[group]["models"].items():
            for seed in settings.get("seeds", [7]) if model not in FLOORS else [0]:
                told = {key: value for key, value in settings[group].items() if key != "models"}
                key = _key(told, own, seed, source, settings["tasks"], code)
                try:
                    rows.append(_part(data, group, told, model, own or {}, seed, key, out))
                except (SequenceError, TaskError) as error:
                    refused[f"{group} {model}"] = str(error)
    table = summarise(rows)
    write_json(out / "table.json", {"rows": table, "not_run": refused})
    _write_picture(out / "picture.png", table)
    written = write_text(out / "table.md", markdown(name, table, refused))
    print(f"merrec_benchmark: {len(table)} models, {len(refused)} not run: {written}")
    return written


def code_digest() -> str:
    """Of all methods: other code, other results."""
    return digest(Path(models.__file__).parent)


def _part(data: Data, group: str, told: Mapping, model: str, own: Mapping, seed: int, key: str, out: Path) -> dict:
    """One model of one seed, from its file or run now."""
    path = out / "parts" / f"{group}-{model}-{seed}.json"
    if (found := read_if_there(path)).get("key") == key:
        return found
    checkpoints = out / "checkpoints" / key[:16]
    with slot() as device:
        result = GROUPS[group](data, told, model, own, seed, checkpoints, device)
    told_as = {"key": key, "group": group, "model": model, "seed": seed, "order": list(result.metrics)}
    write_json(path, {**told_as, **asdict(result)})
    shutil.rmtree(checkpoints, ignore_errors=True)
    first = next(iter(result.metrics.items()))
    print(f"{group} {model}, seed {seed}: {first[0]} {first[1]['value']:.4f} in {result.seconds:.0f} s", flush=True)
    return read_json(path)


def summarise(parts: list[dict]) -> list[dict]:
    """One row for each model: mean over its seeds of values and of the ends of their intervals."""
    models_found: dict[tuple[str, str], list[dict]] = {}
    for part in parts:
        models_found.setdefault((part["group"], part["model"]), []).append(part)
    mean = lambda values: sum(values) / len(values) if None not in values else None
    table = []
    for (group, model), same in models_found.items():
        metrics = {
            metric: {end: mean([part["metrics"][metric][end] for part in same]) for end in ("value", "low", "high")}
            for metric in same[0]["order"]  # JSON sorts the metrics themselves
        }
        spent = {key: mean([part[key] for part in same]) for key in ("parameters", "epochs", "seconds")}
        table.append({"group": group, "model": model, "seeds": len(same), "metrics": metrics, **spent})
    return table


def markdown(name: str, table: list[dict], refused: Mapping[str, str]) -> str:
    """The table, a part for each group."""
    lines = [f"# MerRec benchmark on {name}", "",
             "Split by time, selected on val, test looked at once. Brackets: 95 % of resamples of the users, mean of "
             "the seeds; for milliseconds the quartiles of single requests, with and without skipping in turn (CPU "
             "time of one process; on a GPU wall time)."]  # fmt: skip
    for group in dict.fromkeys(row["group"] for row in table):
        rows = [row for row in table if row["group"] == group]
        metrics = list(dict.fromkeys(metric for row in rows for metric in row["metrics"]))
        cells = [["model", *metrics, "parameters", "best epoch", "s", "seeds"]]
        for row in rows:
            spent = [f"{row['parameters']:,.0f}", f"{row['epochs']:.1f}", f"{row['seconds']:.0f}", str(row["seeds"])]
            cells.append([row["model"], *(_cell(row["metrics"].get(metric)) for metric in metrics), *spent])
        if len(metrics) > WIDE:
            cells = list(zip(*cells, strict=True))
        head, *body = (f"| {' | '.join(line)} |" for line in cells)
        lines += ["", f"## {group}", "", head, f"|---|{'---:|' * (len(cells[0]) - 1)}", *body]
    if refused:
        lines += ["", "## not run", "", *(f"- {what}: {why}" for what, why in refused.items())]
    return "\n".join(lines) + "\n"


def _cell(value: Mapping | None) -> str:
    if value is None or value["value"] is None:
        return "-"
    if value["low"] is None or value["high"] is None:
        return f"{value['value']:.4f}"
    return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def _write_picture(path: Path, table: list[dict]) -> None:
    """One panel for each group: its first metric of every model, with the interval."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    groups = list(dict.fromkeys(row["group"] for row in table))
    if not groups:
        path.unlink(missing_ok=True)
        return
    figure = Figure(figsize=(3.6 * min(3, len(groups)), 2.8 * -(-len(groups) // 3)), dpi=120, layout="constrained")
    grid = figure.subplots(-(-len(groups) // 3), min(3, len(groups)), squeeze=False).ravel()
    for axes, group in zip(grid, groups, strict=False):
        rows = [row for row in table if row["group"] == group]
        told = list(rows[-1]["metrics"])
        metric = next((name for name in told if name in ("recall@20", "step 1 recall@20")), told[0])
        for place, row in enumerate(rows):
            value = row["metrics"].get(metric) or {"value": None}
            if value["value"] is not None:
                ends = [value["value"] if value[end] is None else value[end] for end in ("low", "high")]
                axes.plot(ends, [place, place], color="#1f77b4", linewidth=2)
                axes.plot(value["value"], place, "o", color="#1f77b4", markersize=5)
        axes.set_yticks(range(len(rows)), [row["model"] for row in rows], fontsize=7)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(group, fontsize=9)
        axes.set_xlabel(metric, fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    path.write_bytes(content.getvalue())


def _check(settings: Mapping) -> None:
    faults = [f"unknown key {key}; it has {', '.join(KNOWN)}" for key in settings if key not in KNOWN]
    faults += [] if settings.get("tasks") else ["tasks is missing: declare what click and multi-task models learn"]
    for group in (group for group in GROUPS if group in settings):
        told = settings[group]
        if missing := [key for key in ("models", "training") if key not in told]:
            faults.append(f"{group} has no {' and no '.join(missing)}")
            continue
        known = [*names(FAMILIES.get(group, "recommend.session")), *(FLOORS if group == "session" else ())]
        faults += [
            f"{group} has no model {model}; it has {', '.join(known)}" for model in told["models"] if model not in known
        ]
        asked = [told["task"]] if "task" in told else told.get("tasks", [])
        faults += [f"{group} asks for the task {task}, which `tasks` does not declare" for task in asked
                   if task not in settings.get("tasks", {})]  # fmt: skip
    if faults:
        raise SettingsError("merrec benchmark: " + "; ".join(faults))


def _key(*what) -> str:
    return sha256(dumps(what, sort_keys=True).encode()).hexdigest()


def main(address: str, name: str, ingest: str, out: str) -> None:
    benchmark(read(address), name, Path(ingest), Path(out))


if __name__ == "__main__":
    run(main)
