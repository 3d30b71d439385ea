"""The gate of language models: bounds, the champion, and a folder that does not load."""

import math

import pytest
import torch

from tasks import fresh, track
from tasks import gate_language as module
from tasks.files import write_json
from tasks.gate_language import gate_language, judge_language, rules_for
from tasks.poison import PoisonedFolder
from tasks.settings import SettingsError

RULES = {"ceilings": {"loss": 4.0}, "floors": {"mlm_correct": 0.2}, "improvement": {"metric": "loss", "margin": -0.05}}
SEEN = {"class": "BertForMaskedLM", "missing": [], "unexpected": [], "mismatched": [], "plain_class": "BertModel",
        "plain_missing": ["pooler.dense.weight"], "plain_other": []}  # fmt: skip


def evidence(**changes) -> dict:
    return {
        "part": "heldout",
        "metrics": {"loss": 3.5, "mlm_correct": 0.25},
        "model": {"size_mb": 1.0},
        "export": {"equal": True, "max_difference": 1e-6},
        "seen": SEEN,
        "faults": {},
        "champion": None,
    } | changes


def failed(**changes) -> list[str]:
    return [check.name for check in judge_language(RULES, evidence(**changes)) if check.passed is False]


def test_a_good_model_passes():
    assert failed() == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"metrics": {"loss": 4.01, "mlm_correct": 0.25}}, ["loss"]),
        ({"metrics": {"loss": 3.5, "mlm_correct": 0.19}}, ["mlm_correct"]),
        ({"metrics": {"loss": math.nan, "mlm_correct": 0.25}}, ["heldout: loss", "loss"]),
        ({"metrics": {"loss": None, "mlm_correct": 0.25}}, ["heldout: loss", "loss"]),
        ({"metrics": {"loss": 3.5}}, ["mlm_correct"]),
        ({"metrics": {}}, ["heldout: metrics", "mlm_correct", "loss"]),
        ({"export": {"equal": False, "max_difference": 0.2}}, ["export equals the trained model"]),
        ({"export": {}}, ["export equals the trained model"]),
        ({"export": {"equal": "true"}}, ["export equals the trained model"]),
        ({"seen": SEEN | {"missing": ["bert.x"]}}, ["loads as BertForMaskedLM"]),
        ({"seen": SEEN | {"plain_missing": ["encoder.x"]}}, ["loads with AutoModel, as BertModel"]),
        ({"seen": SEEN | {"plain_other": ["encoder.x"]}}, ["loads with AutoModel, as BertModel"]),
        ({"seen": {}, "faults": {"the folder loads": "OSError: ..."}}, ["the folder loads"]),
    ],
)
def test_what_closes_it(changes, names):
    assert failed(**changes) == names


@pytest.mark.parametrize(
    ("theirs", "rows", "verdict"),
    [
        (3.46, "registered", True),  # better by -0.04, -0.05 is allowed
        (3.44, "registered", False),  # better by -0.06
        (3.44, "anew", False),
        (9.0, "registered", True),
        (math.nan, "registered", False),
        (math.nan, "anew", False),
    ],
)
def test_against_the_champion(theirs, rows, verdict):
    champion = {"version": 2, "same": False, "rows": rows, "metrics": {"loss": theirs}}
    check = judge_language(RULES, evidence(champion=champion))[-1]
    assert check.name == "heldout: loss against version 2"
    assert check.passed is verdict


def test_what_is_better_when_higher():
    rules = {"improvement": {"metric": "mlm_correct", "margin": 0.0}}
    champion = {"version": 1, "same": False, "rows": "registered", "metrics": {"mlm_correct": 0.26}}
    assert judge_language(rules, evidence(champion=champion))[-1].passed is False
    champion = champion | {"metrics": {"mlm_correct": 0.25}}
    assert judge_language(rules, evidence(champion=champion))[-1].passed is True


def test_a_champion_that_cannot_be_compared_is_not_judged_and_says_why():
    champion = {"version": 2, "same": False, "rows": "none", "reason": "another tokenizer"}
    check = judge_language(RULES, evidence(champion=champion))[-1]
    assert (check.passed, check.reason) == (None, "cannot be compared: another tokenizer")


