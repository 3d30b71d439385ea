"""A teacher becomes a student: every method on tiny models, stages, resume, what is written, refusals."""

import math

import _taught
import polars as pl
import pytest
import torch
from _taught import TRAINING

from models import build, names
from models.components._model import assemble
from models.distill._distillation import Distillation, Gold
from models.distill._objective import Objective
from models.distill._student import new_student, shape_of, student_recipe
from tasks.curriculum import read_entry, stages_of
from tasks.distill import Stepped, TeacherChanged
from tasks.files import digest, read_json, write_json
from tasks.kinds._kind import Rejected
from tasks.settings import SettingsError
from tasks.tokenizer import TokenizerError, make_tokenizer
from tasks.tokens import tokens

SETTINGS = {"minilmv2": {"relation_heads": 4}, "mgskd": {"span": 0, "heads": 4}}
OF_TEXT = {"distilbert", "diito"}  # they compare words
OWN_LOOP = {"on_policy", "minillm", "distillm", "wid"}
GOLD_LAST = {"minilm", "minilmv2"}  # they only look inside
STAGES = {"tinybert": ["inner", "logits"], "mgskd": ["inner", "logits"], "annealing_kd": ["soft", "hard"],
          "universal_kd": ["soft", "hard"], "lrc_bert": ["inner", "all"], "glmd": ["labels"]}  # fmt: skip
OUT = {"model", "recipe.json", "run.json", "metrics.json", "curve.csv", "extra"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """teacher/ of three layers on rows/, and of two layers writer/ on tokens/."""
    with _taught.place(tmp_path_factory.mktemp("distilled")) as root:
        _taught.classifier(root, "teacher")
        _taught.write_text(root)
        _taught.writer(root, "writer", "bert")
        return root


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # locks and slots of this test only
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


def go(made, name, out, part="methods", entry=None, checkpoints=None, teacher="teacher", data="rows", **more):
    entry = SETTINGS.get(name, {}) if entry is None else entry
    return _taught.go(made, name, out, part, entry, checkpoints, teacher, data, **more)


def go_text(made, name, out, **more):
    more = {"student": {"layers": 1}, "training": TRAINING | {"evaluate_rows": 8}, **more}
    return go(made, name, out, teacher="writer", data="tokens", **more)


# ---------------------------------------------------------------- methods


@pytest.mark.parametrize("name", sorted(set(names("distill")) - OF_TEXT - OWN_LOOP))
def test_every_method_of_a_task(made, tmp_path, name):
    before = digest(made / "teacher")
    metrics = go(made, name, out := tmp_path / "out")
    assert digest(made / "teacher") == before
    assert {file.name for file in out.iterdir()} == OUT
    assert metrics["export"]["equal"] is True and metrics["export"]["class"] == "BertForSequenceClassification"
    about, curve = read_json(out / "run.json"), pl.read_csv(out / "curve.csv")
    assert about["stages"] == STAGES.get(name, [name]) + ["gold"] * (name in GOLD_LAST)
    assert curve["stage"].unique(maintain_order=True).to_list() == about["stages"]
    assert curve["heldout_loss"].is_finite().all() and curve["step"].max() == about["steps"] == 2 * len(about["stages"])
    assert about["teacher_content"] == digest(made / "teacher/model")
    taught = read_json(made / "teacher/metrics.json")["dev"]
    assert metrics["teacher"] == pytest.approx(taught)
    assert metrics["kept"] == pytest.approx(metrics["dev"]["accuracy"] / taught["accuracy"])
    assert set(metrics["latency_ms"]) == {"student", "teacher"} and about["ratio"] < 1
    from safetensors.torch import load_file

    assert sum(x.numel() for x in load_file(out / "model/model.safetensors").values()) == about["parameters"]
    assert len(pl.read_parquet(out / "extra/predictions.parquet")) == about["evaluated_rows"]
    assert (out / "extra/curve.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("name", "precision"), [("distilbert", "bfloat16"), ("diito", "float32"),
                                                 ("minilmv2", "bfloat16"), ("tinybert", "float32")])  # fmt: skip
def test_every_method_of_running_text(made, tmp_path, name, precision):
    metrics = go_text(made, name, out := tmp_path / "out", precision=precision)
    assert metrics["export"]["equal"] is True and metrics["export"]["targets"] == ["mlm", "sp"]
    assert {"mlm", "perplexity"} <= set(metrics["dev"]) == set(metrics["teacher"])
    assert read_json(out / "run.json")["stages"] == ["pretrain" if name == "tinybert" else name]
    assert "processor" in read_json(out / "recipe.json")
    assert {file.name for file in out.iterdir()} == OUT


