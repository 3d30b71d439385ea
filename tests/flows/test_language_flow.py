"""The flow `language`: what is shared once, then recipes, then what is fine-tuned from those that got through."""

from concurrent.futures import Future
from pathlib import Path

import pytest
import yaml

from flows import language as module
from flows.language import ModelsFailed
from tasks.files import write_json
from tasks.make import StageFailed
from tasks.settings import SettingsError


class Inline:
    """Stands for a Prefect task: runs its function at once, no server."""

    class Future(Future):
        def result(self, raise_on_failure: bool = True):
            return self.exception() or super().result()

    def __init__(self, chain):
        self.chain = chain

    def submit(self, name: str) -> Future:
        future = self.Future()
        try:
            future.set_result(self.chain(name))
        except StageFailed as error:
            future.set_exception(error)
        return future


CHAINS = {name: getattr(module, name).fn for name in ("pretrain", "finetune")}


@pytest.fixture
def stages(made, monkeypatch):
    monkeypatch.setattr(module, "make", made)
    for name, chain in CHAINS.items():
        monkeypatch.setattr(module, name, Inline(chain))
    return made


def test_order(stages):
    ran = module.language.fn()
    assert stages == [
        "-s registry", "tokens@other", "ingest@sample", "ingest@other",
        *(f"-s {step}@{name}" for name in ("bert", "gpt2")
          for step in ("parts", "pretrain", "gate_pretrain", "promote_pretrain")),
        *(f"-s {step}@{name}" for name in ("category", "entailment", "polarity")
          for step in ("finetune", "gate_finetune", "promote_finetune")),
    ]  # fmt: skip
    assert ran["polarity"] == ["finetune@polarity", "gate_finetune@polarity", "promote_finetune@polarity"]


def test_a_failed_recipe_stops_its_own_tasks_only(stages, capsys):
    stages.broken = {"pretrain@bert"}
    with pytest.raises(ModelsFailed, match=r"(?s)1 of 3 models failed.*bert.*stage pretrain@bert failed: it broke"):
        module.language.fn()
    assert "-s gate_pretrain@bert" not in stages
    assert "-s finetune@category" not in stages
    assert stages[-1] == "-s promote_finetune@entailment"
    out = capsys.readouterr().out
    assert "**category** was not tried: its recipe bert failed" in out
    assert "**polarity** was not tried: its recipe bert failed" in out


def test_a_failed_task_stops_no_other(stages):
    stages.broken = {"gate_finetune@category"}
    with pytest.raises(ModelsFailed, match=r"1 of 5 models failed"):
        module.language.fn()
    assert "-s promote_finetune@category" not in stages
    assert "-s promote_finetune@polarity" in stages


def test_without_tokens_nothing_is_trained(stages):
    stages.broken = {"tokens@other"}
    with pytest.raises(StageFailed):
        module.language.fn()
    assert stages == ["-s registry", "tokens@other"]


def test_a_task_from_a_recipe_that_is_not_there_is_refused_before_anything_runs(stages):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["language"]["finetune"]["category"]["from"] = "brt"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SettingsError, match="category from brt; language.pretrain has bert, gpt2"):
        module.language.fn()
    assert stages == []


def test_report_shows_verdicts_and_versions(stages, capsys):
    write_json("artifacts/language/gate/bert/verdict.json", {"passed": True})
    write_json("artifacts/language/receipt/bert.json", {"status": "promoted", "version": 3, "champion": 3})
    write_json("artifacts/gate/category/verdict.json", {"passed": True})  # a recommender task of the same name
    module.language.fn()
    out = capsys.readouterr().out
    steps = "parts@bert, pretrain@bert, gate_pretrain@bert, promote_pretrain@bert"
    assert f"| bert | {steps} | open | promoted | 3 | yes |" in out
    assert "| category | finetune@category, gate_finetune@category, promote_finetune@category | - | - | - | - |" in out


def test_a_retired_task_is_removed(stages, capsys):
    gone = Path("artifacts/finetune/spam/run.json")
    write_json(gone, {})
    Path("dvc.lock").write_text(f"stages:\n  finetune@spam:\n    cmd: x\n    outs:\n    - path: {gone}\n")
    module.language.fn()
    assert not gone.exists()
    assert f"its model is retired: {gone}" in capsys.readouterr().out
