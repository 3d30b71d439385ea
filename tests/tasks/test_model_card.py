"""Model cards: purpose, data, numbers with intervals, limits, provenance, and a description that MLflow can keep."""

import re
from pathlib import Path

import pytest
from _reported import verdict

import models
from tasks import track
from tasks.files import write_json
from tasks.model_card import LONGEST, auc_interval, card_of_version, description, model_card

TASK = {"given": "event_id = 'item_view'", "positive": "event_id = 'offer_make'", "within": "session"}


def record(**more) -> dict:
    return {
        "params": {"name": "offer_make", "method": "mpt_rec", "training": {"epochs": 8}, "tasks": TASK},
        "metrics": {"system/seconds": 12.5, "trained_share": 0.09},
        "tags": {"stage": "prompt@offer_make", "data_sha256": "a" * 64, "git_revision": "f" * 40, "git_dirty": "true",
                 "content_sha256": "b" * 64, "parents": "recommend-backbone/7"},
    } | more  # fmt: skip


def card(judged: dict | None = None, **asked):
    return model_card("recommend-offer_make", record(), judged or verdict("offer_make", 3), 4, **asked)


def test_it_says_what_the_version_is_for_and_how_to_load_it():
    text = card().markdown
    assert text.startswith("# recommend-offer_make, version 4\n")
    assert "| offer_make | `event_id = 'item_view'` | `event_id = 'offer_make'` | `session` |" in text
    assert "mlflow.pyfunc.load_model('models:/recommend-offer_make/4')" in text
    assert "make rebuild VERSION=models:/recommend-offer_make/4" in text


def test_every_task_of_a_backbone_is_listed():
    told = record(params={"name": "backbone", "method": "mpt_rec", "tasks": {"view": TASK, "like": TASK}})
    text = model_card("recommend-backbone", told, verdict("view", 0)).markdown
    assert "| like | `event_id" in text and "| view | `event_id" in text
    assert text.startswith("# recommend-backbone\n") and "models:/recommend-backbone/VERSION" in text


def test_data_are_named_by_digest_size_and_dates():
    splits = {"train": ("2023-05-01T00:00", "2023-05-20T10:00"), "test": ("2023-05-21T00:00", "2023-05-31T10:00")}
    log = {"rows": 3000, "splits": {name: {"first": first, "last": last} for name, (first, last) in splits.items()}}
    text = card(manifest=log).markdown
    for line in (
        f"| log, SHA-256 | `{'a' * 64}` |",
        "| events | 3,000 |",
        "| from | 2023-05-01 |",
        "| to | 2023-05-31 |",
    ):
        assert line in text


def test_slices_have_intervals():
    text = card().markdown
    low, high = auc_interval(0.7, 40, 860)
    assert f"| offer_make | c0_name = Category 0 | 900 | 40 | 0.7 | {low:.3f} to {high:.3f} | 1 | 0.1 |" in text


def test_interval_by_hand():
    # One row of each class, AUC 1/2: Q1 = Q2 = 1/3, variance 1/4, and 1.96 * 0.5 is more than there is room.
    assert auc_interval(0.5, 1, 1) == (0.0, 1.0)
    assert auc_interval(1.0, 10, 10) == (1.0, 1.0)
    assert auc_interval(0.7, 0, 10) is None


def test_a_closed_gate_says_why():
    judged = verdict("offer_make", 0) | {"passed": False}
    judged["checks"].append({"name": "size_mb", "passed": False, "value": 60, "bound": 50, "reason": "60 > 50"})
    text = card(judged).markdown
    assert "The gate is closed: 2 checks, 1 failed" in text and "| size_mb | 60 > 50 |" in text
    assert "| offer_make | -0.0200 | -0.0100 | +0.0000 |" in text


def test_limits_come_from_what_was_measured():
    text = card(drift={"price": {"psi": 0.31, "over": True}, "hour": {"psi": 0.9, "over": False}}).markdown
    limits = text[text.index("## Limits") : text.index("## Where it comes from")]
    assert "Fewer than 200 positives, so numbers are uncertain, on: offer_make, c0_name = Category 0 (40); " in limits
    assert "AUC is lower on: offer_make, c0_name = Category 0 (0.7000 against 0.7500); " in limits
    assert "predicts 1.20 times as many positives" in limits
    assert "drift already when it was trained (PSI): price 0.31." in limits and "hour" not in limits
    assert card().html.count("<li>") == 4 and "<li>Drift was not measured" in card().html
    assert "Drift was not measured" in card().markdown
    assert "No feature was over" in card(drift={"hour": {"psi": 0.9, "over": False}}).markdown


def test_the_method_is_named_with_its_paper():
    text = card().markdown
    assert "| `models/recommend/mpt_rec.py` | MPT-Rec:" in text and "arXiv:2408.17214" in text
    assert f"| code | `{'f' * 40}` with changes that were not committed |" in text
    assert "| parents | recommend-backbone/7 |" in text


@pytest.mark.parametrize(
    ("model", "params", "stage", "file"),
    [
        (
            "recommender-next",
            {"kind": "session", "method": "sasrec"},
            "recommender@next",
            "recommend/session/sasrec.py",
        ),
        ("distill-kd", {"part": "methods"}, "distill@kd", "distill/kd.py"),
        ("language-bert", {"recipe": "bert"}, "pretrain@bert", "components/recipes/bert.yaml"),
    ],
)
def test_every_kind_of_model_names_its_file(model, params, stage, file):
    told = record(params=params, tags={"stage": stage})
    text = model_card(model, told, verdict("x", 0) | {"metrics": {"heldout": {"loss": 1.0}}}).markdown
    assert f"`models/{file}`" in text and (Path(models.__file__).parent / file).is_file()
    assert "| loss | 1 |" in text


def test_the_page_shows_the_same_and_escapes():
    told = record()
    told["params"]["note"] = "<script>|"
    made = model_card("recommend-offer_make", told, verdict("offer_make", 3), 4)
    assert "<script>" not in made.html and "&lt;script&gt;|" in made.html
    assert "<script>\\|" in made.markdown
    assert re.findall("<h2>(.*?)</h2>", made.html) == re.findall("^## (.*)$", made.markdown, re.M)


@pytest.mark.parametrize("slices", [0, 400])
def test_a_description_fits_and_ends_at_a_section(slices):
    failed = {"passed": False, "value": 0, "bound": 0, "reason": "far too low " * 5}
    checks = [{"name": f"check {number}", **failed} for number in range(slices)]
    made = card(verdict("offer_make", slices) | {"checks": checks})
    text = description(made)
    assert len(text) <= LONGEST
    if not slices:
        assert text == made.markdown
    else:
        assert text.endswith("The whole card is model_card.md among the run's artifacts.\n")
        kept = re.findall("^## (.*)$", text, re.M)
        assert kept == list(made.sections)[: len(kept)] and "What it is for" in kept
        assert made.markdown.startswith(text[: text.rindex("\n\nThe whole card")])


def test_a_registered_version_tells_its_card(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    judged = write_json(tmp_path / "judged/verdict.json", verdict("offer_make", 3)).parent
    told = record()
    run = track.log_run("a", params=told["params"], metrics=told["metrics"], files={"verdict": judged})
    version = track.Version("recommend-offer_make", 4, run, told["tags"])
    monkeypatch.setattr(track, "resolve", lambda uri: version)
    assert card_of_version("models:/recommend-offer_make/4").markdown == card().markdown
