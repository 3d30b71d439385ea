"""Where a version comes from and who uses it: by the attached lock, by tags, and by what nobody recorded."""

import json
from pathlib import Path

import pytest
import yaml

from tasks import lineage as module
from tasks import track
from tasks.files import write_json
from tasks.lineage import lineage, main, marks, stage_of, told
from tasks.lock import Lock

ENTRIES = {  # a base, an extended vocabulary without a version of its own, and what goes on from it
    "fetch@corpora": {"outs": {"landing/corpora": "0.dir"}},
    "ingest@corpora": {"deps": {"data/corpora": "raw.dir"}, "outs": {"artifacts/ingest/corpora": "abcdef.dir"}},
    "tokens@corpora": {
        "deps": {"artifacts/ingest/corpora": "abcdef.dir"},
        "outs": {"artifacts/tokens/corpora": "1.dir"},
    },
    "pretrain@gpt2": {
        "deps": {"artifacts/tokens/corpora": "1.dir", "models/fit.py": "2"},
        "outs": {"artifacts/pretrain/gpt2/model": "gpt.dir", "artifacts/pretrain/gpt2/run.json": "3"},
        "params": {"language.pretrain.gpt2": {"size": "nano", "training": {"steps": 4}}},
    },
    "vocabulary@zh": {
        "deps": {"artifacts/pretrain/gpt2": "4.dir"},
        "outs": {"artifacts/vocabulary/zh/model": "5.dir", "artifacts/vocabulary/zh/report.json": "6"},
    },
    "continued@bilingual": {
        "deps": {"artifacts/vocabulary/zh": "7.dir", "artifacts/near": "near.dir"},
        "outs": {"artifacts/continued/bilingual/model": "bi.dir"},
    },
    "ingest@other": {"outs": {"artifacts/ingest/other": "other.dir"}},
    "near": {
        "deps": {"artifacts/ingest": "all.dir"},
        "outs": {"artifacts/near": "near.dir"},
        "params": {"language.near": {"train": {"data": ["corpora"]}}},
    },
    "backbone": {"outs": {"artifacts/backbone/model.safetensors": "w", "artifacts/backbone/backbone.json": "9"}},
    "distill_tasks@shop": {"outs": {"artifacts/distill_tasks/shop/tasks": "many.dir"}},
}


def locked(**changes) -> dict:
    """A dvc.lock of ENTRIES."""
    listed = lambda hashes: [{"path": path, "hash": "md5", "md5": md5} for path, md5 in hashes.items()]
    return {"schema": "2.0", "stages": {
        name: {part: listed(entry[part]) for part in ("deps", "outs") if part in entry}
        | ({"params": {"params.yaml": entry["params"]}} if "params" in entry else {})
        for name, entry in (ENTRIES | changes).items()
    }}  # fmt: skip


def version(name: str, number: int, **tags: str) -> track.Version:
    return track.Version(name, number, "run", tags)


@pytest.fixture
def lock(tmp_path) -> Path:
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(locked()))
    return tmp_path / "dvc.lock"


def test_what_a_lock_says(lock, tmp_path):
    known = Lock.read(lock)
    assert known.makers("artifacts/vocabulary/zh") == ["vocabulary@zh"]
    assert known.makers("artifacts/distill_tasks/shop/tasks/category/model") == ["distill_tasks@shop"]
    assert known.above("continued@bilingual") == ["vocabulary@zh", "near"]
    assert known.whole("continued@bilingual") == [
        "continued@bilingual", "vocabulary@zh", "near", "pretrain@gpt2", "ingest@corpora", "tokens@corpora",
    ]  # fmt: skip
    assert known.above("near") == ["ingest@corpora"]  # its settings name no other data set
    assert known.weights("artifacts/continued/bilingual/model") == ("continued@bilingual", "bi.dir")
    assert known.weights("artifacts/backbone") == ("backbone", "w")  # its file of seconds does not count
    assert known.weights("artifacts/backbone artifacts/distill_tasks/shop/tasks/category/model") == (
        "distill_tasks@shop", "many.dir",
    )  # fmt: skip
    assert known.weights("artifacts/unknown") == known.weights("") == (None, "")
    assert known.stages["pretrain@gpt2"].parameters == {
        "language.pretrain.gpt2": {"size": "nano", "training": {"steps": 4}}
    }
    assert Lock.read(tmp_path / "none.lock").stages == {}
    (tmp_path / "broken.lock").write_text("a: [")
    with pytest.raises(ValueError, match=r"broken\.lock is no dvc\.lock"):
        Lock.read(tmp_path / "broken.lock")


