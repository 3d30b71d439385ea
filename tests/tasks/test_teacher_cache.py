"""A teacher's signals on disk: equal to the live ones, resumable, and refused when they are of something else."""

import shutil
from collections import namedtuple

import pytest
import torch
from _tiny import MadeUp
from torch import Tensor

from models import build, parallel
from models.components._model import assemble
from models.distill._distillation import Distillation, see
from models.distill._kept import Kept
from models.distill._objective import Objective
from models.distill._placement import shard
from models.distill._student import new_student, shape_of, student_recipe
from tasks import ask_teacher as module
from tasks.ask_teacher import InOrder, NoRoom, estimate, fill, taught_by
from tasks.engine import Engine, run
from tasks.files import digest, read_json, write_json
from tasks.kinds._kind import Examples, pad
from tasks.teacher_cache import CacheBroken, CacheForeign, Taught, TeacherCache, main
from tests.models.test_parallel import on_two_ranks

FACTS = {"teacher": "a" * 64, "tokenizer": "b" * 64, "precision": "float32"}
RECIPE = {"width": 8, "vocabulary": 23, "dropout": 0.0, "std": 0.5,
          "embedding": {"word": {}, "position": {"length": 32}},
          "encoder": {"transformer": {"layers": 3, "heads": 2, "inner": 16}}}  # fmt: skip
TASK = {"cls": {"labels": 3}}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def teacher(target=None, seed=0):
    torch.manual_seed(seed)
    return assemble(RECIPE | {"target": target or TASK}).eval().requires_grad_(False)


class Labelled:
    """Examples that never change, in an order of their own each epoch; a kind and its source in one."""

    fingerprint = "labelled"

    def __init__(self, count=22, longer=0):
        draw = torch.Generator().manual_seed(3)
        lengths = torch.randint(3, 9, (count,), generator=draw).tolist()
        words = lambda n: torch.randint(1, 23, (n,), generator=draw).tolist()
        self.examples = [{"ids": words(n), "label": n % 3} for n in lengths]
        self.longer = longer

    def __len__(self):
        return len(self.examples)

    def collate(self, examples) -> dict[str, Tensor]:
        longest = max(len(one["ids"]) for one in examples) + self.longer
        ids = torch.tensor([one["ids"] + [0] * (longest - len(one["ids"])) for one in examples])
        lengths = torch.tensor([len(one["ids"]) for one in examples])
        return {"ids": ids, "mask": torch.arange(longest) < lengths[:, None],
                "labels_cls": torch.tensor([one["label"] for one in examples])}  # fmt: skip

    def rows(self, indices):
        order = lambda i: (i * 5 + i // len(self)) % len(self)
        return self.collate([self.examples[order(i)] for i in indices])


class Masked(MadeUp):
    """Text whose masks change with the row's number."""

    def rows(self, indices):
        return {name: value for name, value in super().rows(indices).items() if name != "labels_sp"}


def kept_rows(**more):
    rows = Labelled()
    kept = Kept.of({"task": [], "hidden": [0, 2]}, teacher(), **more)
    return rows, InOrder(rows, rows.examples, rows.fingerprint), kept


def filled(folder, kept=None, model=None, source=None, **more):
    _, given, usual = kept_rows()
    return fill(folder, model or teacher(), source or given, kept or usual, FACTS, batch=4, shard=8, **more)


Seam = namedtuple("Seam", "live away rows taught")


def seam(folder, name, store, **settings):
    """A distillation with its teacher and one without, and their sources: fixed rows of a task, masked ones of text."""
    text = name == "distilbert"
    model = teacher({"mlm": {}} if text else TASK)
    recipe = RECIPE | {"target": {"mlm": {}} if text else TASK}
    small = student_recipe(recipe, 2)
    method = build("distill", name, shape_of(small), shape_of(recipe), **settings)
    objective = Objective({name: method})
    objective.set_total(6, 2)
    torch.manual_seed(1)
    student = new_student(small, "random", {})
    kind = Labelled()
    rows = Masked(20, seed=4) if text else Examples(kind, kind.examples, 3, kind.fingerprint)
    order = None if text else InOrder(kind, kind.examples, kind.fingerprint)
    training = Engine(steps=6, batch=10)
    kept, taught = taught_by(folder, model, objective, rows, training, FACTS, order, store=store, words=23)
    return Seam(Distillation(student, model, objective), Distillation(student, None, objective, kept), rows, taught)


# ---------------------------------------------------------------- equal to the live teacher


@pytest.mark.parametrize(("store", "near"), [("float32", 2e-6), ("float16", 1e-3)])
@pytest.mark.parametrize("name", ["kd", "pkd", "tinybert", "minilm", "distilbert"])
def test_losses_are_those_of_a_live_teacher(tmp_path, name, store, near):
    made = seam(tmp_path / "kept", name, store)
    for numbers in (range(7), [31, 2, 45, 17], [59]):  # other batches and padding than those of the cache
        rows, told = made.rows.rows(numbers), made.taught.rows(numbers)
        one, two = made.live.eval()(**rows)[0], made.away.eval()(**told)[0]
        torch.testing.assert_close(two, one, rtol=near, atol=near)


def test_a_run_without_a_teacher_ends_as_one_with_it(tmp_path):
    settings = Engine(steps=6, batch=6, micro=2, lr=1e-2, evaluate_steps=3, checkpoint_steps=3)
    ends = []
    for which in ("live", "away"):
        made = seam(tmp_path / "kept", "pkd", "float32")
        model, source = (made.live, made.rows) if which == "live" else (made.away, made.taught)
        done = run(model.train(), source, settings, None, tmp_path / which)
        ends.append(model.student.state_dict())
        assert done.step == 6
    for name, value in ends[0].items():
        if not name.endswith("key.bias"):  # has no gradient but rounding, which Adam makes large
            torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)


