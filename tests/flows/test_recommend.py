"""The flow `recommend`: the shared part once, then a chain per task; a failure names its task and stops no other."""

from pathlib import Path

import pytest
from _inline import Inline

from flows import recommend as module
from flows.recommend import TasksFailed
from tasks.files import write_json
from tasks.repro import StageFailed
from tasks.settings import SettingsError


@pytest.fixture
def stages(made, monkeypatch):
    monkeypatch.setattr(module, "make", made)
    monkeypatch.setattr(module, "chain", Inline(module.chain.fn))
    return made


def test_shared_part_once_then_a_chain_per_task(stages):
    ran = module.recommend.fn()
    shared, *chains = stages
    assert shared == "promote_backbone"
    assert chains == [f"-s {step}@{name}" for name in ("offer_make", "buy_start", "buy_comp")
                      for step in ("prompt", "gate", "promote")]  # fmt: skip
    assert ran["buy_start"] == ["prompt@buy_start", "gate@buy_start", "promote@buy_start"]


def test_who_reads_the_listings_is_settled_before_the_backbone(stages, monkeypatch):
    plain = module.read
    told = {"encoders": {"kd": {"from": "distill"}, "tiny": {"from": "mix"}}}
    monkeypatch.setattr(module, "read", lambda address: plain(address) | told)
    ran = module.recommend.fn()
    assert stages[:3] == ["promote_listings@kd", "promote_listings@tiny", "promote_backbone"]
    assert ran["listing encoder"] == ["promote_listings@kd", "promote_listings@tiny"]


def test_click_models_have_chains_of_their_own(stages, monkeypatch):
    plain = module.read
    monkeypatch.setattr(module, "read", lambda address: plain(address) | {"clicks": {"ctr_like": {}}})
    ran = module.recommend.fn()
    steps = ["made_of_click@ctr_like", "click@ctr_like", "gate_click@ctr_like", "promote_click@ctr_like"]
    assert stages[-4:] == [f"-s {step}" for step in steps]
    assert ran["ctr_like"] == steps
    monkeypatch.setattr(module, "read", lambda address: plain(address) | {"clicks": {"buy_comp": {}}})
    with pytest.raises(SettingsError, match="buy_comp is a task's name already"):
        module.recommend.fn()


def test_one_failed_task_stops_no_other_and_fails_the_flow_at_the_end(stages, capsys):
    stages.broken = {"prompt@buy_start"}
    with pytest.raises(TasksFailed, match=r"(?s)1 of 3 tasks failed, the others are done.*buy_start.*it broke"):
        module.recommend.fn()
    assert "-s gate@buy_start" not in stages
    assert stages[-1] == "-s promote@buy_comp"
    assert "**buy_start** failed: stage prompt@buy_start failed: it broke" in capsys.readouterr().out


def test_without_a_backbone_no_task_is_tried(stages):
    stages.broken = {"promote_backbone"}
    with pytest.raises(StageFailed):
        module.recommend.fn()
    assert stages == ["promote_backbone"]


def test_report_shows_verdicts_and_versions(stages, capsys):
    write_json("artifacts/gate/offer_make/verdict.json", {"passed": True})
    write_json("artifacts/receipt/offer_make.json", {"status": "registered", "version": 3, "champion": True})
    write_json("artifacts/gate/buy_start/verdict.json", {"passed": False})
    module.recommend.fn()
    out = capsys.readouterr().out
    assert (
        "| offer_make | prompt@offer_make, gate@offer_make, promote@offer_make | open | registered | 3 | yes |" in out
    )
    assert "| buy_start | prompt@buy_start, gate@buy_start, promote@buy_start | closed | - | - | - |" in out


def test_a_retired_task_is_removed(stages, capsys):
    gone = Path("artifacts/prompt/item_like/head.json")
    write_json(gone, {})
    Path("dvc.lock").write_text(f"stages:\n  prompt@item_like:\n    cmd: x\n    outs:\n    - path: {gone}\n")
    module.recommend.fn()
    assert not gone.exists()
    assert f"its task is retired: {gone}" in capsys.readouterr().out


def test_backfill_is_an_experiment_that_promotes_nothing(stages, monkeypatch, capsys):
    calls, answers = [], [(0, []), (0, ["| metric |"])]
    monkeypatch.setattr("tasks.backfill.dvc", lambda *words: calls.append(words) or answers.pop(0))
    module.recommend.fn(since="2023-05-01", until="2023-05-09T12:00")
    name = "backfill-2023-05-01-2023-05-09T12-00"
    assert calls == [
        ("exp", "run", "--temp", "--force", "--name", name, "-S", "++datasets.sample.since='2023-05-01'",
         "-S", "++datasets.sample.until='2023-05-09T12:00'",
         "gate_backbone", "gate@offer_make", "gate@buy_start", "gate@buy_comp"),
        ("metrics", "diff", "--md", "HEAD", name),
    ]  # fmt: skip
    assert stages == []
    assert f"dvc exp apply {name}" in capsys.readouterr().out
    answers[:] = [(255, ["Running stage 'ingest@sample':", "error: no event in that period"])]
    with pytest.raises(StageFailed, match="error: no event in that period"):
        module.recommend.fn(since="1999-01-01")


@pytest.mark.parametrize(
    ("period", "message"),
    [
        ({"since": "yesterday"}, "since must be a date"),
        ({"since": "2023-05-09", "until": "2023-05-01"}, "is empty"),
        ({"since": "2023-05-01", "until": "2023-05-01"}, "is empty"),
    ],
)
def test_a_period_that_is_none(stages, period, message):
    with pytest.raises(SettingsError, match=message):
        module.recommend.fn(**period)
