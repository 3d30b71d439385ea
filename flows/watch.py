"""The scheduled run: new data, or anything else stale? Then exactly that, and a report."""

from pathlib import Path

from prefect import flow

from flows._command import start
from flows.data import data
from flows.distill import distill
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
DISTILL = ("distill@", "gate_distill@", "promote_distill@", "mix@", "gate_mix@", "promote_mix@")


@flow(log_prints=True)
def watch() -> list[str]:
    """Bring up to date what is stale, the data first; nothing new takes seconds and makes no version.

    New data are a source whose bytes changed. Drift is reported, never acted upon alone: it cannot come without new
    data, and data that drifted too far are refused at the door.

    Returns:
        The stages found stale, before and after the data were brought up to date.

    Raises:
        DataFailed: new data were refused; nothing is trained on them, and the last good version stays.
        StageFailed, TasksFailed, ModelsFailed, Busy: see the flows `recommend`, `language` and `distill`; what
            failed in one does not hold up the next.
    """
    with alone():
        make("registry", single=True)  # a registry that was lost makes each promotion stale
        make("listing_encoder", single=True)  # an alias that moved makes the listings' vectors stale
        found = stale()
        retired = prune("params.yaml", "dvc.lock")
    if any(stage.startswith(DATA) for stage in found):
        data()
    left = [stage for stage in stale() if not stage.startswith(DATA)]
    models = any(stage.startswith(LANGUAGE) for stage in left)
    students = any(stage.startswith(DISTILL) for stage in left)
    others = any(not stage.startswith(LANGUAGE + DISTILL) for stage in left)
    failed = []
    # A new teacher makes its students stale, which shows only then.
    for bring in [recommend] * others + [language] * models + [distill] * (models or students):
        try:
            bring()
        except (StageFailed, TasksFailed, ModelsFailed) as error:
            failed.append(error)
    found = list(dict.fromkeys(found + left))
    words = [f"- stale: {stage}" for stage in found] + [f"- removed, its task is retired: {path}" for path in retired]
    rows = tables(list(read("params.yaml:datasets")), Path("artifacts/ingest"))
    notice("watch", "Watch", rows, "\n".join(words) or "Nothing new: nothing ran, no version was made.")
    if failed:
        raise failed[0]  # the others, if there are any, stand in their own flow's report
    return found


if __name__ == "__main__":
    run(lambda: start(watch))
