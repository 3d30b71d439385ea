"""Recommenders of items: candidate generators and next-item models side by side, then what is built on them."""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows._command import finish, start
from flows._runner import Runner
from flows.language import ModelsFailed
from tasks.command import run
from tasks.make import make
from tasks.notice import standings
from tasks.prune import prune
from tasks.repro import alone
from tasks.settings import read

__all__ = ["recommender", "recommenders", "whole"]

OTHERS = {"item_index": "indexes", "rerank": "rerank", "release": "releases", "bandit": "bandits"}  # stage -> its part
STEPS = ("made_of", "recommender", "gate_recommender", "promote_recommender")


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def recommender(name: str) -> list[str]:
    """Train, judge and promote one recommender: the stages that ran."""
    return [ran for step in STEPS for ran in make(f"{step}@{name}", single=True)]


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def whole(stage: str) -> list[str]:
    """A stage, and whatever it reads that is not up to date, such as its data: the stages that ran."""
    return make(stage)


@flow(log_prints=True, task_runner=Runner())
def recommenders() -> dict[str, list[str]]:
    """Bring all that stands below `recommenders` up to date, then remove what retired ones left.

    An index and a reordering are not tried when their own recommender failed.

    Returns:
        "data", each recommender, and every other stage by its own name -> the stages that ran for it.

    Raises:
        StageFailed: the data failed.
        ModelsFailed: at the end, when all others are done; names each recommender and what its stage said.
        Busy: another run holds this checkout.
    """
    every = read("params.yaml:recommenders")
    chosen = every.get("models") or {}
    last = {}  # stage -> the recommender that it reads
    for stage, part in OTHERS.items():
        for name in (entries := every.get(part) or {}):
            last[f"{stage}@{name}"] = name if stage == "item_index" else entries[name].get("of")
    with alone():
        make("registry", single=True)  # a registry that was lost makes each promotion stale
        shared = dict.fromkeys(f"ingest@{entry['data']}" for entry in chosen.values())
        ran = {"data": [stage for name in shared for stage in make(name)]}
        futures = {name: recommender.submit(name) for name in chosen}
        results = {name: future.result(raise_on_failure=False) for name, future in futures.items()}
        for stage, of in last.items():  # one after the other: two may wait for one data set
            if not isinstance(results.get(of), BaseException):
                results[stage] = whole.submit(stage).result(raise_on_failure=False)
        retired = prune("params.yaml", "dvc.lock")
    said = [f"- **{stage}** was not tried: {of} failed" for stage, of in last.items() if stage not in results]
    said += [f"- removed, as its recommender is retired: {path}" for path in retired]
    rows = lambda ran: standings(ran, Path("artifacts/recommenders"))
    return finish("recommenders", "Recommenders", ran, results, said, rows, ModelsFailed, "recommenders")


if __name__ == "__main__":
    run(lambda: start(recommenders))
