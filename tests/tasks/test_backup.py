"""Backups: a round trip with real DVC and SQLite; only what is new is copied, nothing overwritten or half restored."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import backup as module
from tasks.backup import BackupBroken, InTheWay, restore, save
from tasks.files import locked, read_json

GRAPH = """
stages:
  made:
    cmd: python -c "import pathlib; pathlib.Path('artifacts/made').write_text(pathlib.Path('params.yaml').read_text())"
    deps: [params.yaml]
    outs: [artifacts/made]
  told:
    cmd: python -c "import pathlib; pathlib.Path('artifacts/told.json').write_text('1')"
    deps: [artifacts/made]
    outs: [{artifacts/told.json: {cache: false}}]
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout that has run: one cached output, one that only lies there, a registry and Prefect's database."""
    folder = tmp_path / "mine"
    (folder / "artifacts").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])
    Path("params.yaml").write_text("a: 1\n")
    Path("dvc.yaml").write_text(GRAPH)
    Path(".gitignore").write_text("/artifacts\n/mlruns\n/.prefect\n")
    git("init", "-q")
    call("dvc", "init", "-q")
    git("add", "-A")
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start")
    call("dvc", "repro", "-q")
    for name in ("mlruns/mlflow.db", ".prefect/prefect.db"):
        Path(name).parent.mkdir()
        connection = sqlite3.connect(name)
        for table, columns in module.MOVED.items():
            connection.execute(f"create table {table} ({', '.join(columns)})")
        connection.execute("insert into experiments values (?)", (f"{folder}/mlruns/artifacts",))
        connection.execute("pragma journal_mode=wal")
        connection.commit()
        connection.close()
    Path("mlruns/artifacts").mkdir()
    Path("mlruns/artifacts/weights").write_text("w")
    Path(".prefect/server.log").write_text("long")
    return folder


def git(*words: str) -> None:
    subprocess.run(["git", *words], check=True)


def call(*words: str) -> None:
    subprocess.run([sys.executable, "-m", *words], check=True)


@pytest.fixture
def clone(checkout, tmp_path, monkeypatch) -> Path:
    """A fresh clone elsewhere; the working directory is there once it is asked for."""
    place = tmp_path / "other"
    git("clone", "-q", str(checkout), str(place))
    return place


def test_a_round_trip_into_another_folder(checkout, clone, tmp_path, monkeypatch):
    about = save(tmp_path / "kept")
    assert about["objects"] == 1
    assert oct((tmp_path / "kept").stat().st_mode)[-3:] == "700"
    assert set(about["state"]) == {
        "dvc.lock", "params.yaml", "artifacts/told.json", "mlruns/mlflow.db", "mlruns/artifacts/weights",
        ".prefect/prefect.db",
    }  # fmt: skip
    shutil.rmtree(checkout)
    monkeypatch.chdir(clone)
    assert restore(tmp_path / "kept") == []
    assert Path("artifacts/made").read_text() == "a: 1\n"
    assert Path("artifacts/told.json").read_text() == "1"
    with sqlite3.connect("mlruns/mlflow.db") as database:
        assert database.execute("select * from experiments").fetchall() == [(f"{clone}/mlruns/artifacts",)]


def test_again_copies_only_what_is_new_and_links_what_is_not(checkout, tmp_path):
    kept = tmp_path / "kept"
    save(kept)
    (object_,) = (path for path in (kept / "objects").rglob("*") if path.is_file())
    weights = (kept / "state/mlruns/artifacts/weights").stat()
    born = object_.stat().st_ino
    Path("params.yaml").write_text("a: 2\n")
    call("dvc", "repro", "-q")
    assert save(kept)["objects"] == 2
    assert object_.stat().st_ino == born
    assert (kept / "state/mlruns/artifacts/weights").stat().st_ino == weights.st_ino
    assert (kept / "state/params.yaml").read_text() == "a: 2\n"


def test_nothing_is_overwritten_without_a_word(checkout, tmp_path):
    kept = tmp_path / "kept"
    save(kept)
    Path("artifacts/told.json").write_text("mine")
    with pytest.raises(InTheWay, match=r"(?s)a state already: artifacts, mlruns, .prefect, .*--aside"):
        restore(kept)
    assert Path("artifacts/told.json").read_text() == "mine"
    assert restore(kept, aside=True) == []
    assert Path("artifacts/told.json").read_text() == "1"
    (moved,) = module.ASIDE.glob("*/artifacts/told.json")
    assert moved.read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(InTheWay, match="no backup"):
        save(other)


@pytest.mark.parametrize("part", ["state/artifacts/told.json", "objects"])
def test_a_broken_backup_changes_nothing(checkout, clone, tmp_path, monkeypatch, part):
    kept = tmp_path / "kept"
    save(kept)
    broken = next(path for path in [kept / part, *sorted((kept / part).rglob("*"))] if path.is_file())
    broken.chmod(0o644)
    broken.write_text("other bytes")
    monkeypatch.chdir(clone)
    with pytest.raises(BackupBroken, match="1 files are not those that were saved"):
        restore(kept)
    assert not Path("artifacts").exists()
    with pytest.raises(BackupBroken, match=r"no backup.json"):
        restore(tmp_path)


def test_it_waits_for_the_flow_that_runs(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.repro.WAIT", -1.0)
    with locked("flow"), pytest.raises(ValueError, match="another flow is at work"):
        save(tmp_path / "kept")
    assert not (tmp_path / "kept/backup.json").exists()
    assert save(tmp_path / "kept") == read_json(tmp_path / "kept/backup.json")
