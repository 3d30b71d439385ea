"""What the tests of flows share: a checkout with a params.yaml, and `make` that only writes down what it was asked."""

import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from tasks.repro import StageFailed

PARAMS = """
datasets: {sample: {}, other: {}}
recommend:
  data: sample
  tasks: {offer_make: {}, buy_start: {}, buy_comp: {}}
language:
  tokens: [other]
  pretrain: {bert: {}, gpt2: {}}
  finetune:
    category: {from: bert, data: sample}
    entailment: {from: gpt2, data: sample}
    polarity: {from: bert, data: other}
distill:
  teacher: {from: finetune, name: category}
  data: ingest/sample
  methods: {kd: {}, pkd: {}}
  mixes: {tiny: {kd: {}, pkd: {}}}
"""
GRAPH = """
stages:
  prompt: {foreach: "${recommend.tasks}", do: {cmd: x}}
  finetune: {foreach: "${language.finetune}", do: {cmd: x}}
"""


class Made(list):
    """Stands for `make`: a list of the stages asked for. `broken`: those that fail."""

    broken: set[str] = set()

    def __call__(self, stage: str, single: bool = False) -> list[str]:
        self.append(f"-s {stage}" if single else stage)
        if stage in self.broken:
            raise StageFailed(stage, "it broke", 1)
        return [stage]


@pytest.fixture(scope="module")
def prefect():
    """A Prefect server of the test module's own."""
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),  # its thread is joined for a second a flow
    ):
        yield


@pytest.fixture
def made(tmp_path, monkeypatch) -> Made:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows._command.published", lambda: ("", []))  # its own test: test_finish.py
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    return Made()
