"""A run that is cut: into micro-batches, between processes, by SIGTERM, by kill -9; what cannot be cut is refused."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import _taught
import pytest
import torch
from _taught import TRAINING
from safetensors.torch import load_file

from models import build, names
from models.components._model import assemble
from models.distill._exact import Combined, Exact
from models.distill._objective import Council, Objective
from models.distill._student import new_student, shape_of, student_recipe
from tasks.distill import distill, main
from tasks.files import read_json, write_json
from tasks.settings import SettingsError

INSIDE = {"wid", "on_policy", "minillm", "distillm"}  # they have no signals to compare, or texts of their own
SETTINGS = {"minilmv2": {"relation_heads": 4}, "mgskd": {"span": 0, "heads": 4}}
WORDS = {"distilbert", "diito", "glmd"}  # they compare words
UNCUT = {"ckd", "diito", "lrc_bert", "mgskd"}
COMBINERS = {"dgkd": False, "mt_bert": False, "rl_kd": True, "tmkd": False, "uncertainty": True}
ROOT = Path(__file__).parents[2]
LONG = TRAINING | {"steps": 6, "checkpoint_steps": 2}


def recipe(targets, layers=3):
    encoder = {"transformer": {"layers": layers, "heads": 2, "inner": 16}}
    embedding = {"word": {}, "position": {"length": 16}}
    return {"width": 8, "vocabulary": 30, "dropout": 0.0, "embedding": embedding, "encoder": encoder, "target": targets}


def model(targets, seed=5, layers=3):
    torch.manual_seed(seed)
    made = assemble(recipe(targets, layers))
    for parameter in made.parameters():  # far from the start, where all answers are alike
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def batch(places=6):
    draw = torch.Generator().manual_seed(2)
    lengths = torch.tensor([places, 2, 4, 3])
    ids = torch.randint(30, (4, places), generator=draw)
    return {"ids": ids, "mask": torch.arange(places) < lengths[:, None], "labels_mlm": ids.where(ids % 2 == 0, -100),
            "labels_cls": torch.randint(4, (4,), generator=draw)}  # fmt: skip


def begun(name):
    targets = {"mlm": {}} if name in WORDS else {"cls": {"labels": 4}}
    teacher, small = model(targets), student_recipe(recipe(targets), 2)
    shapes = shape_of(small), shape_of(recipe(targets))
    student = new_student(small, "random", teacher.state_dict())
    return Exact(student, teacher, Objective({name: build("distill", name, *shapes, **SETTINGS.get(name, {}))}))


def combined(name, **settings):
    targets = {"cls": {"labels": 4}}
    teachers = [model(targets, 6, 2), model(targets)]
    small = student_recipe(recipe(targets), 1)
    shapes = shape_of(small), [shape_of(recipe(targets, layers)) for layers in (2, 3)]
    stage = {"stage": "policy"} if name == "rl_kd" else {"stage": "finetune"} if name == "tmkd" else {}
    combiner = build("distill.teachers", name, *shapes, **stage, **settings)
    return Combined(new_student(small, "random", {}), teachers, Council(name, combiner))


def whole_and_cut(it):
    """The gradient of a step as one batch, and as two of unequal rows."""
    it.train()
    it.set_total(10)
    rows, at = batch(), torch.tensor(4)
    parts = [{key: value[part] for key, value in rows.items()} for part in (slice(0, 1), slice(1, 4))]
    counts = [it.counts(**part) for part in parts]
    counts = {name: sum(each[name] for each in counts) for name in counts[0]}
    found = []
    for cut in ([rows], parts):
        it.zero_grad()
        sum(it(counts=counts, step=at, **part)[0] for part in cut).backward()
        found.append(
            torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in it.parameters()])
        )
    return found


@pytest.mark.parametrize("name", sorted(set(names("distill")) - INSIDE))
def test_micro_batches_are_one_batch_or_are_refused(name):
    it = begun(name)
    whole, cut = whole_and_cut(it)
    assert whole.abs().max() > 0
    assert it.objective.uncut == (name in UNCUT)
    if name == "lrc_bert":  # two passes, the second of which is perturbed by the gradient of the first
        return
    assert torch.allclose(whole, cut, rtol=1e-4, atol=1e-5 * float(whole.abs().max())) == (name not in UNCUT)


@pytest.mark.parametrize("name", sorted(COMBINERS))
def test_so_are_those_of_several_teachers(name):
    it = combined(name)
    whole, cut = whole_and_cut(it)
    assert it.objective.uncut == COMBINERS[name]
    assert torch.allclose(whole, cut, rtol=1e-4, atol=1e-5 * float(whole.abs().max())) == (not COMBINERS[name])


def test_a_combiner_is_cut_no_finer_than_its_method():
    assert not combined("dgkd", method="tinybert").objective.uncut
    assert combined("dgkd", method="ckd").objective.uncut
    assert combined("mt_bert", method={"tinybert": {"stage": "inner"}}).objective.uncut  # each row is a batch


def test_by_hand():
    """Rows of 1 and 3 tokens whose mean errors are 6 and 2: over tokens (6 + 3 * 2) / 4 = 3, not (6 + 2) / 2 = 4."""
    from models.distill._maths import masked_mean
    from models.distill._step import counts_of, whole_step

    mask = torch.tensor([[1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    values = torch.tensor([[6.0, 9.0, 9.0], [1.0, 2.0, 3.0]])
    assert masked_mean(values, mask).item() == 3
    counts, total = counts_of(mask), 0.0
    for row in (0, 1):
        with whole_step(counts, mask[row : row + 1]):
            total += masked_mean(values[row : row + 1], mask[row : row + 1]).item() / 2
    assert total == pytest.approx(3)


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """teacher/ and small/ on rows/."""
    with _taught.place(tmp_path_factory.mktemp("cut")) as root:
        _taught.classifier(root, "small", layers=2, seed=1, epochs=2)
        _taught.classifier(root, "teacher", epochs=4)
        return root


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


RUNS = {
    "tinybert": ("methods", {}, ["teacher"]),
    "both": ("several", {"teachers": ["a", "b"], "by": {"dgkd": {}}, "of": {"minilm": {}}}, ["small", "teacher"]),
}
CHILD = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import tasks.slots
from tasks.distill import distill, main
from tasks.lessons import Stepped
tasks.slots.FOLDER = Path("slots")
rows = Stepped.rows
def killed(self, indices):
    if indices[0] // self.batch == 4:
        os.kill(os.getpid(), {how})
    return rows(self, indices)
if {how}:
    Stepped.rows = killed
{call}
"""


