"""Students of several teachers, of a chain, of the teacher itself, of fewer words, and of texts that models write."""

import shutil

import _taught
import _tuned
import pytest
import torch
from _taught import TRAINING

from models import names
from tasks.files import read_json, write_json
from tasks.kinds._kind import Rejected
from tasks.settings import SettingsError

COMBINERS = {"tmkd": ["finetune"], "mt_bert": ["mt_bert"], "rl_kd": ["average", "policy"],
             "uncertainty": ["uncertainty"], "dgkd": ["dgkd"]}  # fmt: skip
SAMPLED = {"on_policy": {"new_tokens": 6}, "minillm": {"new_tokens": 6},
           "distillm": {"new_tokens": 6, "capacity": 12, "length": 64}}  # fmt: skip
LONG = TRAINING | {"steps": 5, "checkpoint_steps": 2, "evaluate_rows": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """teacher/ and small/ on rows/; writer/ (BERT), gpt/ and llama/ on tokens/."""
    with _taught.place(tmp_path_factory.mktemp("taught")) as root:
        _taught.classifier(root, "small", layers=2, seed=1, epochs=8)
        _taught.classifier(root, "teacher")
        _taught.write_text(root)
        for name, recipe in (("writer", "bert"), ("gpt", "gpt2"), ("llama", "llama")):
            _taught.writer(root, name, recipe)
        return root


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


go = _taught.go


def go_text(made, name, out, entry=None, teacher="gpt", **more):
    more = {"student": {"layers": 1}, "training": TRAINING | {"evaluate_rows": 8}, **more}
    return go(made, name, out, entry=entry, teacher=teacher, data="tokens", **more)


def several(by, of=None, **more):
    return {"teachers": ["small", "large"], "by": by} | ({"of": of} if of else {}) | more


# ---------------------------------------------------------------- several teachers


def test_every_combiner_is_known_here():
    assert set(COMBINERS) == set(names("distill.teachers"))


@pytest.mark.parametrize("name", sorted(COMBINERS))
def test_teachers_speak_as_one(made, tmp_path, name):
    entry = several({name: {}})
    metrics = go(made, "both", out := tmp_path / "out", "several", entry, teacher=["small", "teacher"])
    assert metrics["export"]["equal"] is True
    about = read_json(out / "run.json")
    assert about["stages"] == COMBINERS[name]
    assert [each["folder"] for each in about["teachers"]] == [str(made / each) for each in ("small", "teacher")]
    assert about["teacher"] == str(made / "teacher")
    best = max(each["accuracy"] for each in metrics["teachers"])
    assert metrics["kept"] == pytest.approx(metrics["dev"]["accuracy"] / best)


@pytest.mark.parametrize("of", [{"minilm": {}}, {"pkd": {}, "kd": {"weight": 0.5}}, {"tinybert": {"stage": "inner"}}])
def test_any_method_or_mix_under_a_combiner(made, tmp_path, of):
    entry = several({"dgkd": {"keep": 1.0}}, of)
    metrics = go(made, "both", tmp_path / "out", "several", entry, teacher=["small", "teacher"])
    assert metrics["export"]["equal"] is True


def test_teachers_of_running_text(made, tmp_path):
    entry = several("tmkd")
    more = {"student": {"layers": 1}, "training": TRAINING | {"evaluate_rows": 8}}
    with _taught.place(tmp_path):
        shutil.copytree(made / "tokenizer", tmp_path / "tokenizer")
        shutil.copytree(made / "tokens", tmp_path / "tokens")
        _taught.writer(tmp_path, "other", "bert", steps=2)
    go(made, "both", out := tmp_path / "out", "several", entry, teacher=[tmp_path / "other", "writer"], data="tokens",
       **more)  # fmt: skip
    assert read_json(out / "run.json")["stages"] == ["pretrain"]


def test_a_chain_knows_its_larger_models(made, tmp_path):
    """Teacher -> assistant -> student; DGKD then reads both of the larger ones, the smaller first."""
    chain = {"of": {"kd": {}}, "student": {"layers": 2}}
    go(made, "half", half := tmp_path / "half", "chains", chain)
    last = {"of": {"kd": {}}, "by": {"dgkd": {}}, "student": {"layers": 1}}
    go(made, "third", out := tmp_path / "third", "chains", last, teacher=half)
    about = read_json(out / "run.json")
    assert [each["folder"] for each in about["teachers"]] == [str(half), str(made / "teacher")]
    go(made, "plain", alone := tmp_path / "plain", "chains", {"of": "minilm", "student": {"layers": 1}}, teacher=half)
    assert read_json(alone / "run.json")["teacher"] == str(half)
    assert read_json(alone / "run.json")["stages"] == ["minilm", "gold"]


@pytest.mark.parametrize(
    ("entry", "teacher", "error", "words"),
    [
        ({"teachers": ["a", "b"]}, ["small", "teacher"], SettingsError, "lacks by: how its teachers speak as one"),
        ({"by": {"tmkd": {}}}, ["small", "teacher"], SettingsError, "lacks teachers: names of distill.teachers"),
        (
            several({"tmkd": {}, "dgkd": {}}),
            ["small", "teacher"],
            SettingsError,
            "one way of combining teachers, got 2",
        ),
        (several("tmk"), ["small", "teacher"], LookupError, "has no 'tmk'; closest: tmkd"),
        (several({"dgkd": {"kep": 1}}), ["small", "teacher"], TypeError, "it accepts: .*keep"),
        (several("tmkd"), ["teacher", "teacher"], SettingsError, "are one teacher, which would count twice"),
        (several("tmkd"), ["teacher"], ValueError, "TMKD needs at least 2 teachers, got 1"),
        (several("uncertainty"), ["teacher", "small"], ValueError, "teachers go from the smallest to the largest"),
        (
            several("dgkd", {"wid": {}}),
            ["small", "teacher"],
            SettingsError,
            "wid rebuilds the teacher into the student",
        ),
        (several("dgkd", {"theseus": {}}), ["small", "teacher"], ValueError, "compares nothing with a teacher"),
        (several("tmkd", teacher={}), ["small", "teacher"], SettingsError, "has teacher, which several do not have"),
        (several("tmkd"), ["small", "stranger"], Rejected, "by another tokenizer"),
        (several("tmkd"), ["small", "turned"], Rejected, "says its classes in another order"),
    ],
)
def test_teachers_that_cannot_speak_as_one(made, tmp_path, entry, teacher, error, words):
    for name in {"stranger", "turned"} & set(teacher):
        shutil.copytree(made / "teacher", tmp_path / name)
    if "turned" in teacher:
        about = read_json(tmp_path / "turned/run.json")
        write_json(tmp_path / "turned/run.json", about | {"labels": about["labels"][::-1]})
        config = tmp_path / "turned/model/config.json"  # so that it is another teacher
        config.write_text(config.read_text() + "\n")
    if "stranger" in teacher:
        _tuned.write_tokenizer(tmp_path / "stranger/model", rows=480)
        about = read_json(tmp_path / "stranger/run.json")
        write_json(tmp_path / "stranger/run.json", {key: value for key, value in about.items() if key != "tokenizer"})
    by = [tmp_path / each if (tmp_path / each).exists() else each for each in teacher]
    with pytest.raises(error, match=words):
        go(made, "both", tmp_path / "out", "several", entry, teacher=by)
    assert not (tmp_path / "out").exists()


NARROW = {"layers": 2, "width": 16}


@pytest.mark.parametrize(
    ("name", "entry", "teacher", "error", "words"),
    [
        (
            "wid",
            {"student": NARROW},
            "writer",
            ValueError,
            "after 8000 steps, 16 updates of its masks, but the run has 2",
        ),
        (
            "wid",
            {"student": {"layers": 1, "width": 16}},
            "writer",
            ValueError,
            "WID keeps the depth, but the student has 1",
        ),
        ("wid", {"student": NARROW, "training": {"patience": 2}}, "writer", SettingsError, "take out patience"),
        ("wid", {"student": NARROW}, "gpt", LookupError, "wid narrows a masked language model"),
        (
            "on_policy",
            {},
            "gpt",
            SettingsError,
            "128 tokens after a prompt of 8, but the models have positions for 128",
        ),
        ("on_policy", SAMPLED["on_policy"], "writer", LookupError, "the student only has mlm, sp; take a decoder"),
        ("on_policy", SAMPLED["on_policy"] | {"prompt": 0}, "gpt", ValueError, "a prompt of at least one token"),
        (
            "on_policy",
            SAMPLED["on_policy"] | {"training": {"micro": 4}},
            "gpt",
            SettingsError,
            "micro-batches of 4 of 8",
        ),
        ("glmd", {"vocabulary": {"ratio": 0}}, "writer", ValueError, "the share of words to keep, in"),
        ("glmd", {"vocabulary": {"share": 0.5}}, "writer", LookupError, "share"),
        ("distilbert", {"vocabulary": {"multiple": 8}}, "writer", ValueError, "words and the teacher"),
    ],
)
def test_what_running_text_cannot_do(made, tmp_path, name, entry, teacher, error, words):
    with pytest.raises(error, match=words):
        go_text(made, name, tmp_path / "out", entry, teacher)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the teacher, narrowed


def test_wid_ends_as_a_plain_narrow_model(made, tmp_path):
    from transformers import AutoModel

    entry = {"every": 1, "student": {"layers": 2, "width": 16}}
    training = TRAINING | {"steps": 24, "evaluate_rows": 8, "evaluate_steps": 12}
    metrics = go_text(made, "wid", out := tmp_path / "out", entry, "writer", training=training)
    assert metrics["export"]["equal"] is True
    about = read_json(out / "run.json")
    model = AutoModel.from_pretrained(out / "model")
    assert type(model).__name__ == "BertModel"
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (16, 2)
    assert model.config.tie_word_embeddings is False
    assert about["ratio"] < 1
    curve = (out / "curve.csv").read_text().splitlines()
    columns = curve[0].split(",")
    trained = float(curve[-1].split(",")[columns.index("heldout_loss")])
    assert metrics["dev"]["loss"] == pytest.approx(trained, rel=1e-4)  # what is merged is what was trained


# ---------------------------------------------------------------- fewer words


def test_the_words_that_are_kept_are_part_of_the_model(made, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    entry = {"vocabulary": {"ratio": 0.5, "multiple": 8}, "student": {"layers": 1}}
    metrics = go_text(made, "glmd", out := tmp_path / "out", entry, "writer")
    assert metrics["export"]["equal"] is True
    about, words = read_json(out / "run.json"), load_file(out / "model/words.safetensors")
    assert about["stages"] == ["corpus"]
    kept, row = words["keep"], words["to_student"]
    assert about["words"]["kept"] == len(kept) == -(-len(row) // 16) * 8 < len(row)
    assert torch.equal(row[kept], torch.arange(len(kept)))
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (out / "model", made / "writer/model"))
    text = "small wooden table lamp sold"
    was = torch.tensor(theirs(text)["input_ids"])
    assert ours(text)["input_ids"] == row[was].tolist()
    assert ours.cls_token_id == int(row[theirs.cls_token_id])
    model = AutoModelForMaskedLM.from_pretrained(out / "model")
    assert model(torch.tensor([ours(text)["input_ids"]])).logits.shape[-1] == len(kept)


# ---------------------------------------------------------------- texts that models write


@pytest.mark.parametrize("teacher", ["gpt", "llama"])
@pytest.mark.parametrize("name", sorted(SAMPLED))
def test_models_write_what_they_learn_from(made, tmp_path, name, teacher):
    metrics = go_text(made, name, out := tmp_path / "out", SAMPLED[name] | {"prompt": 4}, teacher)
    assert metrics["export"]["equal"] is True
    assert read_json(out / "run.json")["stages"] == [name]
    assert {"lm", "perplexity"} <= set(metrics["dev"])


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("on_policy", SAMPLED["on_policy"] | {"on_policy": 1.0}),
        ("minillm", SAMPLED["minillm"]),
        ("distillm", SAMPLED["distillm"] | {"tolerance": 0.0, "rise": 1.0}),
    ],
)
def test_texts_are_written_again_after_a_break(made, tmp_path, monkeypatch, name, entry):
    """The buffer, the share of student texts and all chances: the run ends bit for bit as an unbroken one."""
    unbroken_and_broken(made, tmp_path, monkeypatch, lambda out, kept: go_text(
        made, name, out, entry | {"prompt": 4}, training=LONG | {"evaluate_steps": 1}, checkpoints=kept))  # fmt: skip


