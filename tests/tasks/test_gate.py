import math
import pickle
import shutil
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from tasks import fresh, track
from tasks import gate as module
from tasks.bundle import PoisonedFolder, content
from tasks.files import digest, read_json, write_json
from tasks.gate import gate, measure
from tasks.judge import judge, rules_for
from tasks.settings import SettingsError

GATES = {
    "default": {
        "floors": {"auc": 0.4},
        "ceilings": {"latency_ms": 5000, "size_mb": 5},
        "improvement": {"metric": "auc", "margin": -0.02, "confidence": 0.9},
        "slices": {"c0_name": {"auc": 0.1}, "no_such_column": {"auc": 0.5}, "price_band": {"auc": 0.0}},
        "least_positives": 5,
    }
}


def evidence(**changed):
    metrics = {"auc": 0.8, "logloss": 0.3, "calibration": 1.0, "calibration_error": 0.01}
    found = {"reported": {"like": dict(metrics)}, "tasks": {"like": dict(metrics)}, "head": {"trained_share": 0.05}}
    found |= {"model": {"latency_ms": 5.0, "size_mb": 1.0}, "facts": {}, "slices": [], "champion": None, "faults": {}}
    return found | changed


def failed(checks):
    return [check.name for check in checks if check.passed is False]


@pytest.fixture
def here(shop, registry, tmp_path, monkeypatch):
    """The shop's paths, and a registry without any model; the working folder is a fresh one."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "shop"
    shutil.copytree(shop, root, ignore=shutil.ignore_patterns("memo", "checkpoints"))
    return root


def judged(root, gates=GATES, head=True, name="offer_make"):
    folder = root / "prompt/offer_make" if head else None
    name = name if head else "backbone"
    return gate(gates, name, root / "ingest", root / "features", root / "backbone", root / "gate", folder)


NO_NUMBERS = [math.nan, math.inf, -math.inf, None, "0.9", True, Decimal("NaN"), Decimal("sNaN"), object()]


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("place", ["tasks", "reported"])
def test_what_is_no_finite_number_closes_the_gate(value, place):
    rules = rules_for({"default": {"floors": {"auc": 0.5}, "ceilings": {"logloss": 1.0}}}, "like")
    for metric in ("auc", "logloss"):
        broken = evidence()
        broken[place]["like"][metric] = value
        assert any(metric in name for name in failed(judge(rules, broken)))
    assert failed(judge(rules, evidence())) == []


def test_a_missing_metric_closes_the_gate():
    rules = rules_for({"default": {"floors": {"rows_per_second": 10}, "ceilings": {"tuning_share": 0.05}}}, "like")
    assert failed(judge(rules, evidence())) == ["rows_per_second", "tuning_share"]
    assert failed(judge(rules, evidence(head=None))) == ["rows_per_second"]  # a backbone has no tuning


def test_bounds_are_inclusive_and_a_task_may_have_its_own():
    rules = rules_for({"default": {"floors": {"auc": 0.9, "like.auc": 0.8}, "ceilings": {"latency_ms": 5}}}, "backbone")
    assert failed(judge(rules, evidence())) == []
    other = evidence(tasks={"view": evidence()["tasks"]["like"]})
    assert failed(judge(rules, other)) == [
        "view: auc",
        "like: auc",
    ]  # and a bound on a task that is not there is no pass


def test_a_fault_in_the_evidence_closes_the_gate():
    assert failed(judge({}, evidence(faults={"slices": "ZeroDivisionError: x"}))) == ["slices"]
    assert failed(judge({}, evidence(facts={"bit-equal": (False, "no"), "finite": (True, "yes")}))) == ["bit-equal"]


def test_settings_are_merged_key_by_key_and_null_takes_away():
    gates = {"default": {"floors": {"auc": 0.6, "rows_per_second": 5}, "slices": {"c0_id": {"auc": 0.5}}},
             "offer_make": {"floors": {"auc": 0.7, "rows_per_second": None}, "slices": None}}  # fmt: skip
    assert rules_for(gates, "offer_make") == {"floors": {"auc": 0.7}}
    assert rules_for(gates, "buy_start") == gates["default"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"floors": {"acu": 0.5}}, "acu"), ({"floor": {}}, "floor"), ({"ceilings": {"size_mb": "big"}}, "big"),
     ({"improvement": {"metric": "rows", "margin": 0, "confidence": 0.9}}, "rows"),
     ({"improvement": {"metric": "auc", "margin": 0, "confidence": 95}}, "95"), ({"floors": {"auc": math.nan}}, "nan")],
)  # fmt: skip
def test_rules_that_nobody_can_apply_are_refused(wrong, said):
    with pytest.raises(SettingsError, match=said):
        rules_for({"default": wrong}, "like")


def test_small_slices_are_reported_not_judged():
    rules = rules_for({"default": {"slices": {"cold_item": {"auc": 0.5}}, "least_positives": 20}}, "like")
    part = {"task": "like", "column": "cold_item", "value": "True", "rows": 100, "auc": 0.1}
    few, many, no_negatives = (judge(rules, evidence(slices=[part | {"positives": n}]))[-2] for n in (19, 20, 81))
    assert (few.passed, many.passed, no_negatives.passed) == (None, False, None)
    assert "19 of 100" in few.reason


@pytest.mark.parametrize(
    ("champion", "passed"),
    [(None, True), ({"same": True}, True), ({"intervals": {"like": (-0.004, 0.01, 0.02)}}, True),
     ({"intervals": {"like": (-0.006, 0.01, 0.02)}}, False), ({"intervals": {"like": (math.nan, 0.01, 0.02)}}, False),
     ({"intervals": {"like": (-0.004, 0.01, math.inf)}}, False), ({"intervals": {}}, False),
     ({"intervals": {}, "tasks": ["view"]}, True)],
)  # fmt: skip
def test_improvement_is_the_low_end_of_the_interval(champion, passed):
    wanted = {"metric": "auc", "margin": -0.005, "confidence": 0.95}
    champion = champion and {"version": 3, "same": False, "intervals": {}, "tasks": ["like"]} | champion
    assert judge({"improvement": wanted}, evidence(champion=champion))[-1].passed is passed


def test_measures_by_hand():
    # Positives at .8 and .4, negatives at .6 and .2: 3 of 4 pairs are in order. Means: .5 predicted, .5 positive.
    found = measure(np.array([0.8, 0.6, 0.4, 0.2]), np.array([1.0, 0.0, 1.0, 0.0]))
    assert found["auc"] == 0.75
    assert found["calibration"] == pytest.approx(1.0)
    assert found["logloss"] == pytest.approx(-(math.log(0.8) + math.log(0.4) * 2 + math.log(0.8)) / 4)
    assert (found["rows"], found["positives"]) == (4, 2)


def test_first_candidate_opens_the_gate(here):
    verdict = judged(here)
    assert verdict["passed"], [check for check in verdict["checks"] if check["passed"] is False]
    assert verdict["champion"] is None
    trained = read_json(here / "prompt/offer_make/metrics.json")
    assert verdict["metrics"]["offer_make"]["auc"] == pytest.approx(trained["auc"], abs=1e-6)
    assert verdict["candidate"] == content(here / "backbone", here / "prompt/offer_make")
    bands = {part["value"]: part["rows"] for part in verdict["slices"] if part["column"] == "price_band"}
    assert sorted(bands) == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert sum(bands.values()) == verdict["rows"]
    written = read_json(here / "gate/verdict.json")
    assert written["checks"] == verdict["checks"]
    assert set(written) == set(verdict)
    page = (here / "gate/verdict.html").read_text()
    assert "the gate is <span class=open>open" in page
    assert "data:image/png;base64," in page
    assert "http" not in page  # nothing is loaded from anywhere


def test_a_backbone_is_judged_per_task(here):
    gates = GATES | {"backbone": {"floors": {"item_like.auc": 0.999}}}
    verdict = judged(here, gates, head=False)
    assert not verdict["passed"]
    assert [check["name"] for check in verdict["checks"] if check["passed"] is False] == ["item_like: auc"]
    assert set(verdict["metrics"]) == {"view", "item_like"}


def test_a_reported_nan_closes_the_gate(here):
    file = here / "prompt/offer_make/metrics.json"
    write_json(file, read_json(file) | {"auc": math.nan})
    verdict = judged(here)
    assert not verdict["passed"]
    assert "offer_make: reported auc" in [check["name"] for check in verdict["checks"] if check["passed"] is False]


def test_nan_weights_close_the_gate(here):
    file = here / "prompt/offer_make/head.safetensors"
    weights = load_file(file)
    weights["prompt"] = weights["prompt"] * math.nan
    save_file(weights, file)
    verdict = judged(here)
    assert not verdict["passed"]
    assert "weights are finite" in [check["name"] for check in verdict["checks"] if check["passed"] is False]


def test_a_backbone_that_changed_under_a_tuned_head_closes_the_gate(here):
    file = here / "backbone/model.safetensors"
    weights = load_file(file)
    weights["first.bias"] = weights["first.bias"] + 0.25
    save_file(weights, file)
    write_json(here / "backbone/backbone.json", read_json(here / "backbone/backbone.json") | {"sha256": digest(file)})
    names = {check["name"]: check for check in judged(here)["checks"] if check["passed"] is False}
    assert "run `dvc repro prompt@offer_make`" in names["head was tuned on this backbone"]["reason"]
    assert "first.bias" in names["tuning left every backbone tensor as it was"]["reason"]


def test_a_foreign_trained_parameter_closes_the_gate(here):
    file = here / "prompt/offer_make/proof.json"
    proof = read_json(file)
    write_json(file, proof | {"trained": proof["trained"] | {"experts.layers.1.weight": 64}})
    names = {check["name"]: check["reason"] for check in judged(here)["checks"] if check["passed"] is False}
    assert "experts.layers.1.weight" in names["only the head's own parameters were trained"]


class Poison:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("file", ["backbone/extra.pkl", "prompt/offer_make/head.pt", "backbone/model.bin"])
def test_a_poisoned_pickle_is_refused_and_never_runs(here, file, tmp_path):
    marker = tmp_path / "poisoned"
    (here / file).write_bytes(pickle.dumps(Poison(marker)))
    with pytest.raises(PoisonedFolder, match=Path(file).name):
        judged(here)
    assert not marker.exists()
    assert pickle.loads((here / file).read_bytes()) is None  # it really was a poisoned one
    assert marker.exists()


def test_a_pickle_in_the_name_of_weights_closes_the_gate_and_never_runs(here, tmp_path):
    marker = tmp_path / "poisoned"
    (here / "prompt/offer_make/head.safetensors").write_bytes(pickle.dumps(Poison(marker)))
    assert not judged(here)["passed"]
    assert not marker.exists()


def champion_with(monkeypatch, scores):
    """A champion, version 3, that gives `scores(rows)` as its probabilities."""
    version = track.Version("recommend-offer_make", 3, "run", {"content_sha256": "other"})
    monkeypatch.setattr(track, "by_alias", lambda name, alias: version)
    monkeypatch.setattr(fresh, "score", lambda uri, rows: (pl.DataFrame({"probability": scores(rows)}), {}))


def test_a_candidate_worse_than_the_champion_is_refused(here, monkeypatch):
    offers = pl.read_parquet(here / "prompt/offer_make/test.parquet")
    truth = dict(offers.select("row", "label").iter_rows())
    champion_with(monkeypatch, lambda rows: [0.1 + 0.8 * truth[row] for row in rows["row"]])
    verdict = judged(here)
    low, middle, high = verdict["intervals"]["offer_make"]
    assert middle == pytest.approx(verdict["metrics"]["offer_make"]["auc"] - 1)  # the champion's AUC is exactly 1
    assert low < middle < high < 0
    closed = [check["name"] for check in verdict["checks"] if check["passed"] is False]
    assert closed == ["offer_make: auc against version 3"]
    assert (here / "gate/difference.png").is_file()


def test_a_candidate_equal_to_the_champion_passes_with_a_margin(here, monkeypatch):
    champion_with(monkeypatch, lambda rows: pl.read_parquet(here / "prompt/offer_make/test.parquet")["probability"])
    verdict = judged(here)
    assert verdict["passed"]
    assert np.abs(verdict["intervals"]["offer_make"]).max() < 1e-6
    assert verdict["champion"]["version"] == 3
    assert verdict["champion"]["slices"] == verdict["slices"]
    bins = verdict["reliability"]["offer_make"]
    assert sum(bins["rows"]) == verdict["metrics"]["offer_make"]["rows"]


def test_a_better_logloss_counts_upwards(here, monkeypatch):
    champion_with(monkeypatch, lambda rows: np.full(len(rows), 0.999))
    wanted = {"metric": "logloss", "margin": 0.1, "confidence": 0.9}
    verdict = judged(here, {"default": GATES["default"] | {"improvement": wanted}})
    low, middle, high = verdict["intervals"]["offer_make"]
    assert 0.1 < low < middle < high


def test_a_champion_that_cannot_score_closes_the_gate(here, monkeypatch):
    def broken(rows):
        raise fresh.FreshProcessFailed("rows lack the column colour")

    champion_with(monkeypatch, broken)
    verdict = judged(here)
    assert not verdict["passed"]
    assert "lack the column colour" in (here / "gate/verdict.html").read_text()


def test_an_unreachable_server_is_told_at_once(here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(track.RegistryUnreachable, match=r"127\.0\.0\.1:9.*unset MLFLOW_TRACKING_URI") as told:
        judged(here)
    assert time.monotonic() - started < 10
    assert "secret" not in str(told.value)
    assert not (here / "gate").exists()


def test_only_so_many_rows_are_judged_and_always_the_same(here):
    gates = {"default": GATES["default"] | {"max_rows": 150}}
    first, second = judged(here, gates), judged(here, gates)
    assert first["rows"] == 150
    assert first["metrics"] == second["metrics"]


def test_a_metric_that_raises_closes_the_gate(here, monkeypatch):
    def broken(*_):
        raise ArithmeticError("no such sum")

    monkeypatch.setattr(module, "measure", broken)
    verdict = judged(here)
    reasons = {check["name"]: check["reason"] for check in verdict["checks"] if check["passed"] is False}
    assert not verdict["passed"]
    assert reasons["offer_make: metrics"] == "ArithmeticError: no such sum"