def test_a_mix_names_its_methods_and_weighs_them(made, tmp_path):
    entry = {"minilm": {}, "kd": {"weight": 0.5, "temperature": 2.0}, "hard": 0.25}
    go(made, "both", out := tmp_path / "out", "mixes", entry)
    curve = pl.read_csv(out / "curve.csv")
    assert {"minilm", "kd", "hard"} <= set(curve.columns)
    shape = shape_of(teacher().recipe)
    read = read_entry({"student": {"layers": 2}, "mixes": {"both": entry}}, "mixes", "both")
    [stage] = stages_of(read, shape, [shape], True, {})
    assert stage.objective.weights == {"minilm": 1.0, "kd": 0.5} and stage.objective.hard_weight() == 0.25


def test_stages_may_be_chosen_and_trained_differently(made, tmp_path):
    entry = {"stages": {"inner": {"steps": 1}, "gold": {"steps": 3}}}
    go(made, "tinybert", out := tmp_path / "out", entry=entry)
    assert read_json(out / "run.json")["stages"] == ["inner", "gold"]
    assert read_json(out / "run.json")["steps"] == 4


def test_a_student_may_teach(made, tmp_path):
    go(made, "kd", first := tmp_path / "first")
    metrics = go(made, "pd", tmp_path / "second", teacher=first, student={"layers": 1, "width": 16, "start": "random"})
    assert metrics["export"]["equal"] is True


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize(("name", "crash"), [("sid", 1), ("tinybert", 2), ("rail_kd", 1)])
def test_a_resumed_run_ends_as_an_unbroken_one(made, tmp_path, monkeypatch, name, crash):
    training = TRAINING | {"steps": 5, "checkpoint_steps": 2}
    go(made, name, tmp_path / "whole", training=training)
    seen, rows = [], Stepped.rows

    def breaks(self, indices):
        seen.append(indices[0] // self.batch)
        if seen.count(3) == crash:  # in its first stage or its second
            raise ConnectionError("pulled out")
        return rows(self, indices)

    monkeypatch.setattr(Stepped, "rows", breaks)
    with pytest.raises(ConnectionError):
        go(made, name, tmp_path / "again", training=training, checkpoints=tmp_path / "kept")
    assert not (tmp_path / "again").exists()
    monkeypatch.setattr(Stepped, "rows", rows)
    go(made, name, tmp_path / "again", training=training | {"micro": 8}, checkpoints=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    one, two = (tmp_path / out / "model/model.safetensors" for out in ("whole", "again"))
    assert one.read_bytes() == two.read_bytes()


def test_a_teacher_that_changed_is_noticed(made, tmp_path, monkeypatch):
    import shutil

    copy = shutil.copytree(made / "teacher", tmp_path / "teacher")
    rows = Stepped.rows
    monkeypatch.setattr(Stepped, "rows", lambda *_: (_ for _ in ()).throw(ConnectionError("pulled out")))
    with pytest.raises(ConnectionError):
        go(made, "kd", tmp_path / "out", teacher=copy, checkpoints=tmp_path / "kept")
    config = copy / "model/config.json"
    config.write_text(config.read_text() + "\n")
    monkeypatch.setattr(Stepped, "rows", rows)
    with pytest.raises(TeacherChanged, match="bring the teacher back"):
        go(made, "kd", tmp_path / "out", teacher=copy, checkpoints=tmp_path / "kept")

    def overwrites(self, indices):
        config.write_text(config.read_text() + "\n")
        return rows(self, indices)

    monkeypatch.setattr(Stepped, "rows", overwrites)
    with pytest.raises(TeacherChanged, match="while its student was being trained"):
        go(made, "kd", tmp_path / "out", teacher=copy)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- one step


class Made:
    """A teacher in memory."""

    def __init__(self, targets):
        encoder = {"transformer": {"layers": 3, "heads": 2, "inner": 16}}
        embedding = {"word": {}, "position": {"length": 16}}
        sizes = {"width": 8, "vocabulary": 30, "dropout": 0.0}
        self.recipe = {**sizes, "embedding": embedding, "encoder": encoder, "target": targets}
        torch.manual_seed(5)
        self.model = assemble(self.recipe)


def teacher(targets=None) -> Made:
    return Made(targets or {"cls": {"labels": 4}})


def begun(name, made=None, layers=2, **settings) -> Distillation:
    made = made or teacher()
    recipe = student_recipe(made.recipe, layers)
    student = new_student(recipe, "cut", made.model.state_dict())
    method = build("distill", name, shape_of(recipe), shape_of(made.recipe), **settings)
    return Distillation(student, made.model, Objective({name: method}))


def batch(rows=4, places=6):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([places, 3, 4, 2])[:rows]
    return {"ids": torch.randint(30, (rows, places), generator=generator),
            "mask": torch.arange(places) < lengths[:, None],
            "labels_cls": torch.randint(4, (rows,), generator=generator)}  # fmt: skip


def test_by_hand():
    """A head of zeros says 1/4 to each class: soft and hard loss are ln 4 each, whatever the teacher says."""
    model = begun("kd", temperature=1.0)
    for parameter in model.student.targets["cls"].head.parameters():
        torch.nn.init.zeros_(parameter)
    loss, terms = model(**batch())
    assert loss.item() == pytest.approx(2 * math.log(4), rel=1e-5)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"kd": math.log(4), "hard": math.log(4)}
    )


