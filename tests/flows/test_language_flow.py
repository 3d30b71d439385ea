"""The flow `language`: what is shared once, then recipes, then what is fine-tuned from those that got through."""

from pathlib import Path

import pytest
import yaml
from _inline import Inline

from flows import language as module
from flows.language import ModelsFailed
from tasks.files import write_json
from tasks.repro import StageFailed
from tasks.settings import SettingsError


@pytest.fixture
def stages(made, monkeypatch):
    monkeypatch.setattr(module, "make", made)
    for name in ("pretrain", "finetune", "writer"):
        monkeypatch.setattr(module, name, Inline(getattr(module, name).fn))
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


def with_writers(**parts) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["language"] |= parts
    Path("params.yaml").write_text(yaml.safe_dump(params))


def test_models_that_write_come_last_and_in_their_order(stages):
    with_writers(instructed={"shop": {}}, continued={"zh": {}}, generated={"shop": {}})
    ran = module.language.fn()
    assert stages[-3:] == ["promote_continued@zh", "promote_instructed@shop", "generated@shop"]
    assert ran["shop"] == ["promote_instructed@shop"]
    assert ran["generated@shop"] == ["generated@shop"]


def test_a_failed_writer_is_named_at_the_end(stages):
    with_writers(instructed={"shop": {}}, continued={"zh": {}})
    stages.broken = {"promote_continued@zh"}
    with pytest.raises(ModelsFailed, match=r"(?s)1 of 7 models failed.*zh"):
        module.language.fn()
    assert stages[-1] == "promote_instructed@shop"


def test_two_models_of_one_name_are_refused_before_anything_runs(stages):
    with_writers(continued={"category": {}})
    with pytest.raises(SettingsError, match="category stands below several of pretrain, finetune, continued"):
        module.language.fn()
    assert stages == []


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
