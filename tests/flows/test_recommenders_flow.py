"""The flow `recommenders`: data once, then each model's chain; one that fails holds up no other."""

from pathlib import Path

import pytest
import yaml
from _inline import Inline

from flows import recommenders as module
from flows.language import ModelsFailed
from tasks.repro import StageFailed


@pytest.fixture
def stages(made, monkeypatch):
    params = yaml.safe_load(Path("params.yaml").read_text())
    models = {
        "similar": {"method": "retrieval/als", "data": "sample"},
        "next": {"method": "session/sasrec", "data": "sample"},
    }
    rest = {"indexes": ["similar"], "rerank": {"wide": {"of": "similar"}, "narrow": {"of": "next"}},
            "releases": {"movies": {"data": "movies"}}, "bandits": {"shop": {}}, "gates": {}}  # fmt: skip
    params["recommenders"] = {"models": models} | rest
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    monkeypatch.setattr(module, "make", made)
    for name in ("recommender", "whole"):
        monkeypatch.setattr(module, name, Inline(getattr(module, name).fn))
    return made


def chain(name: str) -> list[str]:
    return [f"-s {step}@{name}" for step in ("made_of", "recommender", "gate_recommender", "promote_recommender")]


REST = ["item_index@similar", "rerank@wide", "rerank@narrow", "release@movies", "bandit@shop"]


def test_order(stages):
    ran = module.recommenders.fn()
    assert stages == ["-s registry", "ingest@sample", *chain("similar"), *chain("next"), *REST]
    assert ran["bandit@shop"] == ["bandit@shop"]
    assert ran["next"] == ["made_of@next", "recommender@next", "gate_recommender@next", "promote_recommender@next"]


def test_a_failed_one_holds_up_no_other(stages, capsys):
    stages.broken = {"recommender@similar"}
    with pytest.raises(
        ModelsFailed, match=r"(?s)1 of 5 recommenders failed.*similar.*recommender@similar failed: it broke"
    ):
        module.recommenders.fn()
    assert stages[-7:] == [*chain("next"), *REST[2:]]
    assert "**rerank@wide** was not tried: similar failed" in capsys.readouterr().out
    assert "-s gate_recommender@similar" not in stages


def test_nothing_is_trained_without_data(stages):
    stages.broken = {"ingest@sample"}
    with pytest.raises(StageFailed):
        module.recommenders.fn()
    assert stages == ["-s registry", "ingest@sample"]
