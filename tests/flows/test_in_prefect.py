"""Once through Prefect itself: chains side by side, the report in its UI, the state that a failure leaves."""

import threading
import time

import pytest
from prefect import task
from prefect.client.orchestration import get_client

from flows import recommend as module
from flows.recommend import TasksFailed


def test_chains_run_side_by_side_and_a_failed_one_fails_the_flow(prefect, made, monkeypatch):
    made.broken = {"gate@buy_start"}
    together = threading.Barrier(3)  # breaks unless all three prompts are being tuned at the same time

    @task(task_run_name="{stage}")
    def make(stage: str, single: bool = False) -> list[str]:
        if stage.startswith("prompt@"):
            together.wait(30)
        return made(stage, single)

    monkeypatch.setattr(module, "make", make)
    state = module.recommend(return_state=True)
    assert state.is_failed()
    with pytest.raises(TasksFailed, match=r"(?s)1 of 3 tasks failed.*buy_start.*stage gate@buy_start failed: it broke"):
        state.result()
    assert made[0] == "promote_backbone"
    chains = {
        f"-s {step}@{n}" for n in ("offer_make", "buy_start", "buy_comp") for step in ("prompt", "gate", "promote")
    }
    assert set(made[1:]) == chains - {"-s promote@buy_start"}
    with get_client(sync_client=True) as client:
        report = next(a for a in client.read_artifacts() if a.key == "recommend")
        names = _names_of_runs(client, {"promote_backbone", "offer_make", "prompt@offer_make"})
    assert "**buy_start** failed: stage gate@buy_start failed: it broke" in report.data
    assert {"promote_backbone", "offer_make", "prompt@offer_make"} <= names


def _names_of_runs(client, expected: set[str]) -> set[str]:
    """Names of the task runs, once all the expected are there: Prefect's server learns of a run by events, late."""
    for _ in range(300):
        names = {run.name for run in client.read_task_runs()}
        if expected <= names:
            break
        time.sleep(0.2)
    return names