def test_padding_of_the_batch_does_not_matter(tmp_path):
    made = seam(tmp_path / "kept", "minilm", "float32")
    kind = Labelled(longer=4)
    wide = Taught(Examples(kind, kind.examples, 3, "wide"), made.taught.cache)
    close = lambda one, two: torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    close(made.away.eval()(**wide.rows(range(5)))[0], made.away.eval()(**made.taught.rows(range(5)))[0])


def test_rows_are_those_of_the_teacher_to_the_bit(tmp_path):
    rows, given, _ = kept_rows()
    kept = Kept.of({"task": [], "hidden": [1]}, teacher(), store="float32")
    cache = fill(tmp_path / "kept", teacher(), given, kept, FACTS, batch=4, shard=8)
    batch = given.rows(range(8, 12))
    told = see(teacher(), kept.wanted, batch, {})
    found = kept.signals(batch | cache.fields(batch, range(8, 12)))
    assert torch.equal(found.task, told.task)
    assert torch.equal(found.hidden[1][batch["mask"]], told.hidden[1][batch["mask"]])
    assert found.hidden[0] is None and len(cache) == 22


class Bare(Labelled):
    """The first five rows are without a token, as a tokenizer without special ones makes them of empty texts."""

    def __init__(self):
        super().__init__()
        for one in self.examples[:5]:
            one["ids"] = []

    def collate(self, examples):
        return pad(examples, 0) | {"labels_cls": torch.tensor([one["label"] for one in examples])}


def test_rows_without_a_token_are_kept_too(tmp_path):
    rows = Bare()
    given = InOrder(rows, rows.examples, rows.fingerprint)
    kept = Kept.of({"task": [], "hidden": [1], "scores": [0]}, teacher(), store="float32")
    cache = fill(tmp_path / "kept", teacher(), given, kept, FACTS, batch=4, shard=8)  # the first batch has none
    batch = given.rows([0, 7, 9])
    told = see(teacher(), kept.wanted, batch, {})
    found = kept.signals(batch | cache.fields(batch, [0, 7, 9]))
    torch.testing.assert_close(found.task, told.task, rtol=2e-6, atol=2e-6)
    assert found.hidden[1].isfinite().all()


