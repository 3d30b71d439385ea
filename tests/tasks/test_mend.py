"""DVC's own files after a kill: whole entries stay, lost ones come back, nothing is touched while DVC is at work."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks import mend as module
from tasks.mend import Unmendable, mend

LOCK = """schema: '2.0'
stages:
  one:
    cmd: echo 1
    outs:
    - path: a
      hash: md5
      md5: 60b725f10c9c85c70d97880dfe8191b3
      size: 2
  two:
    cmd: echo 2
    deps:
    - path: a
      hash: md5
      md5: 60b725f10c9c85c70d97880dfe8191b3
      size: 2
"""
DATA = "md5: c0\ndeps:\n- path: landing\nouts:\n- md5: 60.dir\n  path: data\n"


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """Where DVC has run: its locks are there and free, and dvc.lock and data.dvc were seen whole."""
    monkeypatch.chdir(tmp_path)
    module.TMP.mkdir(parents=True)
    for name in ("lock", "rwlock.lock"):
        (module.TMP / name).touch()
    module.LOCK.write_text(LOCK)
    module.DATA.write_text(DATA)
    assert mend() == []
    return tmp_path


def stages() -> dict:
    return yaml.safe_load(module.LOCK.read_text())["stages"]


# One that ends with a line may be a whole file of fewer stages; DVC reads it, and asks its run cache for the others.
@pytest.mark.parametrize("length", [n for n in range(0, len(LOCK) - 1, 7) if LOCK[n - 1 : n] != "\n"])
def test_half_a_lock_file_is_whole_again(checkout, length):
    whole = stages()
    module.LOCK.write_text(LOCK[:length])
    assert [line.split(";")[0] for line in mend()] == ["dvc.lock was half written by a run that was killed"]
    assert stages() == whole
    assert mend() == []


def test_what_was_written_whole_beats_what_was_kept(checkout):
    newer = LOCK.replace("echo 1", "echo 3") + "  three:\n    cmd: echo 4\n    outs:\n    - pa"
    module.LOCK.write_text(newer)
    assert "2 stages are known again" in mend()[0]
    assert {name: stage["cmd"] for name, stage in stages().items()} == {"one": "echo 3", "two": "echo 2"}


def test_with_nothing_kept_the_whole_entries_stay_and_an_empty_file_goes(checkout):
    (module.LOCKS / "dvc.lock").unlink()
    module.LOCK.write_text(LOCK[:-40])
    mend()
    assert list(stages()) == ["one"]
    module.LOCK.write_text("")
    assert "0 stages are known again" in mend()[0]
    assert not module.LOCK.exists()
    assert mend() == []


def test_half_a_data_file_is_as_before_or_named(checkout):
    module.DATA.write_text(DATA[:30])
    assert "as it was before that run" in mend()[0]
    assert module.DATA.read_text() == DATA
    (module.LOCKS / "data.dvc").unlink()
    module.DATA.write_text("")
    with pytest.raises(Unmendable, match="git checkout data.dvc"):
        mend()


def test_nothing_is_touched_while_dvc_is_at_work(checkout):
    module.LOCK.write_text("")
    with open(module.TMP / "lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert mend() == []
        assert module.LOCK.read_text() == ""
    assert len(mend()) == 1


def test_outside_of_a_checkout_there_is_nothing_to_mend(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mend() == []


def test_places_of_the_dead_and_of_strangers_are_free_again(checkout):
    places = module.TMP / "rwlock"
    with subprocess.Popen([sys.executable, "-c", "input()", "dvc"], stdin=subprocess.PIPE) as living:
        stranger = subprocess.Popen(["sleep", "60"])
        info = {name: {"pid": pid, "cmd": "dvc repro"} for name, pid in
                {"living": living.pid, "stranger": stranger.pid, "dead": 999999999}.items()}  # fmt: skip
        write = {"a": info["stranger"], "b": info["living"], "c": info["dead"]}
        read = {"d": [info["dead"], info["living"]], "e": [info["stranger"]]}
        places.write_text(json.dumps({"write": write, "read": read}))
        mend()
        stranger.kill()
        stranger.wait()
        assert json.loads(places.read_text()) == {"write": {"b": info["living"]}, "read": {"d": [info["living"]]}}
    places.write_text('{"write": {"a": ')
    assert "rwlock was half written" in mend()[0]
    assert not places.exists()


def test_dvc_itself_goes_on_after_it(checkout):
    dvc = lambda *words: subprocess.run([sys.executable, "-m", "dvc", *words], text=True, capture_output=True)
    assert dvc("init", "--no-scm", "-q", "-f").returncode == 0
    module.DATA.unlink()
    Path("dvc.yaml").write_text(
        "stages:\n  a: {cmd: echo a > a, outs: [a]}\n  b: {cmd: cp a b, deps: [a], outs: [b]}\n"
    )
    module.LOCK.unlink()
    assert dvc("repro").returncode == 0
    whole = module.LOCK.read_text()
    assert mend() == []
    for length in (0, 60, 150, 200):
        module.LOCK.write_text(whole[:length])
        assert dvc("status").returncode != 0
        assert len(mend()) == 1
        assert "up to date" in dvc("status").stdout
