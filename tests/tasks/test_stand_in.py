"""A student of a teacher that is away ends as one of a live teacher; where the teacher is held changes nothing."""

import importlib.util
import shutil
import sys
import types

import _taught
import pytest
import torch
from _taught import TRAINING
from safetensors.torch import load_file

from tasks import ask_teacher
from tasks.distill import Stepped
from tasks.files import read_json
from tasks.settings import SettingsError
from tasks.teacher_cache import CacheBroken, CacheForeign, TeacherCache

EXACT = {"words": 200, "store": "float32"}  # more words than there are: all of them
# Its last weights: the best of so short a run may be those before its first step, which no teacher has touched.
LONG = TRAINING | {"steps": 5, "checkpoint_steps": 2, "evaluate_rows": 8, "patience": None}
ROUNDED = {"device": "null", "int8": "int8"}  # of a placement, in a cache's facts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """teacher/ on rows/, and writer/ and gpt/ on tokens/."""
    with _taught.place(tmp_path_factory.mktemp("taught")) as root:
        _taught.classifier(root, "teacher", epochs=8)
        _taught.write_text(root)
        _taught.writer(root, "writer", "bert")
        _taught.writer(root, "gpt", "gpt2")
        return root


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


def go(made, name, out, entry=None, teacher="teacher", cache=None, kept=None, part="methods", **more):
    """Distil, with a cache in `kept` where `cache` says so."""
    text = {} if teacher == "teacher" or isinstance(teacher, list) else {"data": "tokens", "student": {"layers": 1}}
    more = {"training": LONG, "cache": cache, **text, **more}
    return _taught.go(made, name, out, part, entry, teacher=teacher, kept=kept, **more)


def weights(folder):
    return load_file(folder / "model/model.safetensors")


def furthest(one, other) -> float:
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


# ---------------------------------------------------------------- as a live teacher


@pytest.mark.parametrize(
    ("name", "teacher", "caches"),
    [
        ("kd", "teacher", {"kd"}),
        ("tinybert", "teacher", {"inner", "logits"}),
        ("minilm", "teacher", {"minilm"}),  # and gold labels last, under no teacher
        ("rail_kd", "teacher", {"rail_kd"}),  # its layers are drawn anew, step by step
        ("sid", "teacher", {"sid"}),  # looks at one layer after the other
        ("distilbert", "writer", {"distilbert"}),
        ("distilbert", "gpt", {"distilbert"}),
    ],
)
def test_a_student_ends_as_under_a_live_teacher(made, tmp_path, name, teacher, caches):
    live = go(made, name, tmp_path / "live", teacher=teacher)
    kept = tmp_path / "kept"
    exact = go(made, name, tmp_path / "exact", teacher=teacher, cache=EXACT, kept=kept)
    assert {path.name for path in kept.iterdir()} == caches
    assert furthest(tmp_path / "live", tmp_path / "exact") < 1e-5
    assert exact["dev"] == pytest.approx(live["dev"], rel=1e-4)
    half = go(made, name, tmp_path / "half", teacher=teacher, cache={}, kept=tmp_path / "smaller")
    assert half["dev"]["loss"] == pytest.approx(live["dev"]["loss"], rel=1e-3)
    assert furthest(tmp_path / "exact", tmp_path / "half") > 0
    assert read_json(tmp_path / "half/run.json")["cache"] == {}


def test_the_held_out_loss_is_that_of_a_live_teacher(made, tmp_path):
    curves = []
    for cache in (None, EXACT):
        go(
            made,
            "distilbert",
            out := tmp_path / str(bool(cache)),
            teacher="writer",
            cache=cache,
            kept=tmp_path / "kept",
        )
        rows = [line.split(",") for line in (out / "curve.csv").read_text().splitlines()]
        place = rows[0].index("heldout_loss")
        curves.append([float(row[place]) for row in rows[1:] if row[place]])
    assert len(curves[0]) > 1 and curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_a_second_run_asks_nothing(made, tmp_path, monkeypatch):
    first = go(made, "kd", tmp_path / "one", cache={}, kept=tmp_path / "kept")
    monkeypatch.setattr(ask_teacher, "_ask", None)
    assert go(made, "kd", tmp_path / "two", cache={}, kept=tmp_path / "kept")["dev"] == first["dev"]
    assert furthest(tmp_path / "one", tmp_path / "two") == 0


def test_an_entry_may_say_otherwise(made, tmp_path):
    """A cache for all, a live teacher for one that needs it."""
    kept = tmp_path / "kept"
    go(made, "theseus", tmp_path / "one", {"cache": None}, cache={}, kept=kept)
    assert not kept.exists() and read_json(tmp_path / "one/run.json")["cache"] is None
    go(made, "kd", tmp_path / "two", {"cache": EXACT, "placement": "offload"}, kept=kept)
    about = read_json(tmp_path / "two/run.json")
    assert (about["cache"], about["placement"]) == (EXACT, "offload") and kept.exists()