# ---------------------------------------------------------------- on disk


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_stopped_cache_goes_on_to_the_same_bytes(tmp_path, monkeypatch, after):
    filled(tmp_path / "whole")
    calls, real = [], module.see

    def stops(*given):
        calls.append(1)
        if len(calls) > after + 1:  # one batch judges the size
            raise ConnectionError("pulled out")
        return real(*given)

    monkeypatch.setattr(module, "see", stops)
    with pytest.raises(ConnectionError):
        filled(tmp_path / "again")
    whole = after // 2  # shards of two batches
    if whole:
        assert len(list((tmp_path / "again").glob("shard-*"))) == whole
        with pytest.raises(CacheBroken, match=rf"not finished: it has {whole} of 3 shards"):
            TeacherCache(tmp_path / "again")
    (tmp_path / "again").mkdir(exist_ok=True)
    (tmp_path / "again/.shard-00002.safetensors").write_bytes(b"half")  # what a kill leaves
    asked = []
    monkeypatch.setattr(module, "see", lambda *given: asked.append(len(given[2]["mask"])) or real(*given))
    filled(tmp_path / "again")
    assert sum(asked[1:]) == 22 - 8 * whole  # nothing is asked twice
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    asked.clear()
    filled(tmp_path / "again")
    assert not asked  # a whole one is only opened


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": "c" * 64}, "teacher was aaaaaaaaaaaa, is cccccccccccc"),
        ({"tokenizer": "c" * 64}, "tokenizer was bbbbbbbbbbbb, is cccccccccccc"),
        ({"precision": "bfloat16"}, "precision was float32, is bfloat16"),
        ({"rounding": "int8"}, "rounding was null, is int8"),
    ],
)
def test_a_foreign_cache_is_refused(tmp_path, change, words):
    filled(tmp_path / "kept")
    before = contents(tmp_path / "kept")
    _, given, kept = kept_rows()
    with pytest.raises(CacheForeign, match=words):
        fill(tmp_path / "kept", teacher(), given, kept, FACTS | change, batch=4, shard=8)
    assert contents(tmp_path / "kept") == before


def test_other_signals_and_other_rows_are_refused(tmp_path):
    filled(tmp_path / "kept")
    other = Kept.of({"task": []}, teacher())
    with pytest.raises(CacheForeign, match="kept was .*delete the folder to make the cache anew"):
        filled(tmp_path / "kept", other)
    rows = Labelled(21)
    with pytest.raises(CacheForeign, match="count was 22, is 21; rows was labelled, is fewer"):
        filled(tmp_path / "kept", source=InOrder(rows, rows.examples, "fewer"))


def test_a_teacher_file_that_changed_is_noticed(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/config.json").write_text("{}")
    facts = lambda: FACTS | {"teacher": digest(tmp_path / "teacher")}
    _, given, kept = kept_rows()
    fill(tmp_path / "kept", teacher(), given, kept, facts(), batch=4, shard=8)
    (tmp_path / "teacher/config.json").write_text("{ }")
    with pytest.raises(CacheForeign, match="teacher was"):
        fill(tmp_path / "kept", teacher(), given, kept, facts(), batch=4, shard=8)


def test_truncated_and_corrupt_shards_are_refused(tmp_path):
    filled(tmp_path / "whole")
    name = "shard-00001.safetensors"

    def spoiled(write):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "bad")
        write(tmp_path / "bad" / name)
        return tmp_path / "bad"

    def flip(file):
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)

    cut = lambda file: file.write_bytes(file.read_bytes()[:-5])
    for write, words in ((cut, "is truncated or was written to"), (flip, "is corrupt: its SHA-256"),
                         (lambda file: file.unlink(), "is missing")):  # fmt: skip
        bad = spoiled(write)
        for use in (TeacherCache, filled):
            with pytest.raises(CacheBroken, match=f"{name} {words}.*delete the folder and fill it again"):
                use(bad)
    assert TeacherCache(spoiled(flip), verify=False)  # sizes alone do not tell
    bad = spoiled(flip)
    write_json(bad / "manifest.json", read_json(bad / "manifest.json") | {"format": 0})
    with pytest.raises(CacheBroken, match="is not of format 1"):
        TeacherCache(bad)
    (bad / "manifest.json").write_text('{"format"')
    with pytest.raises(ValueError, match="is not JSON"):
        TeacherCache(bad)
    with pytest.raises(FileNotFoundError, match="is no teacher cache"):
        TeacherCache(tmp_path / "nowhere")


def test_rows_that_the_teacher_never_read_are_refused(tmp_path):
    made = seam(tmp_path / "fixed", "kd", "float16")
    batch = made.rows.rows(range(4))
    batch["ids"][2, 0] = (batch["ids"][2, 0] + 1) % 23
    with pytest.raises(CacheForeign, match=r"never read 1 of these 4 rows, the first is row 12"):
        made.taught.cache.fields(batch, range(10, 14))
    text = seam(tmp_path / "text", "distilbert", "float16")
    with pytest.raises(CacheForeign, match="never read 3 of these 3 rows"):
        Taught(Masked(20, seed=5), text.taught.cache).rows(range(3))  # another seed masks other words
    with pytest.raises(IndexError, match=r"holds the rows 0..59, but row 60 was asked for"):
        text.taught.rows([59, 60])


