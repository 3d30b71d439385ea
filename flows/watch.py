"""The scheduled run: new data, or anything else stale? Then exactly that, and a report."""

from pathlib import Path

from prefect import flow

from flows._command import start
from flows.data import data
from flows.language import ModelsFailed, language
from flows.recommend import TasksFailed, recommend
from tasks.command import run
from tasks.make import StageFailed, alone, make, stale
from tasks.notice import notice, tables
from tasks.prune import prune
from tasks.settings import read

__all__ = ["watch"]

DATA = ("guard", "fetch@", "data.dvc", "ingest@")
LANGUAGE = (
    "tokenizer", "tokens@", "parts@", "pretrain@", "gate_pretrain@", "promote_pretrain@", "finetune@", "gate_finetune@",
    "promote_finetune@",
)  # fmt: skip


@flow(log_prints=True)
def watch() -> list[str]:
    """Bring up to date what is stale, the data first; nothing new takes seconds and makes no version.

    New data are a source whose bytes changed. Drift is reported, never acted upon alone: it cannot come without new
    data, and data that drifted too far are refused at the door.

    Returns:
        The stages found stale, before and after the data were brought up to date.

    Raises:
        DataFailed: new data were refused; nothing is trained on them, and the last good version stays.
        StageFailed, TasksFailed, ModelsFailed, Busy: see the flows `recommend` and `language`; what failed in the
            first does not hold up the second.
    """
    with alone():
        make("registry", single=True)  # a registry that was lost makes each promotion stale
        found = stale()
        retired = prune("params.yaml", "dvc.lock")
    if any(stage.startswith(DATA) for stage in found):
        data()
    left = [stage for stage in stale() if not stage.startswith(DATA)]
    of_language = {stage.startswith(LANGUAGE) for stage in left}
    failed = []
    for bring in [recommend] * (False in of_language) + [language] * (True in of_language):
        try:
            bring()
        except (StageFailed, TasksFailed, ModelsFailed) as error:
            failed.append(error)
    found = list(dict.fromkeys(found + left))
    words = [f"- stale: {stage}" for stage in found] + [f"- removed, its task is retired: {path}" for path in retired]
    rows = tables(list(read("params.yaml:datasets")), Path("artifacts/ingest"))
    notice("watch", "Watch", rows, "\n".join(words) or "Nothing new: nothing ran, no version was made.")
    if failed:
        raise failed[0]  # the other one, if there is one, stands in its own flow's report
    return found


if __name__ == "__main__":
    run(lambda: start(watch))