def test_masks_are_lost_again_after_a_break(made, tmp_path, monkeypatch):
    entry = {"every": 1, "student": {"layers": 2, "width": 16}}
    training = LONG | {"steps": 24, "evaluate_steps": 12}
    unbroken_and_broken(made, tmp_path, monkeypatch, lambda out, kept: go_text(
        made, "wid", out, entry, "writer", training=training, checkpoints=kept))  # fmt: skip


@pytest.mark.parametrize("name", ["rl_kd", "dgkd"])
def test_teachers_are_chosen_again_after_a_break(made, tmp_path, monkeypatch, name):
    entry = several({name: {}})
    unbroken_and_broken(made, tmp_path, monkeypatch, lambda out, kept: go(
        made, "both", out, "several", entry, kept, ["small", "teacher"], training=LONG))  # fmt: skip


def test_a_student_that_began_elsewhere_goes_on_after_a_break(made, tmp_path, monkeypatch):
    """Its new head too: in the second of two stages."""
    entry = {"of": {"tinybert": {}}, "stages": {"inner": {"steps": 2}, "logits": {}}}
    unbroken_and_broken(made, tmp_path, monkeypatch, lambda out, kept: go(
        made, "shop", out, "specific", entry, kept, start="bert-small", training=LONG))  # fmt: skip


def unbroken_and_broken(made, tmp_path, monkeypatch, start):
    from tasks.lessons import Stepped

    start(tmp_path / "whole", None)
    rows, seen = Stepped.rows, []

    def breaks(self, indices):
        seen.append(indices[0] // self.batch)
        if self.fixed is None and seen[-1] == 3:
            raise ConnectionError("pulled out")
        return rows(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(Stepped, "rows", breaks)
        with pytest.raises(ConnectionError):
            start(tmp_path / "again", tmp_path / "kept")
    assert list((tmp_path / "kept").rglob("step-*.safetensors"))
    start(tmp_path / "again", tmp_path / "kept")
    one, two = (tmp_path / out / "model/model.safetensors" for out in ("whole", "again"))
    assert one.read_bytes() == two.read_bytes()