def test_a_checkpoint_is_of_one_cache(tmp_path):
    one = Taught(Labelled(), filled(tmp_path / "one"))
    other = Taught(Labelled(), filled(tmp_path / "other", model=teacher(seed=1)))
    assert one.fingerprint != other.fingerprint != Labelled.fingerprint
    assert Taught(Labelled(), TeacherCache(tmp_path / "one")).fingerprint == one.fingerprint and len(one) == 22


def _ask_together(folder):
    filled(folder / "both", model=shard(teacher(), "cpu"))


def test_a_teacher_shared_by_two_ranks_fills_the_same_cache(tmp_path):
    on_two_ranks(_ask_together, tmp_path)
    filled(tmp_path / "one")
    assert contents(tmp_path / "both") == contents(tmp_path / "one")


def _stop_and_go_on_together(folder):
    """Both ranks are stopped after a shard, and go on; another cache is refused by both, and made anew by both."""
    real, calls = module.see, []

    def stops(*given):
        calls.append(1)
        if len(calls) > 3:  # one batch judges the size, two are a shard
            raise ConnectionError("pulled out")
        return real(*given)

    module.see = stops
    with pytest.raises(ConnectionError):
        filled(folder / "both", model=shard(teacher(), "cpu"))
    module.see = real
    torch.distributed.barrier()
    filled(folder / "both", model=shard(teacher(), "cpu"))
    _, given, _ = kept_rows()
    other = Kept.of({"task": []}, teacher())
    with pytest.raises(CacheForeign, match="kept was"):
        filled(folder / "both", other)
    torch.distributed.barrier()
    if parallel.rank() == 0:
        shutil.copytree(folder / "both", folder / "anew")
    torch.distributed.barrier()
    filled(folder / "anew", other, anew=True)


def test_two_ranks_go_on_together_and_refuse_together(tmp_path):
    on_two_ranks(_stop_and_go_on_together, tmp_path)
    filled(tmp_path / "one")
    assert contents(tmp_path / "both") == contents(tmp_path / "one")
    filled(tmp_path / "few", Kept.of({"task": []}, teacher()))
    assert contents(tmp_path / "anew") == contents(tmp_path / "few")


def _ask_apart(folder):
    with pytest.raises(CacheBroken, match="the ranks see 3, 0 whole shards there; the folder must be the same for all"):
        filled(folder / f"{parallel.rank()}/kept", model=shard(teacher(), "cpu"))


def test_two_ranks_that_see_two_folders_are_refused(tmp_path):
    filled(tmp_path / "0/kept")
    on_two_ranks(_ask_apart, tmp_path)


# ---------------------------------------------------------------- size


def test_the_estimate_is_what_is_written(tmp_path, monkeypatch):
    _, given, kept = kept_rows()
    cache = filled(tmp_path / "kept")
    written = sum(shard["bytes"] for shard in cache.manifest["shards"])
    said = estimate(teacher(), given, kept, 22)
    numbers = sum(len(one["ids"]) for one in given.examples) * 2 * 8 * 2 + 22 * (3 * 2 + 4 + 16)
    assert said == pytest.approx(numbers)  # two layers of 8 halves a token; a row: 3 halves, its length, its hash
    assert 0 < written - said < 3 * 600  # headers


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage(10_000, 9_000, 1_000))
    with pytest.raises(NoRoom, match=r"22 rows takes about 0.0 MiB, .* has 0.0 MiB free; keep fewer words"):
        filled(tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_what_a_cache_is_bound_to_must_be_said(tmp_path):
    _, given, kept = kept_rows()
    with pytest.raises(ValueError, match="facts lack tokenizer"):
        fill(tmp_path / "kept", teacher(), given, kept, {"teacher": "a"})
    with pytest.raises(ValueError, match="got count 0"):
        fill(tmp_path / "kept", teacher(), given, kept, FACTS, count=0)


def test_the_command_says_what_is_there(tmp_path, capsys):
    filled(tmp_path / "kept")
    main(str(tmp_path / "kept"))
    assert (
        "22 rows" in (said := capsys.readouterr().out) and "3 whole shards" in said and "teacher aaaaaaaaaaaa" in said
    )
