"""Gate and promotion of a recommender, with a real registry."""

import polars as pl
import pytest
from _likers import GATES, answer, entries, write_log

from tasks import fresh, track
from tasks.files import read_json
from tasks.gate_recommender import gate_recommender, judge_recommender, rules_for
from tasks.promote import ReplayFailed, StaleVerdict
from tasks.promote_recommender import promote_recommender, replay
from tasks.recommender import train_recommender
from tasks.settings import SettingsError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """log/, similar/ and another one, narrow/, made with two factors."""
    root = tmp_path_factory.mktemp("recommenders")
    write_log(root / "log")
    train_recommender(entries(), "similar", root / "log", root / "similar", None)
    narrow = entries(similar=entries()["similar"] | {"settings": {"width": 1}})
    train_recommender(narrow, "similar", root / "log", root / "narrow", None)
    return root


def judged(root, made, out, gates=GATES):
    return gate_recommender(gates, entries(), "similar", root / "log", root / made, out)


def failed(verdict) -> list[str]:
    return [f"{check['name']}: {check['reason']}" for check in verdict["checks"] if check["passed"] is False]


def test_from_a_verdict_to_a_champion_that_answers_from_the_registry(root, registry, quick, tmp_path, monkeypatch):
    verdict = judged(root, "similar", tmp_path / "gate")
    assert verdict["passed"], failed(verdict)
    low, middle, high = verdict["intervals"]["popularity"]
    assert 0 < low < middle < high
    page = (tmp_path / "gate/verdict.html").read_text()
    assert "the gate is <span class=open>open" in page
    assert page.count("<figure>") == 2
    receipt = promote_recommender("similar", tmp_path / "gate", root / "similar", tmp_path / "receipt.json")
    assert receipt["status"] == "promoted" and receipt["champion"] == 1
    assert read_json(tmp_path / "receipt.json") == receipt
    requests = pl.DataFrame({"user": [7, None], "history": [None, [100, 106]]}, schema_overrides={"user": pl.Int64})
    lists, times = fresh.score("models:/recommender-similar@champion", requests)
    assert lists["known"].to_list() == ["user", "history"]
    assert all(item % 6 == 100 % 6 for item in lists["items"][1].to_list()[:3])
    assert times["row_ms"] > 0
    monkeypatch.setattr(fresh, "score", answer)
    # Repeated, nothing new comes of it.
    assert promote_recommender("similar", tmp_path / "gate", root / "similar", tmp_path / "again.json")["version"] == 1
    again = judged(root, "similar", tmp_path / "again")
    assert "already the champion" in next(c["reason"] for c in again["checks"] if c["name"] == "improvement")
    # A worse one answers the same requests as the champion does, and the difference closes the gate.
    worse = judged(root, "narrow", tmp_path / "worse", {"default": {"improvement": GATES["default"]["improvement"]}})
    assert any("against version 1" in line for line in failed(worse)), worse["checks"]
    done = promote_recommender("similar", tmp_path / "worse", root / "narrow", tmp_path / "worse.json")
    assert done["status"] == "rejected" and done["champion"] == 1
    with pytest.raises(StaleVerdict, match="run the gate of similar again"):
        promote_recommender("similar", tmp_path / "worse", root / "similar", tmp_path / "stale.json")


def test_a_version_that_answers_otherwise_is_not_crowned(root, registry, tmp_path, monkeypatch):
    judged(root, "similar", tmp_path / "gate")

    def wrong(uri, rows):
        found, times = answer(uri, rows)
        return found.with_columns(pl.col("scores").list.eval(pl.element() + 0.1)), times

    monkeypatch.setattr(fresh, "score", wrong)
    with pytest.raises(ReplayFailed, match="scores that differ by"):
        promote_recommender("similar", tmp_path / "gate", root / "similar", tmp_path / "receipt.json")
    assert track.by_alias("recommender-similar", "champion") is None
    assert track.by_alias("recommender-similar", "challenger").number == 1
    monkeypatch.setattr(fresh, "score", lambda uri, rows: (answer(uri, rows)[0].reverse(), {}))
    with pytest.raises(ReplayFailed, match="other items"):
        replay(track.by_alias("recommender-similar", "challenger"))


def test_bytes_that_changed_since_training_close_the_gate(root, registry, tmp_path):
    import shutil

    made = tmp_path / "made"
    shutil.copytree(root / "similar", made)
    (made / "packed/bundle/users.parquet").write_bytes(b"other")
    verdict = gate_recommender(GATES, entries(), "similar", root / "log", made, tmp_path / "gate")
    assert any(line.startswith("the model loads: UnsafeArtifact") for line in failed(verdict))


def test_data_that_changed_since_training_close_the_gate(root, registry, tmp_path):
    other = write_log(tmp_path / "log", seed=5)
    verdict = gate_recommender(GATES, entries(), "similar", other, root / "similar", tmp_path / "gate")
    assert any("the data changed: train it again" in line for line in failed(verdict))


def test_rules_by_hand():
    rules = {
        "floors": {"recall@20": 0.2},
        "above": {"popularity": {"metric": "recall@20", "margin": 0.1, "confidence": 0.9}},
    }
    evidence = {"metrics": {"recall@20": 0.3, "recall_cold@20": None}, "model": {}, "facts": {}, "faults": {},
                "intervals": {"popularity": (0.05, 0.1, 0.15)}, "champion": None}  # fmt: skip
    checks = {check.name: check.passed for check in judge_recommender(rules, evidence)}
    assert checks == {"recall@20": True, "recall@20 above popularity": False, "improvement": None}
    evidence["intervals"]["popularity"] = (0.1, 0.12, 0.15)
    assert all(check.passed is not False for check in judge_recommender(rules, evidence))
    evidence["intervals"], evidence["metrics"] = {}, {"recall@20": float("nan")}
    assert [check.passed for check in judge_recommender(rules, evidence)] == [False, False, False, None]


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ({"default": {"floor": {}}}, "there is no rule 'floor'; the rules are floors"),
        ({"similar": {"floors": {"recall@20": "high"}}}, "floors.recall@20: 'high' is no number"),
        (
            {"default": {"above": {"als": {"metric": "recall@20", "margin": 0, "confidence": 0.9}}}},
            "above.als: nothing",
        ),
        ({"default": {"improvement": {"metric": "recall@20", "margin": 0}}}, "improvement needs metric, margin"),
    ],
)
def test_bad_rules_are_refused(gates, words):
    with pytest.raises(SettingsError, match=words):
        rules_for(gates, "similar")


def test_a_name_overrides_the_default():
    gates = {"default": {"floors": {"recall@20": 0.1}, "improvement": GATES["default"]["improvement"]},
             "similar": {"floors": {"recall@20": 0.3}, "improvement": None}}  # fmt: skip
    assert rules_for(gates, "similar") == {"floors": {"recall@20": 0.3}}
    assert rules_for(gates, "other") == gates["default"]
