"""A champion on today's rows: the same model gives the same numbers, and what cannot be compared says why."""

import shutil

import _tuned
import polars as pl
import pytest

from tasks import flavor, fresh, track
from tasks.comparable import NotComparable, OtherRows, paired
from tasks.distill import distill
from tasks.files import read_json, write_json
from tasks.finetune import finetune
from tasks.gate_language import gate_language
from tasks.pretrain import pretrain
from tasks.rescore import rescore
from tasks.tokenizer import make_tokenizer
from tasks.tokens import tokens

TRAINING = {"steps": 3, "batch": 8, "lr": 5.0e-3, "evaluate_rows": 12}
TUNED = {"kind": "classification", "length": 48, "training": {"steps": 4, "batch": 16, "lr": 5.0e-3}}
STUDENT = {"student": {"layers": 1}, "length": 48, "training": {"steps": 2, "batch": 16}, "methods": {"kd": {}}}
RULES = {"improvement": {"metric": "accuracy", "margin": -1.0}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("rescore")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # locks and slots of this test only
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


@pytest.fixture(scope="module")
def text(root):
    """tokens/ and later/, of other documents, and other/, of another tokenizer."""
    for name, word, size in (("tokens", "chair", 60), ("later", "lamp", 60), ("other", "lamp", 90)):
        folder = root / f"ingest-{name}"
        (folder / "rows").mkdir(parents=True)
        for split in ("train", "heldout"):
            lines = [[f"a {word} of wood {number % 7}", f"the {word} is {split}"] for number in range(60)]
            pl.DataFrame({"sentences": lines}).write_parquet(folder / "rows" / f"{split}.parquet")
        write_json(folder / "manifest.json", {"kind": "documents", "digest": name, "rows": dict.fromkeys(
            ("train", "heldout"), 60)})  # fmt: skip
        if not (kept := root / f"tokenizer-{size}").exists():
            make_tokenizer({"kind": "wordpiece", "vocabulary": size}, [folder], kept)
        tokens(kept, folder, root / name)
    return root


def pretrained(root, out, data, size=60, **change):
    chosen = {"recipe": "bert", "size": "nano", "data": data, "length": 24, "training": TRAINING} | change
    return pretrain({"pretrain": {"one": chosen}}, "one", root / data, root / f"tokenizer-{size}", out, out / "kept")


@pytest.fixture(scope="module")
def tuned(root):
    """Sets listings/ and later/, a tuned model of each, and a student of the first."""
    source = _tuned.write_model(root / "bert", "bert")
    _tuned.write_examples(root / "listings", "category")
    rows = pl.concat([pl.read_parquet(path) for path in sorted((root / "listings/rows").iterdir())])
    _tuned.write_rows(root / "later-listings", rows.with_columns(text=pl.col("text") + " sold"))
    for seed, data in enumerate(("listings", "later-listings")):
        chosen = TUNED | {"training": TUNED["training"] | {"seed": seed}}
        finetune("one", chosen, root / data, source, root / f"tuned-{data}", None)
    distill(STUDENT, "methods", "kd", root / "tuned-listings", root / "listings", root / "student", None)
    return root


def test_a_pretrained_model_gives_its_own_numbers_again(text, tmp_path):
    made = pretrained(text, tmp_path / "made", "tokens")
    assert rescore(made / "model", made, text / "tokens").metrics == pytest.approx(
        read_json(made / "metrics.json")["heldout"], rel=1e-5
    )


def test_a_student_of_running_text_gives_its_own_numbers_again(text, tmp_path):
    teacher = pretrained(text, tmp_path / "teacher", "tokens")
    chosen = {"student": {"layers": 1}, "training": {"steps": 2, "batch": 8, "seed": 3}, "methods": {"distilbert": {}}}
    found = distill(chosen, "methods", "distilbert", teacher, text / "tokens", tmp_path / "made", None)["dev"]
    assert rescore(tmp_path / "made/model", tmp_path / "made", text / "tokens").metrics == pytest.approx(
        found, rel=1e-5
    )


def test_a_pretrained_champion_reads_the_new_rows(text, tmp_path):
    champion, made = (pretrained(text, tmp_path / data, data) for data in ("tokens", "later"))
    found = rescore(champion / "model", made, text / "later").metrics
    assert found.keys() == read_json(made / "metrics.json")["heldout"].keys()
    assert found["loss"] != pytest.approx(read_json(champion / "metrics.json")["heldout"]["loss"], rel=1e-4)
    with pytest.raises(OtherRows, match=r"tokens is not what one was measured on .*run its stage again"):
        rescore(champion / "model", made, text / "tokens")


@pytest.mark.parametrize(
    ("data", "size", "change", "said"),
    [
        ("other", 90, {}, "another tokenizer"),
        ("later", 60, {"overrides": {"target.sp": None}}, "the champion learned mlm, the candidate mlm, sp"),
        ("later", 60, {"overrides": {"embedding.position.length": 12}, "length": 12}, "the champion reads 12 tokens"),
    ],
)
def test_losses_that_say_nothing_together(text, tmp_path, data, size, change, said):
    champion = pretrained(text, tmp_path / "champion", data, size, **change)
    made = pretrained(text, tmp_path / "made", "later")
    with pytest.raises(NotComparable, match=said):
        rescore(champion / "model", made, text / "later")


@pytest.mark.parametrize("made", ["tuned-listings", "student"])
def test_a_tuned_model_gives_its_own_answers_again(tuned, made):
    found = rescore(tuned / made / "model", tuned / made, tuned / "listings")
    assert found.metrics == pytest.approx(read_json(tuned / made / "metrics.json")["dev"], rel=1e-5)
    table = next((tuned / made).rglob("predictions.parquet"))
    same = paired(pl.read_parquet(table), found.answers)
    assert (same["only_candidate"], same["only_champion"], same["p"]) == (0, 0, 1.0)


@pytest.mark.parametrize(
    ("kind", "model", "answer"), [("generation", "gpt2", "title"), ("retrieval", "bert", "description")]
)
def test_other_kinds_give_their_own_numbers_again(tmp_path, kind, model, answer):
    source = _tuned.write_model(tmp_path / "start", model)
    data = _tuned.write_examples(tmp_path / "set", answer, rows=60)
    settings = {"longest": 4} if kind == "generation" else {}
    chosen = {"kind": kind, "length": 48, "settings": settings, "training": {"steps": 2, "batch": 8}}
    found = finetune("one", chosen, data, source, tmp_path / "made", None)["dev"]
    again = rescore(tmp_path / "made" / "model", tmp_path / "made", data)
    assert again.metrics == pytest.approx(found, rel=1e-5)
    assert again.answers is None


def test_other_classes_and_other_heads_cannot_be_compared(tuned, text, tmp_path):
    made = tmp_path / "made"
    shutil.copytree(tuned / "tuned-listings", made)
    config = read_json(made / "model/config.json")
    turned = dict(enumerate(reversed(config["id2label"].values())))
    write_json(made / "model/config.json", config | {"id2label": turned})
    with pytest.raises(NotComparable, match="the champion's classes are"):
        rescore(made / "model", tuned / "tuned-listings", tuned / "listings")
    with pytest.raises(NotComparable, match="made for something else|classes are not told"):
        rescore(tuned / "bert", tuned / "tuned-listings", tuned / "listings")


def test_who_is_right_row_by_row():
    """Of 8 rows the candidate has 6, the champion 2: 5 and 1 alone. Chance: 2 (1 + 6) / 2**6 = 0.21875."""
    rows = pl.DataFrame({"split": ["dev"] * 8, "text": list("abcdefgh"), "label": ["x"] * 8})
    ours = rows.with_columns(predicted=pl.Series(["x"] * 6 + ["y"] * 2))
    theirs = rows.with_columns(predicted=pl.Series(["x"] + ["y"] * 5 + ["x", "y"]))
    assert paired(ours, theirs) == {"rows": 8, "only_candidate": 5, "only_champion": 1, "p": 0.21875}
    with_test = pl.concat([ours, ours.with_columns(split=pl.lit("test"))])
    assert paired(with_test, theirs)["rows"] == 8
    with pytest.raises(OtherRows, match="8 answers are not to the champion's 7 rows"):
        paired(ours, theirs.head(7))


@pytest.fixture
def champion(tuned, monkeypatch):
    """The registry holds the model that was tuned on the first listings."""
    folder = tuned / "tuned-listings"
    tags = {"content_sha256": flavor.content(folder / "model"), "rows_sha256": read_json(folder / "run.json")[
        "fingerprint"]}  # fmt: skip
    version = track.Version("language-one", 3, "run", tags)
    monkeypatch.setattr(track, "by_alias", lambda name, alias: version)
    monkeypatch.setattr(track, "run_data", lambda run: ({}, {"dev.accuracy": 0.125}))
    monkeypatch.setattr(track, "model_files", lambda version, out: shutil.copytree(folder, out))
    seen = {"class": "Bert", "missing": [], "unexpected": [], "mismatched": [], "plain_class": "BertModel",
            "plain_missing": [], "plain_other": []}  # fmt: skip
    monkeypatch.setattr(fresh, "recall", lambda folder: [({}, seen)])
    return version


def test_the_gate_measures_the_champion_anew(tuned, champion, tmp_path):
    made, data = tuned / "tuned-later-listings", tuned / "later-listings"
    verdict = gate_language({"finetune": RULES}, "finetune", "one", made, data, tmp_path / "gate")
    told = verdict["champion"]
    assert (told["version"], told["rows"]) == (3, "anew")
    assert told["metrics"]["accuracy"] == rescore(tuned / "tuned-listings" / "model", made, data).metrics["accuracy"]
    assert told["paired"]["rows"] == len(pl.read_parquet(data / "rows/dev.parquet"))
    check = verdict["checks"][-1]
    ours = read_json(made / "metrics.json")["dev"]["accuracy"]
    assert check["value"] == pytest.approx(ours - told["metrics"]["accuracy"])
    assert read_json(tmp_path / "gate/verdict.json")["champion"] == told


def test_the_same_rows_need_no_second_measurement(tuned, champion, tmp_path):
    verdict = gate_language({"distill": RULES}, "distill", "kd", tuned / "student", tuned / "gone", tmp_path / "gate")
    assert verdict["champion"]["rows"] == "registered"
    assert verdict["champion"]["metrics"] == {"accuracy": 0.125}


def test_files_that_are_not_the_registered_ones_are_not_asked(tuned, champion, tmp_path):
    champion.tags["content_sha256"] = "0" * 64
    made, data = tuned / "tuned-later-listings", tuned / "later-listings"
    verdict = gate_language({"finetune": RULES}, "finetune", "one", made, data, tmp_path / "gate")
    assert verdict["checks"][-1]["passed"] is None
    assert "are not those that were registered" in verdict["checks"][-1]["reason"]


def test_a_champion_that_cannot_be_read_closes_the_gate(tuned, champion, monkeypatch, tmp_path):
    def broken(version, out):
        shutil.copytree(tuned / "tuned-listings", out)
        (out / "model/model.safetensors").write_bytes(b"broken")
        champion.tags["content_sha256"] = flavor.content(out / "model")
        return out

    monkeypatch.setattr(track, "model_files", broken)
    made, data = tuned / "tuned-later-listings", tuned / "later-listings"
    verdict = gate_language({"finetune": RULES}, "finetune", "one", made, data, tmp_path / "gate")
    failed = [check["name"] for check in verdict["checks"] if check["passed"] is False]
    assert failed == ["the champion reads the same rows"]


def test_data_that_changed_since_stop_the_gate(tuned, champion, tmp_path):
    with pytest.raises(OtherRows, match="run its stage again before its gate"):
        gate_language({}, "finetune", "one", tuned / "tuned-later-listings", tuned / "listings", tmp_path / "gate")
    assert not (tmp_path / "gate").exists()
