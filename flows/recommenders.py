"""Recommenders of items: candidate generators and next-item models of params.yaml, side by side."""

import os
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows._command import settled, start
from flows.language import ModelsFailed
from tasks.command import run
from tasks.make import alone, make
from tasks.notice import notice, standings
from tasks.prune import prune
from tasks.settings import read

__all__ = ["recommender", "recommenders"]

# Chains wait in tasks/slots.py for a device, so more workers than devices cost nothing and overlap gates with training.
WORKERS = int(os.environ.get("ROOTSTOCK_WORKERS", "4"))
STEPS = ("made_of", "recommender", "gate_recommender", "promote_recommender")


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def recommender(name: str) -> list[str]:
    """Train, judge and promote one recommender: the stages that ran."""
    return [ran for step in STEPS for ran in make(f"{step}@{name}", single=True)]


@flow(log_prints=True, task_runner=ThreadPoolTaskRunner(max_workers=WORKERS))
def recommenders() -> dict[str, list[str]]:
    """Bring every recommender below `recommenders.models` up to date, then remove what retired ones left.

    Returns:
        "data" and each recommender -> the stages that ran for it.

    Raises:
        StageFailed: the data failed.
        ModelsFailed: at the end, when all others are done; names each recommender and what its stage said.
        Busy: another run holds this checkout.
    """
    chosen = read("params.yaml:recommenders.models") or {}
    with alone():
        make("registry", single=True)  # a registry that was lost makes each promotion stale
        shared = dict.fromkeys(f"ingest@{entry['data']}" for entry in chosen.values())
        ran = {"data": [stage for name in shared for stage in make(name)]}
        futures = {name: recommender.submit(name) for name in chosen}
        results = {name: future.result(raise_on_failure=False) for name, future in futures.items()}
        retired = prune("params.yaml", "dvc.lock")
    done, failed, words = settled(results)
    ran |= done
    words += [f"- removed, as its recommender is retired: {path}" for path in retired]
    notice("recommenders", "Recommenders", standings(ran, Path("artifacts/recommenders")), "\n".join(words))
    if failed:
        raise ModelsFailed(
            f"{len(failed)} of {len(results)} recommenders failed, the others are done\n" + "\n".join(words)
        )
    return ran


if __name__ == "__main__":
    run(lambda: start(recommenders))
