import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tasks import files
from tasks.files import DiskFull, digest, locked, new_folder, on_disk, read_json, write_json


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fail(file):
    file.write_text("2")
    raise OSError("No space left on device")


def test_new_folder_is_whole_or_absent(tmp_path):
    target = tmp_path / "out"
    with new_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(OSError, match="No space"), new_folder(target) as folder:
        fail(folder / "a")
    assert (target / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".new")] == []


@pytest.mark.parametrize(
    ("error", "free", "full"),
    [
        (OSError(28, "No space left on device"), 0, True),
        (OSError(122, "Disk quota exceeded"), 1 << 40, True),
        (RuntimeError("parquet: File out of specification: No space left on device (os error 28)"), 0, True),
        (OSError("65536 requested and 38384 written"), 4096, True),  # numpy
        (OSError("65536 requested and 38384 written"), 1 << 30, False),  # a disk that is broken, not full
        (OSError(13, "Permission denied", "out"), 0, False),
    ],
)
def test_a_full_disk_is_told_with_its_place_and_room(tmp_path, monkeypatch, error, free, full):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    with pytest.raises(type(error) if not full else DiskFull) as raised, on_disk("there/not/yet"):
        raise error
    if full:
        assert str(raised.value).endswith(
            f"; nothing was written to there/not/yet. {free / 1e6:,.1f} MB are free at {tmp_path}: make room there, "
            f"then run it again"
        )
        assert raised.value.errno == 28
    else:
        assert raised.value is error


def test_new_folder_removes_what_a_kill_left(tmp_path):
    lines = ("import os", "from tasks.files import new_folder", "with new_folder('out') as f:", "    os._exit(9)")
    code = "\n".join([*lines[:3], "    (f / 'half').write_text('x')", lines[3]])
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, check=False)
    assert len([p for p in tmp_path.iterdir() if p.name.startswith(".new-out")]) == 1
    with new_folder("out") as folder:
        (folder / "whole").write_text("y")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".dvc") == ["out"]


def test_lock_is_freed_with_its_holder(tmp_path):
    with locked("a"), pytest.raises(BlockingIOError), locked("a", wait=False):
        pass
    with locked("a", wait=False):
        pass


def test_json_never_holds_nan(tmp_path):
    write_json("x.json", {"auc": math.nan, "list": [math.inf, 1.0], "n": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"auc": None, "list": [None, 1.0], "n": 1}
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        read_json("x.json")


def test_digest_sees_names_and_contents(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(FileNotFoundError, match="no files to hash"):
        digest(tmp_path / "d")
    (tmp_path / "d" / "a").write_text("1")
    first = digest(tmp_path / "d")
    (tmp_path / "d" / ".hidden").write_text("1")
    assert digest(tmp_path / "d") == first
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "b")
    assert digest(tmp_path / "d") != first
