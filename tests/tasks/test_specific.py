"""A trained student goes on with a task: what it begins from, its stages, what is written, refusals."""

import shutil

import _taught
import _tuned
import pytest
import torch
from _taught import TRAINING
from safetensors.torch import load_file

from models.components import pretrained
from models.components._model import assemble
from tasks import distill as module
from tasks.distill import Stepped, TeacherChanged, planned
from tasks.files import digest, read_json, write_json
from tasks.finetune import finetune
from tasks.kinds._kind import Rejected
from tasks.settings import SettingsError

INNER = {"of": {"tinybert": {}}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """teacher/ of three layers on rows/, bert-small/ of two with the same tokenizer, and tokens/ of another one."""
    with _taught.place(tmp_path_factory.mktemp("specific")) as root:
        _taught.classifier(root, "teacher", epochs=4)
        pretrained_bert(root, "bert-small", 2)
        _taught.write_text(root)
        return root


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


def pretrained_bert(root, name, layers, length=None):
    """A BERT with the teacher's tokenizer and weights of its own."""
    from tasks.tokenizer import Vocabulary

    shutil.copytree(root / "words", folder := root / name)
    recipe = _tuned.RECIPES["bert"] | {"vocabulary": Vocabulary.open(folder).size}
    recipe["encoder"] = {"transformer": {"layers": layers, "heads": 2, "inner": 64}}
    if length:
        recipe["embedding"] = recipe["embedding"] | {"position": {"length": length}}
    torch.manual_seed(10 + layers)
    pretrained.save(assemble(recipe), recipe, folder, "bert", {"pad_token_id": 0})


def go(made, out, entry=INNER, start="bert-small", **more):
    return _taught.go(made, "shop", out, "specific", entry, start=start, **more)


def first(made, monkeypatch, tmp_path, **more) -> dict[str, torch.Tensor]:
    """The student's weights when its first stage begins."""
    seen = {}

    def stops(model, *_):
        seen.update({name: value.clone() for name, value in model.student.state_dict().items()})
        raise ConnectionError("seen enough")

    with monkeypatch.context() as patch:
        patch.setattr(module, "run", stops)
        with pytest.raises(ConnectionError):
            go(made, tmp_path / "out", **more)
    return seen


HEAD = "targets.cls.head."


def test_it_begins_with_every_weight_but_the_head(made, tmp_path, monkeypatch):
    was = pretrained.read(made / "bert-small").state
    student = first(made, monkeypatch, tmp_path)
    assert {name for name in student if name.startswith("encoder.layers.")} == {
        name for name in was if name.startswith("encoder.layers.")
    }
    for name, value in student.items():
        if not name.startswith(HEAD):
            assert torch.equal(value, was[name.replace("targets.cls.pool", "targets.sp.pool")]), name
    again = first(made, monkeypatch, tmp_path)
    other = first(made, monkeypatch, tmp_path, training=TRAINING | {"seed": 4})
    assert torch.equal(again[f"{HEAD}weight"], student[f"{HEAD}weight"])
    assert not torch.equal(other[f"{HEAD}weight"], student[f"{HEAD}weight"])


def test_the_head_of_another_student_is_left_behind(made, tmp_path, monkeypatch):
    _taught.go(made, "kd", tmp_path / "before")
    was = load_file(tmp_path / "before/model/model.safetensors")
    student = first(made, monkeypatch, tmp_path, start=tmp_path / "before")
    assert torch.equal(student["encoder.layers.1.feedforward.inner.weight"],
                       was["bert.encoder.layer.1.intermediate.dense.weight"])  # fmt: skip
    assert student[f"{HEAD}weight"].shape == was["classifier.weight"].shape
    assert not torch.equal(student[f"{HEAD}weight"], was["classifier.weight"])


@pytest.mark.parametrize(
    ("entry", "stages"),
    [
        (INNER, ["inner", "logits"]),
        ({"of": {"annealing_kd": {}}}, ["soft", "hard"]),
        ({"of": "minilm"}, ["minilm", "gold"]),
        ({"of": {"pkd": {}, "kd": {"weight": 0.5}}}, ["shop"]),
        ({}, ["gold"]),
        ({"of": {"distilbert": {}}, "stages": ["gold"]}, ["gold"]),
    ],
)
def test_any_method_of_a_task_goes_on(made, tmp_path, entry, stages):
    metrics = go(made, out := tmp_path / "out", entry, student={"layers": 1})  # of all others: not this one's
    assert metrics["export"]["equal"] is True and metrics["export"]["class"] == "BertForSequenceClassification"
    about = read_json(out / "run.json")
    assert about["stages"] == stages and about["part"] == "specific"
    assert about["start"] == str(made / "bert-small") and about["start_content"] == digest(made / "bert-small")
    assert about["teacher"] == str(made / "teacher")
    assert read_json(out / "recipe.json")["model"]["encoder"]["transformer"]["layers"] == 2
    taught = read_json(made / "teacher/metrics.json")["dev"]
    assert metrics["kept"] == pytest.approx(metrics["dev"]["accuracy"] / taught["accuracy"])


def test_gold_labels_alone_are_plain_fine_tuning(made, tmp_path):
    training = TRAINING | {"steps": 6}
    go(made, tmp_path / "out", {}, training=training)
    chosen = {"kind": "classification", "length": 32, "training": training}
    finetune("category", chosen, made / "rows", made / "bert-small", tmp_path / "plain", None)
    one, two = (load_file(tmp_path / out / "model/model.safetensors") for out in ("out", "plain"))
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_teacher_that_was_asked_beforehand(made, tmp_path):
    """What it said stands in for it, and gold labels ask it nothing."""
    cache = {"store": "float32"}
    live = go(made, tmp_path / "live")
    kept = go(made, tmp_path / "out", cache=cache, kept=tmp_path / "said")
    assert kept["dev"] == pytest.approx(live["dev"], rel=1e-4)
    assert sorted(each.name for each in (tmp_path / "said").iterdir()) == ["inner", "logits"]
    go(made, tmp_path / "plain", {}, cache=cache, kept=tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_its_steps_replace_the_epochs_of_all(made):
    """A line that reads running text needs steps, where the settings of all count epochs."""
    entry = {"of": {"tinybert": {}}, "training": {"steps": 3}, "stages": {"inner": {}, "logits": {"epochs": 2}}}
    chosen = {"training": {"epochs": 5, "lr": 0.01}, "specific": {"shop": entry}}
    plan = planned(chosen, "specific", "shop", made / "teacher", made / "rows", made / "bert-small")
    assert [stage.training for stage in plan.stages] == [{"lr": 0.01, "steps": 3}, {"lr": 0.01, "epochs": 2}]


def test_a_method_keeps_a_setting_that_is_called_start(made):
    chosen = {"student": {"layers": 1}, "methods": {"theseus": {"start": 0.25}}}
    [stage] = planned(chosen, "methods", "theseus", made / "teacher", made / "rows").stages
    assert stage.objective.methods["theseus"].start == 0.25


@pytest.mark.parametrize(
    ("entry", "start", "error", "words"),
    [
        (INNER, None, SettingsError, "distill.specific.shop begins from a trained model; give START"),
        (INNER, "nowhere", FileNotFoundError, "nowhere has neither config.json nor recipe.json"),
        (INNER, "teacher", SettingsError, "are one model, which has nothing to learn from itself"),
        (INNER, "deep", Rejected, r"deep has 4 layers, its teacher .*teacher has 3: a student has as many at most"),
        ({}, "deep", Rejected, "deep has 4 layers"),
        (INNER, "short", SettingsError, "distill.length is 32, but .*short has positions for 16 tokens"),
        (INNER, "stranger", Rejected, "stranger reads words by another tokenizer"),
        (INNER, "recurrent", Rejected, "no student begins from .*recurrent: this model has a gru encoder"),
        ({"of": {"wid": {}}}, "bert-small", SettingsError, "wid narrows a pre-trained model on running text"),
        ({"of": {"minillm": {}}}, "bert-small", SettingsError, "minillm lets models write on running text"),
        (INNER | {"student": {"layers": 1}}, "bert-small", SettingsError, "has student, which specific do not have"),
        ({"of": "glmd", "vocabulary": {"ratio": 0.5}}, "bert-small", SettingsError, "has vocabulary, which specific"),
        (INNER | {"teachers": ["a"]}, "bert-small", SettingsError, "has teachers, which specific do not have"),
        ({"tinybert": {}}, "bert-small", SettingsError, "has tinybert; its methods stand below `of`"),
        ({"stages": ["inner"]}, "bert-small", SettingsError, "distill.specific.shop has no method; give at least one"),
        ({"of": {"distilbert": {}}}, "bert-small", LookupError, "logits of words, but the student only has cls"),
    ],
)
def test_what_cannot_go_on(made, tmp_path, entry, start, error, words):
    if start in ("deep", "short") and not (made / start).exists():
        pretrained_bert(made, start, 4 if start == "deep" else 2, 16 if start == "short" else None)
    if start == "stranger":
        shutil.copytree(made / "bert-small", tmp_path / start)
        _tuned.write_tokenizer(tmp_path / start, rows=480)
    if start == "recurrent":
        recurrent(made, tmp_path / start)
    where = tmp_path / start if start and (tmp_path / start).exists() else start
    with pytest.raises(error, match=words):
        go(made, tmp_path / "out", entry, where)
    assert not (tmp_path / "out").exists()


def recurrent(made, folder):
    from safetensors.torch import save_file

    from tasks.tokenizer import Vocabulary

    shutil.copytree(made / "words", folder)
    recipe = _tuned.RECIPES["bert"] | {"vocabulary": Vocabulary.open(folder).size, "encoder": {"gru": {"layers": 2}}}
    state = assemble(recipe).state_dict()
    save_file({name: value.clone().contiguous() for name, value in state.items()}, folder / "model.safetensors")
    write_json(folder / "recipe.json", recipe)


def test_running_text_is_not_for_a_task(made, tmp_path):
    with pytest.raises(Rejected, match="tokens has no labelled rows, .* On running text, continue its pre-training"):
        go(made, tmp_path / "out", data="tokens")


def test_a_start_that_changed_is_noticed(made, tmp_path, monkeypatch):
    copy = shutil.copytree(made / "bert-small", tmp_path / "begun")
    rows = Stepped.rows

    def overwrites(self, indices):
        (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
        return rows(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(Stepped, "rows", overwrites)
        with pytest.raises(TeacherChanged, match="begun was written while its student was being trained"):
            go(made, tmp_path / "out", start=copy)
    assert not (tmp_path / "out").exists()


def test_another_start_is_another_run(made, tmp_path, monkeypatch):
    """Checkpoints of a student that began from other files are not continued."""
    copy = shutil.copytree(made / "bert-small", tmp_path / "begun")
    with monkeypatch.context() as patch:
        patch.setattr(Stepped, "rows", lambda *_: (_ for _ in ()).throw(ConnectionError("pulled out")))
        for _ in range(2):
            with pytest.raises(ConnectionError):
                go(made, tmp_path / "out", start=copy, checkpoints=tmp_path / "kept")
            (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert len(list((tmp_path / "kept").iterdir())) == 2
