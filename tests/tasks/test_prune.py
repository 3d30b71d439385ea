import pytest
import yaml

from tasks.prune import prune
from tasks.settings import SettingsError


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
    assert prune() == ["artifacts/prompt/old/head.json"]
    assert not (tmp_path / "artifacts/prompt/old").exists()
    assert (tmp_path / "artifacts/prompt/kept/head.json").exists()
    assert set(yaml.safe_load((tmp_path / "dvc.lock").read_text())["stages"]) == {"backbone", "prompt@kept"}
    assert prune() == []


def test_params_without_tasks_delete_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("datasets: {}\nrecommend: {}\n")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {prompt@x: {cmd: x, outs: [{path: x}]}}\n")
    (tmp_path / "x").write_text("kept")
    with pytest.raises(SettingsError, match="no 'tasks'"):
        prune()
    assert (tmp_path / "x").exists()
