"""The scheduled run: new data, or anything else stale? Then exactly that, and a report."""

from pathlib import Path

from prefect import flow

from flows._command import start
from flows.data import data
from flows.recommend import recommend
from tasks.command import run
from tasks.make import alone, make, stale
from tasks.notice import notice, tables
from tasks.prune import prune
from tasks.settings import read

__all__ = ["watch"]

DATA = ("guard", "fetch@", "data.dvc", "ingest@")


@flow(log_prints=True)
def watch() -> list[str]:
    """Bring up to date what is stale, the data first; nothing new takes seconds and makes no version.

    New data are a source whose bytes changed. Drift is reported, never acted upon alone: it cannot come without new
    data, and data that drifted too far are refused at the door.

    Returns:
        The stages found stale, before and after the data were brought up to date.

    Raises:
        DataFailed: new data were refused; nothing is trained on them, and the last good version stays.
        StageFailed, TasksFailed, Busy: see the flow `recommend`.
    """
    with alone():
        make("registry", single=True)  # a registry that was lost makes each promotion stale
        found = stale()
        retired = prune("params.yaml", "dvc.lock")
    if any(stage.startswith(DATA) for stage in found):
        data()
    left = [stage for stage in stale() if not stage.startswith(DATA)]
    if left:
        recommend()
    found = list(dict.fromkeys(found + left))
    words = [f"- stale: {stage}" for stage in found] + [f"- removed, its task is retired: {path}" for path in retired]
    rows = tables(list(read("params.yaml:datasets")), Path("artifacts/ingest"))
    notice("watch", "Watch", rows, "\n".join(words) or "Nothing new: nothing ran, no version was made.")
    return found


if __name__ == "__main__":
    run(lambda: start(watch))