def test_a_student_imitates():
    """A cut student comes close to a decided teacher's answers, without any label."""
    made = teacher()
    for layer in (made.model.targets["cls"].pool, made.model.targets["cls"].head):
        torch.nn.init.normal_(layer.weight)
    model, rows = begun("pd", made, layers=1).eval(), batch()
    torch.nn.init.zeros_(model.student.targets["cls"].head.weight)
    least = -(share := made.model.predict("cls", **rows).softmax(-1)).mul(share.log()).sum(-1).mean()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    gaps = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, _ = model(**rows)
        loss.backward()
        optimizer.step()
        gaps.append((loss - least).item())
    assert gaps[0] > 0.2
    assert 0 < gaps[-1] < 0.1 * gaps[0]


@pytest.mark.parametrize("name", ["kd", "pkd", "theseus", "continuation_kd"])
def test_micro_batches_are_one_batch(name):
    model, whole = begun(name).eval(), batch()
    at = torch.tensor(7)
    model.set_total(10)
    counts = model.counts(**whole)
    loss, _ = model(counts=counts, step=at, **whole)
    parts = [{key: value[part] for key, value in whole.items()} for part in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(model(counts=counts, step=at, **part)[0] for part in parts), loss)
    assert {int(each.step) for each in model.objective.methods.values()} == {7}


def test_gold_labels_of_words_over_micro_batches():
    made = teacher({"mlm": {}})
    model, whole = begun("distilbert", made, soft=0.0, cosine=0.0), batch()
    whole["labels_mlm"] = torch.where(whole["mask"] & (whole["ids"] % 2 == 0), whole["ids"], -100)
    counts = model.counts(**whole)
    parts = [{key: value[part] for key, value in whole.items()} for part in (slice(0, 1), slice(1, 4))]
    plain, _ = model.student(**{key: value for key, value in whole.items() if key != "labels_cls"})
    torch.testing.assert_close(sum(model(counts=counts, **part)[0] for part in parts), 2 * plain)


def test_the_teacher_is_frozen_and_no_part_of_the_state():
    made = teacher()
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    model = begun("tinybert", made, stage="inner").train()
    assert not made.model.training and not any(p.requires_grad for p in made.model.parameters())
    own = {name.split(".")[0] for name in model.state_dict()}
    assert own == {"student", "objective"}
    assert len(model.state_dict()) == len(model.student.state_dict()) + len(model.objective.state_dict())
    model(**batch())[0].backward()
    assert all(torch.equal(before[name], value) for name, value in made.model.state_dict().items())
    assert all(p.grad is None for p in made.model.parameters())


def test_nothing_is_run_that_nobody_asked_for(monkeypatch):
    model = begun("tinybert", stage="inner")
    refuse = lambda *_: pytest.fail("the head was run")
    for one in (model.student, model.teacher):
        monkeypatch.setattr(one.targets["cls"], "predict", refuse)
        monkeypatch.setattr(one.targets["cls"], "forward", refuse)
    model(**batch())
    gold = Distillation(model.student, model.teacher, Objective({"gold": Gold(*[shape_of(teacher().recipe)] * 2)}))
    monkeypatch.undo()
    monkeypatch.setattr(gold.teacher, "encode", lambda **_: pytest.fail("the teacher was run"))
    loss, terms = gold(**batch())
    assert loss.item() == pytest.approx(terms["hard"].item()) and loss.item() > 0