def test_a_check_tells_who_is_right_row_by_row():
    pairs = {"rows": 20, "only_candidate": 5, "only_champion": 1, "p": 0.21875}
    champion = {"version": 2, "same": False, "rows": "anew", "metrics": {"loss": 3.5}, "paired": pairs}
    told = judge_language(RULES, evidence(champion=champion))[-1].reason
    assert "measured anew" in told
    assert "of 20 rows 5 are right in the candidate only, 1 in the champion only (p = 0.22)" in told


def test_what_an_old_language_lost_is_a_number_of_the_model():
    old = {"en": {"kl": 0.1, "before": 2.0, "after": 2.25}, "de": {"kl": 0.3, "before": 3.0, "after": 3.125}}
    assert module._beside_old({"old": old}) == {"forgotten": 0.25}
    assert module._beside_old({"old": {}}) == module._beside_old({}) == {}


def test_rules_of_a_name_override_those_of_its_kind():
    gates = {"pretrain": RULES, "bert": {"ceilings": {"loss": 3.0}, "floors": None}}
    assert rules_for(gates, "pretrain", "bert") == {"ceilings": {"loss": 3.0}, "improvement": RULES["improvement"]}
    assert rules_for(gates, "finetune", "other") == {}


@pytest.mark.parametrize(
    ("gates", "kind", "name", "said"),
    [
        ({"pretrain": {"floor": {}}}, "pretrain", "bert", "no rule 'floor'"),
        ({"pretrain": {"floors": {"loss": "low"}}}, "pretrain", "bert", "floors.loss: 'low' is no number"),
        ({"pretrain": {"improvement": {"metric": "loss"}}}, "pretrain", "bert", "improvement needs a metric"),
        ({}, "tune", "bert", "no kind 'tune'"),
        ({}, "pretrain", "finetune", "cannot be called 'finetune'"),
    ],
)
def test_settings_that_cannot_be_applied(gates, kind, name, said):
    with pytest.raises(SettingsError, match=said):
        rules_for(gates, kind, name)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder as tasks/pretrain.py writes it, no registry, and a process that answers at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(track, "by_alias", lambda name, alias: None)
    monkeypatch.setattr(fresh, "recall", lambda folder: [({"answer": torch.zeros(1)}, SEEN)])
    folder = tmp_path / "made"
    write_json(folder / "metrics.json", {"heldout": evidence()["metrics"], "export": evidence()["export"]})
    write_json(folder / "run.json", {"fingerprint": "f", "evaluated_rows": 64, "parameters": 10, "seconds": 1.0})
    write_json(folder / "model/config.json", {"architectures": ["BertForMaskedLM"]})
    return folder


def test_verdict_is_kept_as_json_and_as_a_page(made, tmp_path):
    (made / "curve.png").write_bytes(b"picture")
    verdict = gate_language({"pretrain": RULES}, "pretrain", "bert", made, tmp_path / "tokens", tmp_path / "out")
    assert verdict["passed"] is True
    assert verdict["model"] == "language-bert"
    page = (tmp_path / "out/verdict.html").read_text()
    assert "the gate is <span class=open>open</span>" in page
    assert "cGljdHVyZQ==" in page  # the picture, in base64
    assert "on 64 test rows" in page


def test_a_folder_that_does_not_load_closes_the_gate(made, tmp_path, monkeypatch):
    def broken(folder):
        raise fresh.FreshProcessFailed(f"{folder} failed in a fresh process: OSError: no weights")

    monkeypatch.setattr(fresh, "recall", broken)
    verdict = gate_language({}, "pretrain", "bert", made, tmp_path / "tokens", tmp_path / "out")
    assert verdict["passed"] is False
    assert "no weights" in (tmp_path / "out/verdict.html").read_text()


def test_what_could_run_code_is_never_loaded(made, tmp_path):
    (made / "model/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(PoisonedFolder, match=r"pytorch_model\.bin"):
        module.gate_language({}, "pretrain", "bert", made, tmp_path / "tokens", tmp_path / "out")
    (made / "model/pytorch_model.bin").unlink()
    write_json(made / "model/config.json", {"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}})
    with pytest.raises(PoisonedFolder, match="auto_map"):
        module.gate_language({}, "pretrain", "bert", made, tmp_path / "tokens", tmp_path / "out")
    assert not (tmp_path / "out").exists()
