"""A process is known by host, boot, start and number; no clock is asked."""

import os
import subprocess
import sys

import pytest

from tasks import process as module
from tasks.process import alive, mark


def test_this_process_lives_and_no_other_is_taken_for_it():
    host, boot, start, number = mark().split()
    assert alive(mark()) is True
    assert alive(f"{host} {boot} {int(start) - 1} {number}") is False  # the number went to somebody else
    assert alive(f"{host} another-boot {start} {number}") is False
    assert alive(f"elsewhere {boot} {start} {number}") is None
    assert alive("") is alive("nonsense") is alive(f"{host} {boot} {start} x") is False


def test_a_dead_one_is_dead_also_before_its_starter_asks():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    marked = mark(child.pid)
    assert alive(marked) is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert alive(marked) is False
    child.wait()
    child.stdin.close()
    assert alive(marked) is False
    with pytest.raises(ProcessLookupError):
        mark(child.pid)


def test_a_jump_of_the_clock_changes_nothing(monkeypatch):
    import time

    before = mark()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert alive(before) is True


def test_elsewhere_than_linux_the_clock_must_do(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "BOOT", tmp_path / "none")
    assert alive(mark()) is True
    with pytest.raises(ProcessLookupError):
        mark(999999999)
