"""The flow `recommenders`: data once, then each model's chain; one that fails holds up no other."""

from concurrent.futures import Future
from pathlib import Path

import pytest
import yaml

from flows import recommenders as module
from flows.language import ModelsFailed
from tasks.make import StageFailed

CHAIN = module.recommender.fn


class Inline:
    """Stands for a Prefect task: runs its function at once, no server."""

    class Future(Future):
        def result(self, raise_on_failure: bool = True):
            return self.exception() or super().result()

    def submit(self, *given) -> Future:
        future = self.Future()
        try:
            future.set_result(CHAIN(*given))
        except StageFailed as error:
            future.set_exception(error)
        return future


@pytest.fixture
def stages(made, monkeypatch):
    params = yaml.safe_load(Path("params.yaml").read_text())
    models = {
        "similar": {"method": "retrieval/als", "data": "sample"},
        "next": {"method": "session/sasrec", "data": "sample"},
    }
    Path("params.yaml").write_text(
        yaml.safe_dump(params | {"recommenders": {"models": models, "gates": {}}}, sort_keys=False)
    )
    monkeypatch.setattr(module, "make", made)
    monkeypatch.setattr(module, "recommender", Inline())
    return made


def chain(name: str) -> list[str]:
    return [f"-s {step}@{name}" for step in ("made_of", "recommender", "gate_recommender", "promote_recommender")]


def test_order(stages):
    ran = module.recommenders.fn()
    assert stages == ["-s registry", "ingest@sample", *chain("similar"), *chain("next")]
    assert ran["next"] == ["made_of@next", "recommender@next", "gate_recommender@next", "promote_recommender@next"]


def test_a_failed_one_holds_up_no_other(stages):
    stages.broken = {"recommender@similar"}
    with pytest.raises(
        ModelsFailed, match=r"(?s)1 of 2 recommenders failed.*similar.*recommender@similar failed: it broke"
    ):
        module.recommenders.fn()
    assert stages[-4:] == chain("next")
    assert "-s gate_recommender@similar" not in stages


def test_nothing_is_trained_without_data(stages):
    stages.broken = {"ingest@sample"}
    with pytest.raises(StageFailed):
        module.recommenders.fn()
    assert stages == ["-s registry", "ingest@sample"]