def test_a_cut_is_the_leading_part():
    made = teacher()
    state = made.model.state_dict()
    recipe = student_recipe(made.recipe, 2, width=4)
    student = new_student(recipe, "cut", state)
    assert recipe["encoder"]["transformer"] == {"layers": 2, "heads": 2, "inner": 8}
    name = "encoder.layers.1.feedforward.inner.weight"
    assert torch.equal(student.state_dict()[name], state[name][:8, :4])
    anew = new_student(recipe, "random", state)
    assert not torch.equal(anew.state_dict()[name], state[name][:8, :4])
    assert student_recipe(made.recipe, width=4)["encoder"]["transformer"]["layers"] == 3  # the teacher's, unless told
    whole = new_student(made.recipe, "cut", state)
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())


def test_chosen_layers_are_the_teachers_in_their_order():
    state = teacher().model.state_dict()
    recipe = student_recipe(teacher().recipe, 2, width=4)
    student = new_student(recipe, [1, 3], state).state_dict()
    cut = new_student(recipe, "cut", state).state_dict()
    for own, theirs in ((0, 0), (1, 2)):
        for rest in ("feedforward.inner.weight", "attention.query.weight"):
            tensor = student[f"encoder.layers.{own}.{rest}"]
            assert torch.equal(tensor, state[f"encoder.layers.{theirs}.{rest}"][: len(tensor), : tensor.shape[1]])
    others = [name for name in student if not name.startswith("encoder.layers.1.")]
    assert all(torch.equal(student[name], cut[name]) for name in others)
    assert all(torch.equal(value, cut[name]) for name, value in new_student(recipe, [1, 2], state).state_dict().items())
    assert teacher().model.state_dict().keys() == state.keys()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", sorted(OWN_LOOP))