def test_a_parent_is_the_nearest_version_of_the_very_weights(lock, monkeypatch):
    there = [
        version("language-gpt2", 1, stage="pretrain@gpt2", weights_md5="older.dir"),
        version("language-gpt2", 2, stage="pretrain@gpt2", weights_md5="gpt.dir"),
        version(track.LISTINGS, 1, stage="pretrain@gpt2", weights_md5="gpt.dir"),  # the same files under another name
        version("language-old", 1, stage="pretrain@gpt2"),  # from before there was such a tag
    ]
    monkeypatch.setattr(track, "versions", lambda: there)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")  # sums depend on it, so a rebuild asks for as many
    found = marks("artifacts/continued/bilingual/model", lock)
    assert found == {"stage": "continued@bilingual", "weights_md5": "bi.dir", "parents": "models:/language-gpt2/2",
                     "threads": "3"}  # fmt: skip
    own = version("language-bilingual", 1, stage="continued@bilingual", weights_md5="bi.dir")
    monkeypatch.setattr(track, "versions", lambda: [*there, own])
    assert marks("artifacts/continued/bilingual/model", lock) == found  # a version is not its own parent
    assert marks("artifacts/pretrain/gpt2/model", lock)["parents"] == "none"
    assert marks("artifacts/elsewhere", lock) == {}


def test_the_stage_is_that_of_the_lock(lock):
    student = version("distill-shop_category", 1, stage="tasks@shop_category",
                      paths="artifacts/distill_tasks/shop/tasks/category/model")  # fmt: skip
    assert stage_of(student, Lock.read(lock)) == "distill_tasks@shop"
    assert stage_of(student, Lock({})) == "tasks@shop_category"


@pytest.fixture
def registered(lock, tmp_path, monkeypatch) -> dict[str, track.Version]:
    """A base, what goes on from it and a student of that, as a registry would tell of them; each with its lock."""
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache/files/md5"
    listed = [{"md5": "aa11", "relpath": "events/part.parquet"}, {"md5": "bb22", "relpath": "manifest.json"}]
    write_json(cache / "ab/cdef.dir", listed)
    days = [{"first": f"2024-05-{day:02}T00:00:00", "last": f"2024-05-{day + 2:02}T00:00:00"} for day in (1, 4, 7)]
    write_json(cache / "bb/22", {"rows": 95, "splits": dict(zip(("train", "val", "test"), days, strict=True))})
    monkeypatch.setattr(module, "_cache", lambda: tmp_path / "cache")
    common = {"git_revision": "f" * 40, "git_dirty": "false", "verdict": "passed", "verdict_sha256": "c" * 64}
    path = "artifacts/{}/model"
    found = [
        version("language-gpt2", 1, content_sha256="a" * 64, paths=path.format("pretrain/gpt2"), **common),
        version("language-bilingual", 3, paths=path.format("continued/bilingual"), parents="models:/language-gpt2/1",
                base="vocabulary/zh", **common | {"git_dirty": "true"}),
        version("distill-small", 1, stage="distill@small", teacher="models:/language-bilingual/3", verdict="passed"),
    ]  # fmt: skip
    known = {one.uri: one for one in found}

    def download(one, place, folder):
        if one.name == "distill-small":
            raise track.RegistryError("its run has lost it")
        (folder / place).mkdir()
        if place == "rebuild":
            (folder / place / "dvc.lock").write_bytes(lock.read_bytes())
        else:
            write_json(folder / place / "verdict.json", {"checks": [{}, {}]})
        return folder / place

    monkeypatch.setattr(track, "download", download)
    monkeypatch.setattr(track, "versions", lambda: found)
    monkeypatch.setattr(track, "resolve", known.__getitem__)
    monkeypatch.setattr(track, "by_alias", lambda name, alias: next((one for one in found if one.name == name), None)
                        if alias == "champion" else None)  # fmt: skip
    monkeypatch.setattr(track, "run_data", lambda run: ({"method": "kd"}, {}))
    return known


