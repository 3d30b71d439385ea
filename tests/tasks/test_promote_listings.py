"""Models that may read listings: judged by the neighbours they give, registered as one name, followed by a backbone."""

import shutil

import numpy as np
import polars as pl
import pytest
from _reader import write_reader

from tasks import fresh, track
from tasks.files import read_json
from tasks.gate_listings import gate_listings, neighbours
from tasks.listing_encoder import listing_encoder
from tasks.poison import PoisonedFolder
from tasks.promote import StaleVerdict
from tasks.promote_listings import promote_listings
from tasks.settings import SettingsError

WORDS = ("red", "blue", "old", "new")
SETTINGS = {"encoder_gate": {"kind": "c1_id"}}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Sixteen test listings of two kinds, told by their noun."""
    folder = tmp_path_factory.mktemp("features")
    titles = [
        (f"{a} {b} {noun}", kind) for kind, noun in enumerate(("chair", "lamp")) for a in WORDS for b in WORDS[:2]
    ]
    frame = pl.DataFrame(titles * 2 + [(None, 1), ("red shirt", None)], schema=["name", "c1_id"], orient="row")
    (folder / "rows").mkdir()
    frame.write_parquet(folder / "rows/test.parquet")
    return folder


@pytest.fixture
def made(tmp_path):
    write_reader(tmp_path / "made/model", classes=True)
    return tmp_path / "made"


@pytest.fixture
def in_process(monkeypatch):
    """What `fresh.recall` answers, without the seconds of a fresh process."""
    from tasks.recall import recall

    monkeypatch.setattr(fresh, "recall", lambda *folders: [recall(folder) for folder in folders])


def judged(features, made, out, **rules):
    return gate_listings({"encoder_gate": SETTINGS["encoder_gate"] | rules}, "kd", features, made, out)


def failed(verdict):
    return [check["name"] for check in verdict["checks"] if check["passed"] is False]


def test_neighbours_by_hand():
    # The first two point one way from the mean, the last two another: three of four have a neighbour of their kind.
    vectors = np.float32([[0, 9], [1, 8], [9, 1], [8, 0]])
    assert neighbours(vectors, np.array([1, 1, 2, 2])) == 1
    assert neighbours(vectors, np.array([1, 1, 2, 3])) == 0.5
    assert neighbours(np.tile(vectors, (600, 1)), np.tile([1, 1, 2, 3], 600)) == 1  # in blocks: each has its double


def test_what_a_backbone_pays_and_gets_is_measured(features, made, registry, tmp_path):
    verdict = judged(features, made, tmp_path / "gate")
    assert verdict["passed"] and verdict["model"] == "listing-encoder" and verdict["rows"] == 16
    found = verdict["metrics"]["listings"] | verdict["model_metrics"]
    assert found["width"] == 16 and found["chance"] == 0.5 and 0 <= found["neighbours"] <= 1
    assert found["latency_ms"] > 0 and 0.01 < found["size_mb"] < 5
    assert "listing-encoder" in (tmp_path / "gate/verdict.html").read_text()


@pytest.mark.parametrize(("rules", "check"), [
    ({"floors": {"neighbours": 1.1}}, "neighbours"), ({"ceilings": {"width": 8}}, "width"),
    ({"ceilings": {"latency_ms": 1.0e-9}}, "latency_ms"), ({"ceilings": {"size_mb": 0}}, "size_mb"),
])  # fmt: skip
def test_a_bound_that_is_broken_closes_the_gate(features, made, registry, tmp_path, rules, check):
    assert failed(judged(features, made, tmp_path / "gate", **rules)) == [check]


def test_a_model_that_says_the_same_of_everything_is_refused(features, made, registry, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = {name: value * 0 for name, value in load_file(made / "model/model.safetensors").items()}
    save_file(weights, made / "model/model.safetensors", metadata={"format": "pt"})
    assert failed(judged(features, made, tmp_path / "gate")) == ["vectors tell listings apart"]
    (made / "model/tokenizer_config.json").unlink()
    verdict = judged(features, made, tmp_path / "gate")
    assert failed(verdict)[0] == "the folder loads" and not verdict["passed"]


@pytest.mark.parametrize(("rules", "said"), [
    ({"kinds": "x"}, "no rule 'kinds'"), ({"floors": {"auc": 1}}, "no metric 'auc'"), ({"most": 1}, "most: 1"),
    ({"ceilings": {"width": "x"}}, "'x' is no number"), ({"kind": "c9_id"}, "have no c9_id"),
])  # fmt: skip
def test_rules_that_cannot_be_applied_are_named(features, made, registry, tmp_path, rules, said):
    with pytest.raises(SettingsError, match=said):
        judged(features, made, tmp_path / "gate", **rules)


def test_from_gate_to_backbone(features, made, registry, tmp_path, in_process):
    carried = lambda: promote_listings("kd", "distill", tmp_path / "gate", made, tmp_path / "receipt.json")
    address = "models:/listing-encoder@champion"
    judged(features, made, tmp_path / "gate")
    done = carried()
    assert (done["status"], done["version"], done["champion"]) == ("promoted", 1, 1)
    version = track.by_alias("listing-encoder", "champion")
    assert version.tags["stage"] == "distill@kd" and version.tags["registered_as"] == "none"
    assert carried()["version"] == 1  # repeated, it makes no second one
    first = listing_encoder(address, tmp_path / "reader")
    assert first["content"] == done["content"]

    write_reader(made / "model", seed=5, classes=True)
    with pytest.raises(StaleVerdict, match="dvc repro gate_listings@kd"):
        carried()
    assert failed(judged(features, made, tmp_path / "gate", margin=1.1)) == ["neighbours against version 1"]
    assert carried()["status"] == "rejected"
    assert listing_encoder(address, tmp_path / "reader") == first
    judged(features, made, tmp_path / "gate", margin=-1.0)
    assert (carried()["status"], read_json(tmp_path / "receipt.json")["champion"]) == ("promoted", 2)
    second = listing_encoder(address, tmp_path / "reader")
    assert second["content"] == read_json(tmp_path / "receipt.json")["content"] != first["content"]


def test_a_pickle_is_never_opened(features, made, registry, tmp_path):
    (made / "model/extra.pkl").write_bytes(b"x")
    with pytest.raises(PoisonedFolder, match="extra.pkl"):
        judged(features, made, tmp_path / "gate")
    shutil.rmtree(made)
    with pytest.raises(OSError):
        judged(features, made, tmp_path / "gate")