def test_methods_of_running_text_are_refused_on_rows(made, tmp_path, name):
    with pytest.raises(SettingsError, match=f"{name} .* on running text, but the data are labelled rows"):
        go(made, name, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "more", "error", "words"),
    [
        ("kd", {"student": {"layers": 4}}, ValueError, "to have 4 layers, the teacher has 3"),
        ("kd", {"student": {"layers": 2, "width": 64}}, ValueError, "64 wide, the teacher is 32"),
        ("kd", {"student": {"layers": 2, "width": 15}}, ValueError, "2 heads do not divide"),
        ("kd", {"student": {"layers": "2"}}, ValueError, "whole numbers from 1 on; got layers '2'"),
        ("kd", {"student": {"layers": 2, "heads": 0, "inner": -8}}, ValueError, "got heads 0, inner -8"),
        (
            "kd",
            {"student": {"layers": 2, "start": "warm"}},
            ValueError,
            r"cut, random, .* such as \[2, 4, 6\]; got 'warm'",
        ),
        ("kd", {"student": {"layers": 2, "start": 2}}, ValueError, "as a list of its teacher's layers, .* got 2"),
        ("kd", {"student": {"layers": 2, "start": [1]}}, ValueError, r"names 1 layers, \[1\]; it takes 2 of .* 1 to 3"),
        ("kd", {"student": {"layers": 2, "start": []}}, ValueError, "names 0 layers"),
        ("kd", {"student": {"layers": 2, "start": [3, 1]}}, ValueError, "in rising order and none twice"),
        ("kd", {"student": {"layers": 2, "start": [2, 2]}}, ValueError, "in rising order and none twice"),
        ("kd", {"student": {"layers": 2, "start": [0, 2]}}, ValueError, "of the teacher's layers 1 to 3"),
        ("kd", {"student": {"layers": 2, "start": [2, 4]}}, ValueError, "of the teacher's layers 1 to 3"),
        ("kd", {"student": {"layers": 2, "start": [1, "3"]}}, ValueError, "names 2 layers, .1, '3'."),
        ("kd", {"start": "teacher"}, SettingsError, "distill.methods.kd draws its student; take out START"),
        ("kd", {"student": {"depth": 2}}, LookupError, "depth"),
        ("kd", {"student": {}}, SettingsError, "lacks layers"),
        ("kd", {"precision": "int8"}, SettingsError, "float32, bfloat16; got 'int8'"),
        ("kd", {"training": TRAINING | {"activations": "full"}}, SettingsError, "activations: none"),
        ("pkd", {"student": {"layers": 2, "width": 16}}, ValueError, "16 wide and the teacher 32"),
        ("pkd", {"entry": {"alpha": "5e-1"}}, ValueError, "alpha is a number, got the text '5e-1'"),
        ("distilbert", {}, LookupError, "distilbert asks for logits of words, but the student only has cls"),
        ("mgskd", {"entry": {"heads": 4}}, ValueError, "set span: 0"),
        ("theseus", {"precision": "bfloat16"}, SettingsError, "set precision: float32"),
        ("kd", {"entry": {"tau": 3}}, TypeError, "temperature"),
        ("kd", {"entry": {"temperature": 0}}, ValueError, "a temperature divides logits and must be above 0"),
        ("minilm", {"student": {"layers": 2, "heads": 1}}, ValueError, "student has 1 heads and the teacher 2"),
        ("kd", {"entry": {"student": {"layers": 4}}}, ValueError, "to have 4 layers, the teacher has 3"),
        ("glmd", {"entry": {"vocabulary": {"ratio": 0.5}}}, SettingsError, "a smaller vocabulary is chosen on running"),
        ("kd", {"entry": {"prompt": 4}}, SettingsError, "has prompt, but writes no texts"),
        ("kd", {"entry": {"teachers": ["a"]}}, SettingsError, "has teachers, which methods do not have"),
    ],
)
def test_what_cannot_work_is_refused_before_training(made, tmp_path, name, more, error, words):
    with pytest.raises(error, match=words):
        go(made, name, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_classes_in_another_order_are_refused(made, tmp_path):
    import shutil

    copy = shutil.copytree(made / "teacher", tmp_path / "teacher")
    about = read_json(copy / "run.json")
    write_json(copy / "run.json", about | {"labels": about["labels"][::-1]})
    with pytest.raises(Rejected, match="in another order"):
        go(made, "kd", tmp_path / "out", teacher=copy)
    write_json(copy / "run.json", about | {"labels": about["labels"][:-1] + ["zebra"]})
    with pytest.raises(Rejected, match="only the teacher has zebra"):
        go(made, "kd", tmp_path / "out", teacher=copy)


def test_data_and_teacher_go_together(made, tmp_path):
    with pytest.raises(Rejected, match="fine-tuned and reads labelled rows"):
        go(made, "kd", tmp_path / "out", data="tokens")
    with pytest.raises(Rejected, match="has no classes, only mlm, sp"):
        go(made, "kd", tmp_path / "out", teacher="writer")
    with pytest.raises(LookupError, match="kd asks for logits of a task's classes"):
        go_text(made, "kd", tmp_path / "out")
    with pytest.raises(SettingsError, match="annealing_kd has no stage for such data; its stages: soft, hard"):
        go_text(made, "annealing_kd", tmp_path / "out")


def test_another_tokenizer_is_refused(made, tmp_path):
    make_tokenizer({"kind": "wordpiece", "vocabulary": 70}, [made / "ingest"], tmp_path / "tokenizer")
    tokens(tmp_path / "tokenizer", made / "ingest", tmp_path / "tokens")
    with pytest.raises(TokenizerError, match="another tokenizer"):
        go(made, "distilbert", tmp_path / "out", teacher="writer", data=tmp_path / "tokens", student={"layers": 1})


def test_two_vocabularies_are_refused():
    made, other = teacher({"mlm": {}}), teacher({"mlm": {}})
    other.recipe["vocabulary"] = 29
    shape = shape_of(made.recipe)
    objective = Objective({"distilbert": build("distill", "distilbert", shape, shape)})
    with pytest.raises(ValueError, match="the student knows 29 words and the teacher 30"):
        Distillation(assemble(other.recipe), made.model, objective)


def test_a_batch_of_padding_is_refused():
    rows = batch()
    with pytest.raises(ValueError, match="all 4 rows of the batch are padding"):
        begun("kd")(**rows | {"mask": torch.zeros_like(rows["mask"])})


def test_an_encoder_without_layers_is_refused():
    recipe = teacher().recipe | {"encoder": {"gru": {"layers": 2}}}
    with pytest.raises(LookupError, match="has a gru encoder; distil from and into models of one transformer encoder"):
        student_recipe(recipe, 1)
