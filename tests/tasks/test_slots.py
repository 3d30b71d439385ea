"""Training slots: exclusive, shared when asked, never lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks import slots
from tasks.settings import SettingsError
from tasks.slots import devices as find_devices
from tasks.slots import slot

HOLDER = """
import sys, time
from pathlib import Path
from tasks import slots
slots.FOLDER, slots.devices = Path(sys.argv[1]), lambda: {"cpu": "cpu"}
with slots.slot() as device:
    print(device, flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "FOLDER", tmp_path / "slots")
    monkeypatch.setattr(slots, "devices", lambda: {"cpu": "cpu"})
    monkeypatch.delenv("ROOTSTOCK_SLOTS", raising=False)
    return tmp_path / "slots"


def hold(folder: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDER, str(folder), str(seconds)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout.readline() == "cpu\n"
    return process


def test_each_device_is_given_once(monkeypatch):
    monkeypatch.setattr(slots, "devices", lambda: {"cuda:0": "GPU-a", "cuda:1": "GPU-b"})
    with slot() as first, slot() as second:
        assert [first, second] == ["cuda:0", "cuda:1"]
    with slot() as again:
        assert again == "cuda:0"


def test_the_card_counts_and_not_its_number(monkeypatch):
    with monkeypatch.context() as other:  # a process that sees only the second card, and calls it cuda:0
        other.setattr(slots, "devices", lambda: {"cuda:0": "GPU-b"})
        held = slot()
        held.__enter__()
    monkeypatch.setattr(slots, "devices", lambda: {"cuda:0": "GPU-a", "cuda:1": "GPU-b"})
    with slot() as mine:
        assert mine == "cuda:0"
        assert slots._take("GPU-b-0.lock") is None
    held.__exit__(None, None, None)


def test_waits_for_the_holder_and_says_so(folder, capsys):
    holder = hold(folder, 1.0)
    started = time.monotonic()
    with slot() as device:
        assert device == "cpu"
        assert time.monotonic() - started > 0.5
    assert f"waiting for a training slot since 0 s: cpu held by process {holder.pid}" in capsys.readouterr().out
    holder.wait()
    holder.stdout.close()


def test_kill_9_gives_the_slot_back(folder):
    holder = hold(folder, 60)
    assert slots._take("cpu-0.lock") is None
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with slot() as device:
        assert device == "cpu"


def test_an_error_gives_the_slot_back():
    with pytest.raises(ZeroDivisionError), slot():
        raise ZeroDivisionError
    with slot() as device:
        assert device == "cpu"


def test_runs_may_share_a_device(monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_SLOTS", "2")
    with slot(), slot():
        assert slots._take("cpu-0.lock") is None
        assert slots._take("cpu-1.lock") is None


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_slots_that_cannot_work(monkeypatch, value):
    monkeypatch.setenv("ROOTSTOCK_SLOTS", value)
    with pytest.raises(SettingsError, match="ROOTSTOCK_SLOTS"), slot():
        pass


def test_a_planted_link_is_not_followed(folder, tmp_path):
    folder.mkdir()
    (tmp_path / "precious").write_text("mine")
    os.symlink(tmp_path / "precious", folder / "cpu-0.lock")
    with pytest.raises(OSError, match="cpu-0"), slot():
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_the_devices_of_this_host():
    import torch

    found = find_devices()
    assert len(found) == max(torch.cuda.device_count(), 1)
    assert len(set(found.values())) == len(found)
    assert all(torch.device(name) for name in found)
