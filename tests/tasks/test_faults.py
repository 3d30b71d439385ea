"""Faults of the machine: a full disk, a folder that can't be written, a locked or full database, a killed writer."""

import ctypes
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasks import process, track
from tasks.track import RegistryUnreachable

ROOT = Path(__file__).parents[2]
FILL = """
import sys
from pathlib import Path
from tasks.command import run
from tasks.files import new_folder, write_json
def main():
    with new_folder("artifacts/out") as fresh:
        (fresh / "weights").write_bytes(bytes(1 << 20))
    write_json("artifacts/said.json", "x" * (1 << 20))
run(main)
"""


def fill(place: Path, before=None) -> subprocess.CompletedProcess:
    """A work unit that writes a megabyte twice, in a process of its own."""
    return subprocess.run([sys.executable, "-c", FILL], cwd=place, text=True, capture_output=True, preexec_fn=before,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "ROOTSTOCK_RUN": ""})  # fmt: skip


def heed_modes() -> None:
    """Root may write anywhere, unless it gives that capability up."""
    drop_from_bounding_set, override_modes = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, override_modes, 0, 0, 0)


def contents(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in (place / "artifacts").rglob("*") if path.is_file()}


def test_a_full_disk_leaves_what_was_there_and_nothing_half_written(tmp_path):
    assert fill(tmp_path).returncode == 0
    good = (tmp_path / "artifacts/out/weights").stat().st_ino
    full = fill(tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)))
    assert full.returncode == 1
    assert full.stderr.startswith("error: ")
    assert "Traceback" not in full.stderr
    assert contents(tmp_path) == {"artifacts/out/weights", "artifacts/said.json"}
    assert (tmp_path / "artifacts/out/weights").stat().st_ino == good
    assert fill(tmp_path).returncode == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    assert fill(tmp_path).returncode == 0
    before = {path: path.stat().st_ino for path in (tmp_path / "artifacts").rglob("*")}
    os.chmod(tmp_path / "artifacts", 0o555)
    refused = fill(tmp_path, heed_modes)
    os.chmod(tmp_path / "artifacts", 0o755)
    assert refused.returncode == 1
    assert "error: [Errno 13] Permission denied" in refused.stderr
    assert "artifacts/.new-out-" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert {path: path.stat().st_ino for path in (tmp_path / "artifacts").rglob("*")} == before


def test_a_locked_database_is_waited_for_then_named_then_works(registry, monkeypatch):
    holder = sqlite3.connect(registry, check_same_thread=False)
    holder.execute("begin exclusive")
    # Waited for: SQLite's own patience, of which MLflow takes several.
    threading.Timer(2.0, holder.rollback).start()
    run = track.log_run("after a wait", params={}, metrics={"auc": 0.5})
    assert track.run_data(run) == ({}, {"auc": 0.5})
    monkeypatch.setattr(track, "_client", refusing("(sqlite3.OperationalError) database is locked\n[SQL: SELECT 1]"))
    with pytest.raises(
        RegistryUnreachable, match=r"\(database is locked\); nothing was .* Another program holds the"
    ) as e:
        track.identity()
    assert "SELECT" not in str(e.value)
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registry}")
    assert track.find_run(kind="none") is None


def refusing(said: str):
    from mlflow.exceptions import MlflowException

    def client():
        raise MlflowException(said)

    return client


def test_a_database_on_a_full_disk_stays_whole(registry):
    """The limit is of one file's size, a little above the database's: it can't grow."""
    size = registry.stat().st_size
    code = ("from tasks import track; from tasks.command import run\n"
            "run(lambda: track.log_run('x', params={str(i): 'y' * 6000 for i in range(90)}, metrics={}))")  # fmt: skip
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size + 8192, size + 8192))
    full = subprocess.run([sys.executable, "-c", code], cwd=registry.parent, text=True, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, preexec_fn=limit)  # fmt: skip
    assert full.returncode == 1
    assert "error: MLflow does not answer" in full.stderr, full.stderr
    with sqlite3.connect(registry) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert track.log_run("again", params={}, metrics={})


def test_a_run_whose_writer_was_killed_is_closed_by_the_next(registry):
    code = ("import os, signal\nfrom tasks import track\n"
            "track._log_metrics = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "track.log_run('killed', params={}, metrics={'auc': 0.5})")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=registry.parent,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert states(registry) == [("killed", "RUNNING")]
    living = track.log_run("next", params={}, metrics={})
    assert sorted(states(registry)) == [("killed", "KILLED"), ("next", "FINISHED")]
    host, boot, start, number = process.mark().split()
    with sqlite3.connect(registry) as database:  # that of another host, which can't be known from here
        database.execute("update runs set status = 'RUNNING' where run_uuid = ?", (living,))
        database.execute("update tags set value = ? where run_uuid = ? and key = ?",
                         (f"elsewhere {boot} {start} {number}", living, track.PROCESS))  # fmt: skip
    track.log_run("third", params={}, metrics={})
    assert ("next", "RUNNING") in states(registry)


def states(registry: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(registry) as database:
        return database.execute("select name, status from runs").fetchall()
