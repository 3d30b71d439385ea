"""The flow `watch`: exactly what is stale, and nothing when nothing is."""

import math

import pytest

from flows import watch as module
from flows.data import DataFailed
from flows.recommend import TasksFailed
from tasks.files import write_json
from tasks.notice import drift, tables

MIX = {"item_view": {"rows": 9, "share": 0.9}, "item_like": {"rows": 1, "share": 0.1}}


@pytest.fixture
def called(made, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "make", made)
    monkeypatch.setattr(module, "data", lambda: calls.append("data"))
    monkeypatch.setattr(module, "recommend", lambda: calls.append("recommend"))
    monkeypatch.setattr(module, "language", lambda: calls.append("language"))
    monkeypatch.setattr(module, "distill", lambda: calls.append("distill"))
    return calls


def staleness(monkeypatch, *answers: list[str]) -> None:
    left = list(answers)
    monkeypatch.setattr(module, "stale", lambda: left.pop(0))


@pytest.mark.parametrize(
    ("before", "after", "calls"),
    [
        ([], [], []),
        (["prompt@offer_make"], ["prompt@offer_make"], ["recommend"]),
        (["fetch@sample"], ["features"], ["data", "recommend"]),
        (["fetch@other"], [], ["data"]),  # a dataset that no model reads
        (["finetune@category"], ["finetune@category", "gate_finetune@category"], ["language", "distill"]),
        (["distill@kd"], ["distill@kd", "promote_mix@tiny"], ["distill"]),
        (
            ["fetch@sample"],
            ["features", "tokens@corpora", "gate_backbone"],
            ["data", "recommend", "language", "distill"],
        ),
        (["data.dvc"], [], ["data"]),  # somebody edited data/: restored, and nothing is new
    ],
)
def test_exactly_what_is_stale(called, monkeypatch, before, after, calls):
    staleness(monkeypatch, before, after)
    assert module.watch.fn() == list(dict.fromkeys(before + after))
    assert called == calls


def test_a_lost_registry_is_noticed_before_asking_what_is_stale(called, made, monkeypatch):
    monkeypatch.setattr(module, "stale", lambda: ["promote@offer_make"] if "-s registry" in made else [])
    module.watch.fn()
    assert called == ["recommend"]


def test_what_fails_in_one_flow_does_not_hold_up_the_other(called, monkeypatch, capsys):
    def broken():
        raise TasksFailed("1 of 3 tasks failed")

    monkeypatch.setattr(module, "recommend", broken)
    staleness(monkeypatch, [], ["prompt@offer_make", "pretrain@bert"])
    with pytest.raises(TasksFailed):
        module.watch.fn()
    assert called == ["language", "distill"]
    assert "- stale: pretrain@bert" in capsys.readouterr().out


def test_nothing_is_trained_on_refused_data(called, monkeypatch):
    def refused():
        raise DataFailed("1 of 2 datasets failed")

    monkeypatch.setattr(module, "data", refused)
    staleness(monkeypatch, ["fetch@sample"], ["features"])
    with pytest.raises(DataFailed):
        module.watch.fn()
    assert called == []


def test_report(called, monkeypatch, capsys):
    splits = {"train": {"events": MIX}, "test": {"events": {"item_view": {"share": 0.5}, "item_like": {"share": 0.5}},
                                                 "last": "2023-05-31"}}  # fmt: skip
    write_json("artifacts/ingest/sample/manifest.json", {"rows": 10, "splits": splits})
    staleness(monkeypatch, [], [])
    module.watch.fn()
    out = capsys.readouterr().out
    assert "| sample | 10 | 2023-05-31 | 0.879 (large) |" in out  # 0.4 ln(0.9 / 0.5) + 0.4 ln(0.5 / 0.1)
    assert "| other | - | - | - |" in out
    assert "Nothing new: nothing ran" in out


def test_texts_have_rows_and_no_time(tmp_path):
    write_json(tmp_path / "corpora/manifest.json", {"kind": "documents", "rows": {"train": 95, "heldout": 5}})
    assert tables(["corpora"], tmp_path) == [{"dataset": "corpora", "rows": 100, "last event": "-", "drift": "-"}]


def test_drift_by_hand():
    assert drift(MIX, MIX) == 0
    new = {"item_view": {"share": 0.5}, "item_like": {"share": 0.5}}
    expected = 0.4 * math.log(0.9 / 0.5) + 0.4 * math.log(0.5 / 0.1)
    assert drift(MIX, new) == drift(new, MIX) == pytest.approx(expected)
    one = {"item_view": {"share": 1.0}}
    assert drift(one, MIX) == pytest.approx(0.1 * math.log(1 / 0.9) + (0.1 - 1e-4) * math.log(0.1 / 1e-4))
