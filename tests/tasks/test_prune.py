import pytest
import yaml

from tasks.prune import prune
from tasks.settings import SettingsError

GRAPH = """
stages:
  backbone: {cmd: x}
  prompt: {foreach: "${recommend.tasks}", do: {cmd: x}}
  pretrain: {foreach: "${language.pretrain}", do: {cmd: x}}
"""


def test_only_retired_stages_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("old", "kept"):
        (tmp_path / "artifacts/prompt" / name).mkdir(parents=True)
        (tmp_path / "artifacts/prompt" / name / "head.json").write_text("{}")
    stage = lambda name: {"cmd": "x", "outs": [{"path": f"artifacts/prompt/{name}/head.json", "md5": "0"}]}
    lock = {
        "schema": "2.0",
        "stages": {"backbone": {"cmd": "x"}, "prompt@old": stage("old"), "prompt@kept": stage("kept")},
    }
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    (tmp_path / "params.yaml").write_text("datasets: {sample: {}}\nrecommend: {tasks: {kept: {}}}\n")
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    assert prune() == ["artifacts/prompt/old/head.json"]
    assert not (tmp_path / "artifacts/prompt/old").exists()
    assert (tmp_path / "artifacts/prompt/kept/head.json").exists()
    assert set(yaml.safe_load((tmp_path / "dvc.lock").read_text())["stages"]) == {"backbone", "prompt@kept"}
    assert prune() == []


def test_a_key_counts_for_its_own_kind_of_stage(tmp_path, monkeypatch):
    """A retired recipe goes although a task of that name stays; a stage that the graph does not run for keys stays."""
    monkeypatch.chdir(tmp_path)
    for name in ("recipe", "head", "other"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  pretrain@x: {cmd: x, outs: [{path: recipe}]}\n"
        "  prompt@x: {cmd: x, outs: [{path: head}]}\n  elsewhere@x: {cmd: x, outs: [{path: other}]}\n"
    )
    (tmp_path / "params.yaml").write_text("recommend: {tasks: {x: {}}}\nlanguage: {pretrain: {y: {}}}\n")
    assert prune() == ["recipe"]
    assert (tmp_path / "head").exists()
    assert (tmp_path / "other").exists()


def test_params_without_tasks_delete_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("datasets: {}\nrecommend: {}\n")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {prompt@x: {cmd: x, outs: [{path: x}]}}\n")
    (tmp_path / "x").write_text("kept")
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    with pytest.raises(SettingsError, match="no 'tasks'"):
        prune()
    assert (tmp_path / "x").exists()
