"""The unit that flows chain: one DVC stage brought up to date, tried again where that may help."""

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE

from tasks.repro import StageFailed, repro

__all__ = ["make"]

TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h: the work unit says that trying again may help


def _worth_another_try(_task, _run, state) -> bool:
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, StageFailed) and failure.status == TEMPORARY


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,  # only DVC knows what is stale
    retries=3,
    retry_delay_seconds=[10, 60, 300],
    retry_condition_fn=_worth_another_try,
)
def make(stage: str, single: bool = False) -> list[str]:
    """`repro`, as a task of Prefect: again after 10 s, a minute and five where a command exits with 75 (network)."""
    run = runtime.flow_run.id  # known in every process that works for this flow, also on another host
    return repro(stage, single, f"flow-{run}" if run else "")