def test_the_whole_tree(registered, tmp_path):
    (tmp_path / "params.yaml").write_text("recommend: {backbone: {text: 'models:/language-bilingual@champion'}}\n")
    (tmp_path / "dvc.yaml").write_text("""
stages:
  listing_encoder: {cmd: python -m tasks.listing_encoder params.yaml:recommend.backbone OUT}
  prompt: {foreach: "${x}", do: {cmd: x, params: [{params.yaml: ["recommend.tasks.${key}"]}]}}
  backbone: {cmd: x, params: [{params.yaml: [recommend.backbone]}]}
""")
    tree = lineage("models:/distill-small/1")
    assert (tree["stage"], tree["parameters"], tree["data"]) == ("distill@small", {"method": "kd"}, [])
    assert tree["gate"] == {"passed": True, "checks": None, "sha256": None} and tree["dirty"] is None
    [parent] = tree["parents"]
    assert (parent["as"], parent["version"], parent["dirty"]) == ("teacher", "models:/language-bilingual/3", True)
    assert parent["consumers"] == {"versions": ["models:/distill-small/1"], "stages": ["listing_encoder", "backbone"]}
    assert parent["gate"]["checks"] == 2 and parent["aliases"] == ["champion"]
    [base] = parent["parents"]
    assert (base["as"], base["version"], base["stage"]) == ("began from", "models:/language-gpt2/1", "pretrain@gpt2")
    assert base["parameters"] == {"language.pretrain.gpt2": {"size": "nano", "training": {"steps": 4}}}
    assert base["data"] == parent["data"] == [{
        "name": "corpora", "md5": "abcdef.dir", "raw_md5": "raw.dir", "rows": 95,
        "from": "2024-05-01T00:00:00", "to": "2024-05-09T00:00:00",
    }]  # fmt: skip
    assert base["parents"] == []


def test_as_text_and_as_json(registered, capsys):
    main("models:/distill-small/1")
    text = capsys.readouterr().out
    assert "    teacher: models:/language-bilingual/3  champion" in text
    assert "revision ffffffffffff (with uncommitted changes)" in text
    assert "        began from: models:/language-gpt2/1" in text
    assert "data        corpora abcdef, raw raw, 95 rows, 2024-05-01 to 2024-05-09" in text
    assert "parameter   language.pretrain.gpt2.training.steps = 4" in text
    assert "used by     models:/language-bilingual/3" in text
    main("models:/distill-small/1", "--json")
    assert json.loads(capsys.readouterr().out) == lineage("models:/distill-small/1")
    with pytest.raises(ValueError, match="can only be --json"):
        main("models:/distill-small/1", "-j")


def test_what_is_gone_is_unknown_not_wrong(registered, tmp_path, monkeypatch):
    (tmp_path / "cache/files/md5/bb/22").unlink()
    gone = lineage("models:/language-gpt2/1")
    assert gone["data"] == [
        {"name": "corpora", "md5": "abcdef.dir", "raw_md5": "raw.dir", "rows": None, "from": None, "to": None}
    ]
    lost = version("distill-lost", 1, teacher="models:/language-old/7", data_sha256="d" * 64)
    monkeypatch.setattr(track, "resolve", lambda uri: lost)
    tree = lineage("models:/distill-lost/1")
    assert tree["parents"] == [{"as": "teacher", "version": "models:/language-old/7"}]
    assert tree["data"][0]["md5"] == "d" * 64 and tree["revision"] is None
    assert "teacher: models:/language-old/7  (not registered)" in told(tree)
    assert "revision unknown (not recorded)" in told(tree)


def test_a_real_registry_without_dvc(promoted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = lineage("models:/recommend-offer_make@champion")
    assert tree["version"] == "models:/recommend-offer_make/1" and "champion" in tree["aliases"]
    assert tree["gate"]["passed"] is True and tree["gate"]["checks"] > 5
    assert tree["parameters"]["method"] == "mpt_rec"
    [backbone] = tree["parents"]
    assert (backbone["as"], backbone["version"]) == ("backbone", "models:/recommend-backbone/1")
    assert backbone["consumers"]["versions"] == ["models:/recommend-offer_make/1"]
    assert tree["data"][0]["md5"] == backbone["data"][0]["md5"]
    assert [one.uri for one in track.versions()] == ["models:/recommend-backbone/1", "models:/recommend-offer_make/1"]
    with pytest.raises(track.RegistryError, match="has no version 9"):
        lineage("models:/recommend-backbone/9")
