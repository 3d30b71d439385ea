"""Several tasks, one student: what is written, resume, cached teachers, refusals, and real data where it is."""

import shutil

import _tuned
import polars as pl
import pytest
import torch
from _killed import continued, killed, same_weights
from safetensors.torch import load_file

from tasks import distill_tasks as module
from tasks.distill_tasks import distill_tasks
from tasks.files import digest, read_json, write_json
from tasks.finetune import finetune, kind_of, load_start, rows_of
from tasks.kinds._kind import Rejected
from tasks.settings import SettingsError
from tasks.task_rows import One, TaskRows
from tasks.teaching import Teacher

TRAINING = {"steps": 12, "batch": 8, "lr": 3.0e-3, "evaluate_steps": 6, "seed": 3}
TASKS = {
    "category": {"data": "category", "kind": "classification", "teachers": ["category"]},
    "price": {"data": "price", "kind": "regression", "teachers": ["price"]},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """bert/, data/<answer> of 150 and 60 listings, teachers/<answer>."""
    root = tmp_path_factory.mktemp("several")
    (root / "bert").mkdir()
    _tuned.write_model(root / "bert", "bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("tasks.slots.FOLDER", root / "slots")
        for name, rows in (("category", 150), ("price", 60)):
            _tuned.write_examples(root / "data" / name, name, rows)
            chosen = {"kind": TASKS[name]["kind"], "length": 32, "training": {"epochs": 6, "batch": 32, "lr": 4.0e-3}}
            finetune(name, chosen, root / "data" / name, root / "bert", root / "teachers" / name, None)
    return root


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


def go(made, out, method="mt_dnn", tasks=TASKS, checkpoints=None, teachers=None, name="student", **more):
    chosen = {"method": method, "tasks": tasks, "length": 32, "training": TRAINING, **more}
    return distill_tasks(name, chosen, made / "bert", made / "data", teachers or made / "teachers", out, checkpoints)


@pytest.mark.parametrize("method", ["mkd", "mt_dnn", "bam", "road", "kd_mtl", "generation"])
def test_every_method(made, tmp_path, method):
    before, several = digest(made / "teachers"), 1 + (method == "road")
    tasks = {name: told | {"teachers": told["teachers"] * several} for name, told in TASKS.items()}
    metrics = go(made, out := tmp_path / "out", method, tasks, student={"layers": 1})
    assert digest(made / "teachers") == before
    assert {file.name for file in out.iterdir()} == {"tasks", "metrics.json", "run.json", "curve.csv", "extra"}
    about, curve = read_json(out / "run.json"), pl.read_csv(out / "curve.csv")
    assert about["steps"] == {"joint": 12} and sum(about["mix"].values()) == pytest.approx(1)
    assert curve["heldout_macro"].is_finite().all() and curve["step"].to_list() == [0, 6, 12]
    for name, taught in (("category", "accuracy"), ("price", "spearman")):
        known = read_json(made / "teachers" / name / "metrics.json")["dev"][taught]
        assert metrics["single"][name] == [pytest.approx(known)] * several
        assert metrics["export"][name]["equal"] is True
        assert metrics["export"][name]["class"] == "BertForSequenceClassification"
        assert not [key for key in load_file(out / "tasks" / name / "model/model.safetensors") if "adapt" in key]
    own = [metrics["dev"]["category"]["accuracy"], metrics["dev"]["price"]["spearman"]]
    assert metrics["macro"] == pytest.approx(sum(own) / 2)
    assert metrics["behind"] == pytest.approx(max(metrics["single"][n][0] - v for n, v in zip(TASKS, own, strict=True)))


def test_a_students_tasks_teach_in_turn(made, tmp_path):
    """MKD's two stages: a multi-task teacher without teachers of its own, then a bi-LSTM under its heads."""
    plain = {name: {key: value for key, value in told.items() if key != "teachers"} for name, told in TASKS.items()}
    first = go(made, tmp_path / "first", "mt_dnn", plain)
    assert first["behind"] is None and first["single"] == {"category": [], "price": []}
    student = {"recipe": "lstm", "size": "nano", "overrides": {"width": 24, "encoder": {"bilstm": {"layers": 1}}}}
    second = go(made, tmp_path / "second", "mkd", teachers=tmp_path / "first/tasks", student=student)
    assert second["single"]["price"][0] == pytest.approx(first["dev"]["price"]["spearman"])
    assert second["export"]["category"] == {"max_difference": 0.0, "equal": True, "class": None}
    told = read_json(tmp_path / "second/tasks/category/model/recipe.json")
    assert "bilstm" in told["encoder"] and told["target"]["cls"]["pool"] == "mean"


def test_road_ends_with_its_end_task(made, tmp_path):
    ends = {"price": {"steps": 3, "patience": None}}  # and its last weights, not the best
    metrics = go(made, tmp_path / "out", {"road": {"ends": ["category"]}}, finetune=ends)
    assert read_json(tmp_path / "out/run.json")["steps"] == {"joint": 12, "category": 12, "price": 3}
    curve = pl.read_csv(tmp_path / "out/curve.csv")
    assert curve["stage"].unique(maintain_order=True).to_list() == ["joint", "category", "price"]
    assert metrics["dev"]["category"]["accuracy"] >= metrics["joint"]["category"]["accuracy"]  # the best is kept
    weights = lambda name: load_file(tmp_path / f"out/tasks/{name}/model/model.safetensors")
    word = next(key for key in weights("price") if "word_embeddings" in key)
    assert not torch.equal(weights("price")[word], weights("category")[word])


def test_a_stopped_run_continues_bit_for_bit(made, tmp_path, monkeypatch):
    last = TRAINING | {"patience": None}  # its last weights: the best may be those before any step
    go(made, tmp_path / "whole", "bam", checkpoints=tmp_path / "kept", training=last)
    assert not (tmp_path / "kept").exists()
    short = last | {"checkpoint_steps": 5}
    again = lambda: go(made, tmp_path / "cut", "bam", checkpoints=tmp_path / "kept", training=short)
    killed(module, again, 8)
    monkeypatch.setattr(Teacher, "_say", lambda *given: pytest.fail("its answers were kept"))
    assert continued(module, again).resumed_at == 5
    assert all(same_weights(*(tmp_path / f"{run}/tasks/{name}/model" for run in ("whole", "cut"))) for name in TASKS)


# ---------------------------------------------------------------- what teachers say


def test_kept_answers_are_those_of_the_teacher(made, tmp_path):
    rows = rows_of(made / "data/category")
    teacher = Teacher(made / "teachers/category", "classification", 32)
    live, fresh = teacher.told(rows, "train", None), teacher.told(rows, "train", tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    kept = teacher.told(rows, "train", tmp_path)
    for one in (fresh, kept):
        torch.testing.assert_close(one.answers, live.answers)
        torch.testing.assert_close(one.features, live.features)
    assert live.answers.shape == (len(rows["train"]), teacher.outputs) and live.features.shape[1] == 32
    file.write_bytes(file.read_bytes()[:-100])
    torch.testing.assert_close(teacher.told(rows, "train", tmp_path).answers, live.answers)  # cut short: asked again


def test_another_row_or_teacher_is_another_answer(made, tmp_path):
    rows = rows_of(made / "data/category")
    teacher = Teacher(made / "teachers/category", "classification", 32)
    key = teacher.key(rows["train"])
    changed = rows["train"].with_columns(
        pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("another text")).otherwise("text").alias("text")
    )
    assert teacher.key(changed) != key and teacher.key(rows["train"][::-1]) != key
    shutil.copytree(made / "teachers/category", tmp_path / "tuned")
    weights = load_file(tmp_path / "tuned/model/model.safetensors")
    from safetensors.torch import save_file

    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, tmp_path / "tuned/model/model.safetensors")
    assert Teacher(tmp_path / "tuned", "classification", 32).key(rows["train"]) != key


def test_labels_in_another_order_are_refused(made, tmp_path):
    shutil.copytree(made / "teachers/category", tmp_path / "teachers/category")
    about = read_json(tmp_path / "teachers/category/run.json")
    write_json(tmp_path / "teachers/category/run.json", about | {"labels": about["labels"][::-1]})
    with pytest.raises(Rejected, match="says its classes in another order"):
        go(made, tmp_path / "out", "mkd", {"category": TASKS["category"]}, teachers=tmp_path / "teachers")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- rows


def test_batches_differ_by_epoch_and_repeat_by_seed(made):
    start, ones = load_start(made / "bert"), []
    for name, told in TASKS.items():
        rows = rows_of(made / "data" / name)
        settings = {"kind": told["kind"], "length": 32, "settings": None}
        kind = kind_of(settings, start, rows)
        examples = {"train": kind.encode(rows["train"], "train")}
        ones.append(One(name, kind, rows, examples, (), (), kind.head(), settings, name))
    sizes = {one.name: len(one.examples["train"]) for one in ones}
    source = lambda seed: TaskRows(ones, (), module.TaskSampler(sizes, 1.0, seed), 8, seed)
    first, again, other = (source(seed) for seed in (1, 1, 2))
    step = lambda source, number: source.rows(range(8 * number, 8 * number + 8))
    for number in (0, 5, 40):
        for name, value in step(first, number).items():
            assert torch.equal(value, step(again, number)[name])
    price = [number for number in range(200) if first.sampler.at(number)[0] == "price"]
    gold = [tuple(step(first, number)["gold"].tolist()) for number in price[: 3 * sizes["price"] // 8]]
    assert len(set(gold)) == len(gold)  # the same rows, never the same batch
    assert len({value for rows in gold for value in rows}) <= sizes["price"]
    assert any(not torch.equal(step(first, n)["gold"], step(other, n)["gold"]) for n in range(3))
    halves = [first.rows(range(8, 12)), first.rows(range(12, 16))]
    assert torch.cat([half["gold"] for half in halves]).tolist() == step(first, 1)["gold"].tolist()
    with pytest.raises(ValueError, match="several steps of 8 rows"):
        first.rows(range(6, 10))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("told", "words"), [
    ({"method": {"mkdd": {}}}, "closest: mkd"),
    ({"method": {"mkd": {"hardness": 1}}}, "it accepts: .*hard"),
    ({"tasks": {}}, "has no tasks"),
    ({"tasks": {"category": {"data": "category", "kind": "span"}}}, "a kind of classification, pairs, regression"),
    ({"tasks": {"category": {"kind": "pairs"}}}, "needs data"),
    ({"tasks": {"category": TASKS["category"] | {"teacher": []}}}, "teachers"),
    ({"tasks": {"a.b": TASKS["category"]}}, "neither dot nor slash"),
    ({"student": {"layer": 1}}, "layers"),
    ({"student": {"recipe": "bart", "size": "nano"}}, "no single encoder"),
    ({"student": {"recipe": "lstm", "layers": 1}}, "has no layers"),
    ({"training": {"epochs": 0}}, "epochs must be a whole number"),
    ({"finetune": ["prices"]}, "price"),
    ({"alpha": -1}, "alpha must be >= 0"),
    ({"method": "kd_mtl", "tasks": {"category": {"data": "category", "kind": "classification"}}}, "category has none"),
    ({"tasks": {"price": TASKS["price"] | {"teachers": ["category"]}}}, "does classification, its student regression"),
])  # fmt: skip
def test_what_cannot_work(made, tmp_path, told, words):
    with pytest.raises((SettingsError, Rejected, LookupError, TypeError, ValueError), match=words):
        go(made, tmp_path / "out", **told)
    assert not (tmp_path / "out").exists()


def test_one_process_only(made, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="several ranks cannot do yet"):
        go(made, tmp_path / "out")


def test_as_a_command(made, tmp_path, monkeypatch, capsys):
    import yaml

    entry = {"method": {"bam": {}}, "tasks": TASKS, "length": 32, "training": TRAINING | {"steps": 2}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"distill": {"tasks": {"small": entry}}}))
    module.main("params.yaml:distill.tasks", "small", *map(str, (made / "bert", made / "data", made / "teachers",
                tmp_path / "out", tmp_path / "kept")))  # fmt: skip
    assert "small: macro" in capsys.readouterr().out and (tmp_path / "out/tasks/price/model").is_dir()