# ---------------------------------------------------------------- what happens to a cache


def test_a_cache_of_another_teacher_is_named_and_made_anew(made, tmp_path, capsys):
    teacher = shutil.copytree(made / "teacher", tmp_path / "teacher")
    kept = tmp_path / "kept"
    go(made, "kd", tmp_path / "one", teacher=[teacher], cache={}, kept=kept)
    before = TeacherCache(kept / "kd/train").manifest["facts"]["teacher"]
    config = teacher / "model/config.json"
    config.write_text(config.read_text() + "\n")
    capsys.readouterr()
    go(made, "kd", tmp_path / "two", teacher=[teacher], cache={}, kept=kept)
    after = TeacherCache(kept / "kd/train").manifest["facts"]["teacher"]
    assert f"teacher was {before[:12]}, is {after[:12]}" in (said := capsys.readouterr().out)
    assert "this run deletes it" in said and before != after
    go(made, "kd", tmp_path / "three", teacher=[teacher], cache={"store": "float32"}, kept=kept)
    assert "this run deletes it" in capsys.readouterr().out


def test_a_truncated_cache_is_refused(made, tmp_path):
    go(made, "kd", tmp_path / "one", cache={}, kept=tmp_path / "kept")
    shard = next((tmp_path / "kept").rglob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(CacheBroken, match="truncated or was written to"):
        go(made, "kd", tmp_path / "two", cache={}, kept=tmp_path / "kept")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(("name", "teacher"), [("tinybert", "teacher"), ("distilbert", "writer")])
def test_a_run_that_was_killed_twice_ends_as_an_unbroken_one(made, tmp_path, monkeypatch, name, teacher):
    """While the teacher is asked, and in the middle of training."""
    go(made, name, tmp_path / "whole", teacher=teacher, cache={}, kept=tmp_path / "one")
    more = {"teacher": teacher, "cache": {}, "kept": tmp_path / "two", "checkpoints": tmp_path / "checkpoints"}
    write, rows, seen = ask_teacher._write, Stepped.rows, []

    def full(folder, number, tensors):
        if folder.parent.name == "logits" or folder.name == "heldout":  # the first cache is whole
            raise ConnectionError("pulled out")
        return write(folder, number, tensors)

    def breaks(self, indices):
        seen.append(indices[0] // self.batch)
        if self.fixed is None and seen.count(3) == 1:
            raise ConnectionError("pulled out")
        return rows(self, indices)

    for patch in ((ask_teacher, "_write", full), (Stepped, "rows", breaks)):
        with monkeypatch.context() as broken:
            broken.setattr(*patch)
            with pytest.raises(ConnectionError):
                go(made, name, tmp_path / "again", **more)
    assert not (tmp_path / "again").exists()
    go(made, name, tmp_path / "again", **more)
    assert furthest(tmp_path / "whole", tmp_path / "again") == 0


# ---------------------------------------------------------------- where a teacher is held


def round_to_8_bits(part, how) -> None:
    """What the library does to the numbers, where it is not there: every linear map's weights, a scale for each output.

    It is no measure of the library, whose own way is taken where it is installed.
    """
    for layer in part.modules():
        if isinstance(layer, torch.nn.Linear):
            scale = layer.weight.abs().amax(1, keepdim=True) / 127
            layer.weight.copy_((layer.weight / scale).round().clamp(-128, 127) * scale)


THERE = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao, the extra int8, is not there")


@pytest.fixture(params=[pytest.param("torchao", marks=THERE), "by hand"])
def eight_bits(request, monkeypatch):
    """Weights in 8 bits: those of the library, and the same rounding by hand."""
    if request.param == "by hand":
        library = types.SimpleNamespace(Int8WeightOnlyConfig=lambda **how: how, quantize_=round_to_8_bits)
        monkeypatch.setitem(sys.modules, "torchao", types.SimpleNamespace(quantization=library))
        monkeypatch.setitem(sys.modules, "torchao.quantization", library)


@pytest.mark.usefixtures("eight_bits")
@pytest.mark.parametrize(("name", "teacher"), [("kd", "teacher"), ("tinybert", "teacher"), ("distilbert", "gpt")])
def test_a_teacher_in_8_bits_is_kept_as_it_speaks(made, tmp_path, name, teacher):
    rounded = {"teacher": teacher, "placement": "int8"}
    live = go(made, name, tmp_path / "live", **rounded)
    kept = go(made, name, tmp_path / "kept", cache=EXACT, kept=tmp_path / "said", **rounded)
    assert furthest(tmp_path / "live", tmp_path / "kept") < 1e-5
    assert kept["dev"] == pytest.approx(live["dev"], rel=1e-4)
    go(made, name, tmp_path / "float", teacher=teacher)
    assert furthest(tmp_path / "live", tmp_path / "float") > 1e-4  # rounding is seen
    assert read_json(tmp_path / "kept/run.json")["placement"] == "int8"


@pytest.mark.usefixtures("eight_bits")
@pytest.mark.parametrize(("first", "then"), [("int8", "device"), ("device", "int8")])
def test_a_cache_of_8_bits_is_not_one_of_floats(made, tmp_path, capsys, first, then):
    for where in (first, then):
        go(made, "kd", tmp_path / where, cache=EXACT, kept=tmp_path / f"said-{where}", placement=where)
    one, other = (TeacherCache(tmp_path / f"said-{where}/kd/train") for where in (first, then))
    with pytest.raises(CacheForeign, match=f"rounding was {ROUNDED[first]}, is {ROUNDED[then]}. Bring that back"):
        TeacherCache(one.folder, other.manifest["facts"])
    capsys.readouterr()
    go(made, "kd", tmp_path / "again", cache=EXACT, kept=tmp_path / f"said-{first}", placement=then)
    assert f"rounding was {ROUNDED[first]}, is {ROUNDED[then]}" in (said := capsys.readouterr().out)
    assert "this run deletes it" in said and furthest(tmp_path / "again", tmp_path / then) == 0
    assert TeacherCache(one.folder).manifest == other.manifest


def test_a_cache_serves_wherever_the_teacher_is_held(made, tmp_path, monkeypatch):
    """Held elsewhere it says the same, so it is not asked again."""
    go(made, "kd", tmp_path / "one", cache=EXACT, kept=tmp_path / "kept", placement="offload")
    monkeypatch.setattr(ask_teacher, "_ask", None)
    go(made, "kd", tmp_path / "two", cache=EXACT, kept=tmp_path / "kept", placement="device")
    assert furthest(tmp_path / "one", tmp_path / "two") == 0


@pytest.mark.parametrize("cache", [None, EXACT])
def test_a_teacher_that_is_offloaded_says_the_same(made, tmp_path, cache):
    for where in ("device", "offload", "fsdp"):
        go(made, "tinybert", tmp_path / where, cache=cache, kept=tmp_path / f"kept-{where}", placement=where)
        assert read_json(tmp_path / where / "run.json")["placement"] == where
    assert furthest(tmp_path / "device", tmp_path / "offload") == furthest(tmp_path / "device", tmp_path / "fsdp") == 0


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "entry", "teacher", "more", "error", "words"),
    [
        ("theseus", {}, "teacher", {}, LookupError, "theseus acts inside the teacher, or runs its layers"),
        ("diito", {}, "writer", {}, LookupError, "diito acts inside the teacher"),
        ("on_policy", {"new_tokens": 6}, "gpt", {}, LookupError, "on_policy asks its teacher about texts"),
        ("wid", {"student": {"layers": 2, "width": 16}}, "writer", {}, LookupError, "wid rebuilds its teacher"),
        ("both", {"teachers": ["a", "b"], "by": "tmkd"}, ["small", "teacher"], {}, LookupError, "tmkd combines"),
        ("kd", {}, "teacher", {"cache": {"word": 3}}, LookupError, "distill.cache"),
        ("kd", {}, "teacher", {"cache": "float16"}, SettingsError, "distill.cache is {words: 64, store: float16}"),
        ("kd", {}, "teacher", {"cache": {"store": "int4"}}, ValueError, "kept as one of .*; got 'int4'"),
        ("distilbert", {}, "writer", {"cache": {"words": 0}}, ValueError, "must be in 1.."),
        ("kd", {}, "teacher", {"kept": None}, SettingsError, "no folder was given to keep it in"),
        ("kd", {}, "teacher", {"placement": "disk"}, SettingsError, "placement, the teacher's, is one of device"),
        ("theseus", {}, "teacher", {"cache": None, "placement": "offload"}, SettingsError, "set placement: device"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_teacher_is_asked(
    made, tmp_path, name, entry, teacher, more, error, words
):
    if isinstance(teacher, list) and not (made / "small").exists():
        with _taught.place(made):
            _taught.classifier(made, "small", layers=2, seed=1, epochs=1)
    more = {"cache": {}, "kept": tmp_path / "kept", **more}
    with pytest.raises(error, match=words):
        go(made, name, tmp_path / "out", entry, teacher, part="several" if name == "both" else "methods", **more)
    assert not (tmp_path / "out").exists() and not (tmp_path / "kept").exists()


def test_a_float_type_that_is_too_small_is_named(made, tmp_path, monkeypatch):
    see = ask_teacher.see

    def loud(*given, **more):
        found = see(*given, **more)
        found.task.mul_(1e6)
        return found

    monkeypatch.setattr(ask_teacher, "see", loud)
    with pytest.raises(ValueError, match="task has numbers up to .*, which float16 cannot hold"):
        go(made, "kd", tmp_path / "out", cache={}, kept=tmp_path / "kept")
    assert not (tmp_path / "out").exists()
