"""A model learns a new language: what it remembers, from which inputs, how far it moves, resume, real pairs."""

import shutil

import _tuned
import polars as pl
import pytest
from _killed import continued, killed, same_weights

from tasks import distill_languages as module
from tasks.distill_languages import distill_languages
from tasks.files import digest, read_json, write_json
from tasks.finetune import finetune
from tasks.kinds._kind import Rejected
from tasks.rescore import rescore
from tasks.settings import SettingsError
from tasks.teachers import TeacherChanged

TRAINING = {"steps": 10, "batch": 8, "lr": 2.0e-3, "evaluate_steps": 5, "seed": 3}
SETTINGS = {"longest": 8}


def rows(tag, count=40, shift=0):
    """A made-up language pair: the colours and things of a listing, `tag` says in which order."""
    colours, things = ["red", "green", "blue", "black"], ["lamp", "chair", "table", "shirt"]
    made = []
    for n in range(count):
        said = [colours[(n + shift) % 4], things[(n // 4) % 4]]
        made.append({"text": f"{tag} a {said[0]} {said[1]} {n}".strip(), "second": None, "label": " ".join(said[::-1]),
                     "split": "dev" if n % 5 == 4 else "train"})  # fmt: skip
    return pl.DataFrame(made, schema_overrides={"second": pl.String})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """t5/, old/ tuned on the tag "old", new/ rows without a tag, and heldout/first and second of old ones."""
    root = tmp_path_factory.mktemp("languages")
    (root / "t5").mkdir()
    _tuned.write_model(root / "t5", "t5")
    _tuned.write_rows(root / "first", rows("old"))
    _tuned.write_rows(root / "new", rows("", shift=1).with_columns(pl.col("label") + " too"))
    _tuned.write_rows(root / "heldout/first", rows("", count=20, shift=2))
    _tuned.write_rows(root / "heldout/second", rows("", count=10, shift=3))
    told = {"kind": "generation", "length": 32, "settings": SETTINGS,
            "training": {"steps": 100, "batch": 16, "lr": 3.0e-2, "evaluate_steps": 50}}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("tasks.slots.FOLDER", root / "slots")
        finetune("old", told, root / "first", root / "t5", root / "old", None)
    return root


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


def go(made, out, checkpoints=None, **more):
    chosen = {"new": "new", "old": ["old"], "heldout": {"old": "first"}, "length": 32, "settings": SETTINGS,
              "training": TRAINING, **more}  # fmt: skip
    return distill_languages("more", chosen, made / "old", made / "new", out, checkpoints, made / "heldout")


@pytest.mark.parametrize("level", ["words", "text"])
def test_one_to_many(made, tmp_path, level):
    metrics = go(made, out := tmp_path / "out", method={"level": level})
    assert metrics["export"]["equal"] and metrics["export"]["class"] == "T5ForConditionalGeneration"
    kept = pl.read_parquet(out / "remembered.parquet")
    train = pl.read_parquet(made / "new/rows/train.parquet")
    assert set(kept["text"]) <= {f"old {text}" for text in train["text"]} and (kept["label"] != "").all()
    about, curve = read_json(out / "run.json"), pl.read_csv(out / "curve.csv")
    assert about["remembered"] == len(kept) and about["dropped"] == len(train) - len(kept)
    assert {"new", "kept", "heldout_loss"} <= set(curve.columns) and "chrf" in metrics["dev"]
    assert metrics["old"]["old"]["kl"] >= 0 and metrics["old"]["old"]["before"] > 0


def test_a_champion_is_measured_on_the_tagged_rows(made, tmp_path):
    metrics = go(made, out := tmp_path / "out", heldout=None)
    found = rescore(out / "model", out, made / "new").metrics  # the same files, so the same numbers
    assert found == pytest.approx({key: metrics["dev"][key] for key in found}, abs=1e-5)
    about = read_json(out / "run.json")
    assert about["tag"] == "new" and about["teacher_content"] == digest(made / "old/model")
    write_json(out / "run.json", about | {"tag": "old"})
    assert rescore(out / "model", out, made / "new").metrics["loss"] != pytest.approx(found["loss"], abs=1e-5)


def test_what_is_remembered_moves_less(made, tmp_path):
    training = TRAINING | {"steps": 40, "patience": None}
    plain = go(made, tmp_path / "plain", method={"weight": 0.0}, training=training)
    kept = go(made, tmp_path / "kept", method={"weight": 2.0}, training=training)
    assert kept["old"]["old"]["kl"] < 0.7 * plain["old"]["old"]["kl"]
    assert kept["old"]["old"]["after"] < plain["old"]["old"]["after"]
    assert kept["old"]["old"]["before"] == pytest.approx(plain["old"]["old"]["before"])


class Steep:
    """An evaluation whose loss counts ten times."""

    def __init__(self, judged):
        self.judged = judged

    def answers(self, model):
        metrics, answers = self.judged.answers(model)
        return metrics | {"loss": 10 * metrics["loss"]}, answers


def test_the_kept_weights_are_the_best_of_all_languages(made, tmp_path, monkeypatch):
    """By the new language alone a later step would be kept: its loss falls, but ten times that of the old one rises
    more."""
    training = TRAINING | {"steps": 6, "evaluate_steps": 1, "lr": 5.0e-2}
    more = {"method": {"weight": 0.0}, "training": training}
    go(made, tmp_path / "alone", heldout=None, **more)
    begin = module._Judge.__init__
    steep = lambda self, new, old: begin(self, new, {tag: Steep(each) for tag, each in old.items()})
    monkeypatch.setattr(module._Judge, "__init__", steep)
    both = go(made, tmp_path / "both", heldout={"old": "first"}, **more)
    curve = pl.read_csv(tmp_path / "both/curve.csv")
    mean = (curve["heldout_loss"] + curve["heldout_old_old"]) / 2
    assert curve["heldout_mean_loss"].to_list() == pytest.approx(mean.to_list())
    best = int(curve["step"][mean.arg_min()])
    about = [read_json(tmp_path / each / "run.json") for each in ("both", "alone")]
    assert about[0]["best_step"] == best < about[1]["best_step"]
    assert 10 * both["old"]["old"]["after"] == pytest.approx(curve["heldout_old_old"][mean.arg_min()], rel=1e-4)
    assert 10 * both["old"]["old"]["before"] == pytest.approx(curve["heldout_old_old"][0], rel=1e-4)


def test_every_language_counts_alike_with_its_own_tag(made, tmp_path):
    metrics = go(made, tmp_path / "out", old=["old", ""], heldout={"old": "first", "plain": "second"})
    first = pl.read_csv(tmp_path / "out/curve.csv").row(0, named=True)
    names = ("heldout_loss", "heldout_old_old", "heldout_old_plain")
    assert first["heldout_mean_loss"] == pytest.approx(sum(first[name] for name in names) / 3)
    assert set(metrics["old"]) == {"old", "plain"} and len({first[name] for name in names}) == 3


def test_a_teacher_that_is_written_meanwhile_is_noticed(made, tmp_path, monkeypatch):
    old = shutil.copytree(made / "old", tmp_path / "old")
    real = module.run

    def writes(*given):
        (old / "model/config.json").write_text((old / "model/config.json").read_text() + " ")
        return real(*given)

    monkeypatch.setattr(module, "run", writes)
    chosen = {"new": "new", "old": ["old"], "length": 32, "settings": SETTINGS, "training": TRAINING}
    with pytest.raises(TeacherChanged, match="was written while its student was being trained; run this again"):
        distill_languages("more", chosen, old, made / "new", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_many_to_one_by_pseudo_input(made, tmp_path):
    (tmp_path / "words.tsv").write_text("red\tgreen\nlamp\tchair\nA\tthe\n")
    go(made, tmp_path / "out", inputs="pseudo", dictionary=str(tmp_path / "words.tsv"))
    kept = pl.read_parquet(tmp_path / "out/remembered.parquet")
    assert kept["text"].str.starts_with("old the ").all() and not kept["text"].str.contains(r"\b(red|lamp)\b").any()
    (tmp_path / "words.tsv").write_text("rouge\tred\n")
    with pytest.raises(Rejected, match="none of the words"):
        go(made, tmp_path / "x", inputs="pseudo", dictionary=str(tmp_path / "words.tsv"))


def test_many_to_one_by_a_reverse_teacher(made, tmp_path):
    go(made, tmp_path / "out", inputs="reverse", reverse=str(made / "old"))
    kept = pl.read_parquet(tmp_path / "out/remembered.parquet")
    train = pl.read_parquet(made / "new/rows/train.parquet")
    assert len(kept) > 0 and not set(kept["text"]) & {f"old {text}" for text in train["text"]}
    assert kept["text"].str.starts_with("old ").all()


def test_a_stopped_run_continues_bit_for_bit(made, tmp_path):
    last = TRAINING | {"patience": None}  # its last weights: the best may be those before any step
    go(made, tmp_path / "whole", training=last)
    again = lambda: go(made, tmp_path / "cut", tmp_path / "kept", training=last | {"checkpoint_steps": 4})
    killed(module, again, 7)
    assert continued(module, again).resumed_at == 4 and not (tmp_path / "kept").exists()
    assert same_weights(tmp_path / "whole/model", tmp_path / "cut/model")


def test_what_cannot_work(made, tmp_path):
    for more, words in (
        ({"old": []}, "needs old"),
        ({"old": "old"}, "needs old"),
        ({"new": "old"}, "is both new and old"),
        ({"inputs": "old"}, "inputs is one of new, pseudo, reverse"),
        ({"inputs": "pseudo"}, "needs dictionary"),
        ({"inputs": "reverse", "reverse": "nowhere"}, "needs reverse"),
        ({"method": {"level": "word"}}, "level is one of"),
        ({"heldout": {"odl": "first"}}, "heldout has no 'odl'; closest: old"),
        ({"heldout": {"": "first"}}, "heldout has no ''; closest: old"),
        ({"heldout": ["first"]}, r"heldout is \{tag: data set\}, such as \{old: pairs\}; got \['first'\]"),
        ({"heldout": {"old": "third"}}, "third, held out as 'old', has no rows/dev.parquet; run its ingest stage"),
    ):
        with pytest.raises((ValueError, LookupError, OSError), match=words):
            go(made, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()
    (tmp_path / "bert").mkdir()
    _tuned.write_model(tmp_path / "bert", "bert")
    chosen = {"new": "new", "old": ["old"]}
    with pytest.raises(SettingsError, match="no folder was given that has them; give HELDOUT"):
        distill_languages("more", chosen | {"heldout": {"old": "first"}}, made / "old", made / "new", tmp_path / "out",
                          None)  # fmt: skip
    with pytest.raises(Rejected, match="writes nothing"):
        distill_languages("more", chosen, tmp_path / "bert", made / "new", tmp_path / "out", None)


def test_on_real_pairs(made, shared_data, tmp_path, capsys):
    """Sentences in two languages, as a command."""
    import yaml

    file = shared_data and shared_data / "parallel/tatoeba_en_zh/pairs.parquet"
    if file and file.is_file():
        pairs = pl.read_parquet(file).select(text="zh", label="en").head(30)
    else:
        pairs = pl.DataFrame({"text": [f"第{n}盏灯" for n in range(30)], "label": [f"lamp {n}" for n in range(30)]})
    split = pl.when(pl.int_range(pl.len()) % 5 == 0).then(pl.lit("dev")).otherwise(pl.lit("train"))
    _tuned.write_rows(tmp_path / "pairs", pairs.with_columns(second=pl.lit(None, pl.String), split=split))
    entry = {"new": "zh", "old": ["old", ""], "heldout": {"old": "first"}, "length": 32, "settings": SETTINGS,
             "training": TRAINING | {"steps": 2}}  # fmt: skip
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"distill": {"languages": {"zh": entry}}}))
    places = (made / "old", *(tmp_path / each for each in ("pairs", "out", "kept")), made / "heldout")
    module.main("params.yaml:distill.languages", "zh", *map(str, places))
    assert "old languages: old moved by" in (said := capsys.readouterr().out) and "languages zh: dev loss" in said
    assert set(pl.read_parquet(tmp_path / "out/remembered.parquet")["tag"]) <= {"old", ""}