def test_on_real_tasks(made, tmp_path, shared_data):
    """RTE and STS-B, a few rows of each, from one untrained encoder: the shapes of GLUE go through."""
    if shared_data is None or not (shared_data / "nlp_en/glue").is_dir():
        rows = {"rte": _made_up("entails"), "stsb": _made_up("alike")}
    else:
        rows = {name: _glue(shared_data / "nlp_en/glue" / name) for name in ("rte", "stsb")}
    tasks = {"rte": {"data": "rte", "kind": "pairs"}, "stsb": {"data": "stsb", "kind": "regression"}}
    for name, frame in rows.items():
        _tuned.write_rows(tmp_path / "data" / name, frame)
    chosen = {"method": "mt_dnn", "tasks": tasks, "length": 64, "training": TRAINING | {"steps": 4}}
    metrics = distill_tasks("glue", chosen, made / "bert", tmp_path / "data", tmp_path, tmp_path / "out", None)
    assert set(metrics["dev"]) == {"rte", "stsb"} and metrics["export"]["rte"]["equal"]


def _glue(folder, rows=60):
    from tasks.datasets import glue

    frame = glue.read(folder).collect()
    split = pl.when(pl.int_range(pl.len()) % 4 == 0).then(pl.lit("dev")).otherwise(pl.lit("train"))
    return frame.filter(pl.col("label").is_not_null()).head(rows).with_columns(split.alias("split"))


def _made_up(name, rows=60):
    texts = [f"number {i}" for i in range(rows)]
    label = [str(i / 9) if name == "alike" else ("yes", "no")[i % 2] for i in range(rows)]
    split = ["dev" if i % 4 == 0 else "train" for i in range(rows)]
    return pl.DataFrame({"text": texts, "second": texts[::-1], "label": label, "split": split})