@pytest.mark.parametrize("name", sorted(RUNS))
def test_two_processes_are_one(made, tmp_path, name):
    part, entry, teacher = RUNS[name]
    training = TRAINING | {"micro": 4}  # dropout follows the first row of a micro-batch
    chosen = {"student": {"layers": 2}, "length": 32, "training": training, part: {name: entry}}
    given = [chosen, part, name, [str(made / each) for each in teacher], str(made / "rows")]
    ranks = on_two(given)
    distill(*given, "one", None)
    assert [ended(each) for each in ranks] == [0, 0]
    same_student(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(("name", "placement"), [("tinybert", "fsdp"), ("distilbert", "device")])
def test_two_processes_with_a_cache_are_one_with_a_live_teacher(made, tmp_path, name, placement):
    """Rows of a task, each kept once, and masked ones of text, with those that are held out."""
    text = name == "distilbert"
    if text and not (made / "writer").exists():
        with _taught.place(made):
            _taught.write_text(made)
            _taught.writer(made, "writer", "bert")
    training = TRAINING | {"micro": 4, "steps": 4, "evaluate_rows": 8}
    chosen = {"student": {"layers": 1}, "length": 32, "training": training, "placement": placement,
              "methods": {name: {}}}  # fmt: skip
    where = [str(made / each) for each in (("writer", "tokens") if text else ("teacher", "rows"))]
    cached = chosen | {"cache": {"words": 200, "store": "float32"}}  # more words than there are: all of them
    ranks = on_two([cached, "methods", name, *where], "said")
    live = distill(chosen, "methods", name, *where, "one", None)
    assert [ended(each) for each in ranks] == [0, 0]
    same_student(tmp_path / "one", tmp_path / "two")
    assert read_json("two/metrics.json")["dev"] == pytest.approx(live["dev"], rel=1e-4)
    alone = distill(cached, "methods", name, *where, "alone", None, "alone-said")
    assert alone["dev"] == pytest.approx(live["dev"], rel=1e-4)
    made_of = lambda root: {str(one.relative_to(root)): one.read_bytes() for one in sorted(root.rglob("*.*"))}
    assert made_of(tmp_path / "said") == made_of(tmp_path / "alone-said")  # whoever asked


def on_two(given: list, cache: str | None = None) -> list[subprocess.Popen]:
    """Two ranks that distil to two/."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [child(f"distill(*{given!r}, 'two', None, {cache!r})", RANK=number, LOCAL_RANK=number, WORLD_SIZE=2,
                  MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for number in range(2)]  # fmt: skip


def same_student(one: Path, other: Path) -> None:
    one, other = (load_file(out / "model/model.safetensors") for out in (one, other))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


def child(call: str, how: int = 0, **environment):
    """A process of its own, in this folder: threads of polars do not survive a fork."""
    code = CHILD.format(root=str(ROOT), how=int(how), call=call)
    told = os.environ | {name: str(value) for name, value in environment.items()}
    return subprocess.Popen([sys.executable, "-c", code], env=told, stdout=subprocess.DEVNULL)


def ended(process) -> int:
    try:
        return process.wait(300)
    finally:
        process.kill()


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, os.EX_TEMPFAIL)])
def test_a_killed_run_ends_as_an_unbroken_one(made, tmp_path, capsys, how, code):
    chosen = {"student": {"layers": 2}, "length": 32, "training": LONG, "methods": {"rail_kd": {}}}
    write_json("params.json", {"distill": chosen})
    words = ["params.json:distill", "methods", "rail_kd", str(made / "teacher"), str(made / "rows")]
    broken = child(f"main(*{words!r}, 'again', 'kept', 'said')", how)
    main(*words, "whole", "other", "said")
    assert ended(broken) == code
    assert not (tmp_path / "again").exists()
    assert list((tmp_path / "kept").rglob("step-*.safetensors"))
    main(*words, "again", "kept", "said")
    assert "continues at step" in capsys.readouterr().out
    one, two = (tmp_path / out / "model/model.safetensors" for out in ("whole", "again"))
    assert one.read_bytes() == two.read_bytes()
    assert read_json("again/metrics.json")["dev"] == read_json("whole/metrics.json")["dev"]
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("name", ["ckd", "lrc_bert"])
def test_what_compares_rows_is_not_cut(made, tmp_path, name):
    with pytest.raises(SettingsError, match=f"{name} looks at a step's rows together, so micro-batches of 4 of 8 rows"):
        _taught.go(made, name, tmp_path / "out", training=LONG | {"micro": 4})
    assert not (tmp_path / "out").exists()


def test_nor_is_it_shared(made, tmp_path, monkeypatch):
    monkeypatch.setattr("models.parallel.world", lambda: 2)
    with pytest.raises(SettingsError, match="so 2 ranks would be another method; leave out micro and train on one"):
        _taught.go(made, "ckd", tmp_path / "out")
