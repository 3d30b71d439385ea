"""The scheduled run: new data, drift, or anything else stale? Then exactly that, and a report."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from flows._command import start
from flows.data import data
from flows.distill import distill
from flows.language import ModelsFailed, language
from flows.recommend import TasksFailed, recommend
from flows.recommenders import recommenders
from tasks.command import run
from tasks.files import read_if_there
from tasks.make import make
from tasks.notice import notice, tables
from tasks.prune import prune
from tasks.repro import StageFailed, alone, stale, why_stale
from tasks.settings import read

__all__ = ["DRIFT", "flow_of", "look", "watch"]

DRIFT = "rootstock.drift"  # the event that an automation can listen to
# Who brings a stage: the flow of the part of params.yaml that dvc.yaml runs it for; of one stage alone, what is below.
FLOWS = ("data", "recommend", "recommenders", "language", "distill")
PARTS = {"datasets": "data"} | {name: name for name in FLOWS[1:]}
ALONE = {
    **dict.fromkeys(("guard", "data.dvc"), "data"),
    **dict.fromkeys(("registry", "listing_encoder", "features", "vectors", "backbone", "gate_backbone",
                     "promote_backbone"), "recommend"),
    **dict.fromkeys(("tokenizer", "near"), "language"),
}  # fmt: skip
INGESTED, MONITORED = "artifacts/ingest", "artifacts/monitor"


@task(task_run_name="monitor {name}", cache_policy=NO_CACHE)
def look(name: str) -> list[str]:
    """Compare a data set's newest days with those trained on, if that is still to do: what is over a threshold.

    Features that a model reads are brought up to date first. What is over becomes the event DRIFT as well.
    """
    from tasks.monitor import alarms, due, monitor  # matplotlib and torch, on days with new data only

    out, settings = Path(MONITORED, f"{name}.json"), read("params.yaml").get("monitor")
    if not due(settings, Path(INGESTED, name), out):
        return []
    chosen, features, models = read("params.yaml:recommend"), None, []
    if name == chosen["data"]:
        make("features")
        features = Path("artifacts/features")
        models = [f"recommend-{each}" for each in ("backbone", *chosen["tasks"], *(chosen.get("clicks") or {}))]
    lines = alarms(monitor(settings, name, Path(INGESTED, name), out, features, models))
    if lines:
        resource = {"prefect.resource.id": f"rootstock.dataset.{name}", "prefect.resource.name": name}
        emit_event(DRIFT, resource, payload={"dataset": name, "over": lines})
    return lines


@flow(log_prints=True)
def watch() -> list[str]:
    """Bring up to date what is stale, the data first; nothing new takes seconds and makes no version.

    New data are a source whose bytes changed. They are compared with those trained on: what lies over a threshold of
    `monitor` is told in the report and as an event, and never trains anything alone, as it cannot come without new
    data. With `monitor.retrain: over_threshold` it is the other way round: DVC says that models are stale, but what is
    stale for nothing else than new data within the thresholds waits. Data that drifted too far are refused at the door.

    Returns:
        The stages found stale, before and after the data were brought up to date.

    Raises:
        LookupError: a stage of dvc.yaml belongs to no flow; nothing was run.
        DataFailed: new data were refused; nothing is trained on them, and the last good version stays.
        StageFailed, TasksFailed, ModelsFailed, Busy: see the flows; what failed in one does not hold up the next.
        ValueError, OSError: new data cannot be compared; models were brought up to date all the same.
    """
    graph, names = read("dvc.yaml:stages"), list(read("params.yaml:datasets"))
    bring = {"recommend": recommend, "recommenders": recommenders, "language": language, "distill": distill}
    with alone():
        make("registry", single=True)  # a registry that was lost makes each promotion stale
        make("listing_encoder", single=True)  # an alias that moved makes the listings' vectors stale
        found = stale()
        retired = prune("params.yaml", "dvc.lock")
    if "data" in {flow_of(stage, graph) for stage in found}:
        data()
    failed, words = [], []
    with alone():
        for name in names:
            try:
                words += [f"- **drift** in {name}: {line}" for line in look(name)]
            except (ValueError, OSError) as error:
                failed.append(error)
                words.append(f"- **{name}** was not compared with what was trained on: {error}")
    calm = _calm(names)
    while wanted := _wanted(left := why_stale(), graph, calm, bring):
        found += left
        try:
            bring.pop(wanted)()  # each at most once: what failed in it stays stale
        except (StageFailed, TasksFailed, ModelsFailed) as error:
            failed.append(error)
    found = list(dict.fromkeys([*found, *left]))
    waits = [stage for stage, why in left.items() if _only_new_data(why, calm)]
    words += [f"- stale: {stage}" + ", and waits: its new data are within the thresholds" * (stage in waits)
              for stage in found]  # fmt: skip
    words += [f"- removed, its task is retired: {path}" for path in retired]
    rows = tables(names, Path(INGESTED))
    notice("watch", "Watch", rows, "\n".join(words) or "Nothing new: nothing ran, no version was made.")
    if failed:
        raise failed[0]  # the others, if there are any, stand in their own flow's report
    return found


def flow_of(stage: str, graph: Mapping[str, Mapping]) -> str:
    """The flow that brings a stage up to date: one of FLOWS.

    Args:
        stage: such as `prompt@offer_make`, or its name alone.
        graph: the `stages` of dvc.yaml.

    Raises:
        LookupError: no flow does.
    """
    name = stage.partition("@")[0]
    part = str(graph.get(name, {}).get("foreach", "")).removeprefix("${").partition(".")[0].rstrip("}")
    known = PARTS.get(part) or ALONE.get(name)
    if known is None:
        raise LookupError(f"stage {name} of dvc.yaml belongs to no flow, so no scheduled run would bring it up to "
                          f"date; run it for an entry of {', '.join(PARTS)} in params.yaml, or add it to ALONE in "
                          f"flows/watch.py and to its flow")  # fmt: skip
    return known


def _wanted(left: Mapping[str, list], graph: Mapping, calm: set[str], bring: Iterable[str]) -> str | None:
    """The first flow that has something to do, of those that have not run."""
    stages = [stage for stage, why in left.items() if not _only_new_data(why, calm)]
    asked = {flow_of(stage, graph) for stage in stages}
    return next((name for name in bring if name in asked), None)


def _calm(names: Iterable[str]) -> set[str]:
    """What new data changed, of data sets within the thresholds; empty when new data always train."""
    chosen = read("params.yaml").get("monitor") or {}
    if chosen.get("retrain", "always") != "over_threshold":
        return set()
    quiet = set()
    for name in names:
        manifest = read_if_there(Path(INGESTED, name, "manifest.json"))
        seen = read_if_there(Path(MONITORED, f"{name}.json"))
        if seen.get("over") == [] and seen["data"] == manifest.get("digest"):
            quiet.add(f"{INGESTED}/{name}")
    if f"{INGESTED}/{read('params.yaml:recommend.data')}" in quiet:
        quiet |= {"artifacts/features", "artifacts/vectors"}
    return quiet


def _only_new_data(why: list, calm: set[str]) -> bool:
    """Whether a stage is stale for nothing else than new data that lie within the thresholds."""
    told = [reason.get("changed deps") if isinstance(reason, dict) and len(reason) == 1 else None for reason in why]
    return bool(told) and all(deps and set(deps) <= calm for deps in told)


if __name__ == "__main__":
    run(lambda: start(watch))
