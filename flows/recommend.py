"""MPT-Rec on a marketplace's logs: one frozen backbone, then a prompt, a gate and a promotion for each task."""

from argparse import ArgumentParser
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows._command import finish, start
from flows._runner import Runner
from tasks.backfill import backfill
from tasks.command import run
from tasks.make import make
from tasks.notice import notice, standings
from tasks.prune import prune
from tasks.repro import alone
from tasks.settings import SettingsError, read

__all__ = ["TasksFailed", "chain", "recommend"]


class TasksFailed(ValueError):
    """Some tasks did not get through; the others did."""


STEPS = {"prompt": ("prompt", "gate", "promote"), "click": ("made_of_click", "click", "gate_click", "promote_click")}


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def chain(name: str, kind: str = "prompt") -> list[str]:
    """Tune the head of one task, or train one click model, judge it and promote it: the stages that ran."""
    return [ran for step in STEPS[kind] for ran in make(f"{step}@{name}", single=True)]


@flow(log_prints=True, task_runner=Runner())
def recommend(since: str | None = None, until: str | None = None) -> dict[str, list[str]]:
    """Bring the backbone up to date, then every task and click model side by side, then remove what retired ones left.

    Args:
        since, until: ISO dates of a past period to backfill instead; see tasks/backfill.py. Nothing is promoted then.

    Returns:
        "backbone", each task, and "listing encoder" where there are candidates -> the stages that ran for it.

    Raises:
        StageFailed: something shared failed: data, features, backbone.
        TasksFailed: at the end, when all others are done; names each task and what its stage said.
        Busy: another run holds this checkout.
    """
    if since or until:
        return _backfill(since, until)
    with alone():
        chosen = read("params.yaml:recommend")
        readers, clicks = chosen.get("encoders") or {}, chosen.get("clicks") or {}
        if both := sorted(set(clicks) & {*chosen["tasks"], "backbone"}):
            raise SettingsError(f"recommend.clicks: {', '.join(both)} is a task's name already, and would be the same "
                                f"registered model; name it otherwise")  # fmt: skip
        new = [stage for name in readers for stage in make(f"promote_listings@{name}")]  # an alias may move: before all
        ran = {"listing encoder": new} if readers else {}
        ran["backbone"] = make("promote_backbone")  # and all that it needs: data, features, backbone, gate
        futures = {name: chain.submit(name) for name in chosen["tasks"]}
        futures |= {name: chain.submit(name, "click") for name in clicks}
        results = {name: future.result(raise_on_failure=False) for name, future in futures.items()}
        retired = prune("params.yaml", "dvc.lock")

    def rows(ran: dict[str, list[str]]) -> list:
        tasks = {name: stages for name, stages in ran.items() if name not in clicks}
        judged_apart = {name: stages for name, stages in ran.items() if name in clicks}
        return standings(tasks, Path("artifacts")) + standings(judged_apart, Path("artifacts/clicks"))

    said = [f"- removed, as its task is retired: {path}" for path in retired]
    return finish("recommend", "Recommender tasks", ran, results, said, rows, TasksFailed, "tasks")


def _backfill(since: str | None, until: str | None) -> dict[str, list[str]]:
    chosen = read("params.yaml:recommend")
    gates = ["gate_backbone", *(f"gate@{name}" for name in chosen["tasks"])]
    with alone():
        words = backfill(chosen["data"], since, until, gates)
    notice("backfill", f"Backfill of {since or 'the first event'} until {until or 'the last'}", [], "\n".join(words))
    return {"backfill": gates}


def main(*words: str) -> None:
    """python -m flows.recommend [--since DATE] [--until DATE]"""
    parser = ArgumentParser(prog="python -m flows.recommend", description="Backbone, then every task of params.yaml.")
    parser.add_argument("--since", metavar="DATE", help="backfill a past period, from this day on, instead")
    parser.add_argument("--until", metavar="DATE", help="backfill a past period, up to this day, instead")
    start(recommend, **vars(parser.parse_args(words)))


if __name__ == "__main__":
    run(main)
