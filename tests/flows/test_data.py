"""The flow `data`: order, and what a refused dataset stops."""

import pytest

from flows import data as module
from flows.data import DataFailed
from tasks.repro import StageFailed


@pytest.fixture
def stages(made, monkeypatch):
    monkeypatch.setattr(module, "make", made)
    return made


def test_order(stages):
    ran = module.data.fn()
    assert stages == [
        "-s guard",
        "-s fetch@sample",
        "-s fetch@other",
        "-s data.dvc",
        "-s ingest@sample",
        "-s ingest@other",
    ]
    assert ran == [stage.removeprefix("-s ") for stage in stages]


def test_a_refused_dataset_does_not_hold_up_the_others(stages):
    stages.broken = {"fetch@sample"}
    with pytest.raises(DataFailed, match=r"(?s)1 of 2 datasets failed.*sample: stage fetch@sample failed: it broke"):
        module.data.fn()
    assert "-s ingest@sample" not in stages
    assert stages[-1] == "-s ingest@other"


def test_all_refused_datasets_are_named_at_once(stages):
    stages.broken = {"fetch@sample", "ingest@other"}
    with pytest.raises(DataFailed, match=r"(?s)2 of 2.*\nsample: .*\nother: stage ingest@other"):
        module.data.fn()


def test_nothing_is_fetched_over_somebodys_own_files(stages):
    stages.broken = {"guard"}
    with pytest.raises(StageFailed):
        module.data.fn()
    assert stages == ["-s guard"]
