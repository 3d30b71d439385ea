"""A stage's command ends with its DVC, whatever shell stands between; all other commands outlive who started them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from _tiny import MadeUp, Tiny

from models import parallel
from tasks import orphan
from tasks.engine import Engine, run

ROOT = Path(__file__).parents[2]
# Stands for DVC: a thread starts the command, and is gone long before it ends.
STARTER = """
import os, subprocess, sys, threading
stage, *words = sys.argv[1:]
started = []
environment = os.environ | ({"DVC_STAGE": stage} if stage else {})
thread = threading.Thread(target=lambda: started.append(subprocess.Popen(words, env=environment)))
thread.start()
thread.join()
sys.exit(started[0].wait())
"""
# Is still at its imports, and has a process at work for it, as tasks/tokens.py has.
IMPORTS = """
import os, subprocess, sys, time
from pathlib import Path
import tasks

Path("at_work" if sys.argv[1:] else "helps").write_text(str(os.getpid()))
if sys.argv[1:]:
    subprocess.Popen([sys.executable, "imports.py"])
time.sleep(60)
"""
# Writes half of a folder, and the rest of it when there is a file `go`; none that a failed test leaves stays for good.
COMMAND = """
import os, time
from pathlib import Path
from tasks.command import run
from tasks.files import new_folder


def main(out):
    with new_folder(out) as folder:
        (folder / "first").write_text("half")
        Path("at_work").write_text(str(os.getpid()))
        until = time.monotonic() + 60
        while not Path("go").exists() and time.monotonic() < until:
            time.sleep(0.02)
        (folder / "second").write_text("whole")


run(main)
"""
TRAINING = """
import os, sys, time
from pathlib import Path
from _tiny import MadeUp, Tiny
from tasks import engine
from tasks.command import run


class Slow(MadeUp):
    def rows(self, indices):
        time.sleep(0.02)
        if indices[0] == 40:
            Path("at_work").write_text(str(os.getpid()))
        return super().rows(indices)


def main(checkpoints):
    settings = engine.Engine.read({settings})
    done = engine.run(Tiny(), Slow(), settings, None, Path(checkpoints))
    sys.exit(os.EX_TEMPFAIL if done.stopped else 0)


run(main)
"""
SETTINGS = {"steps": 120, "batch": 4, "lr": 0.02, "checkpoint_steps": 120, "seed": 3}  # no checkpoint by plan
DIRECT = ()
SHELLS = [DIRECT, ("sh", "-c", "{}"), ("bash", "--norc", "-c", "{}"), ("sh", "-c", "{}; exit $?")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    monkeypatch.delenv(orphan.STAGE, raising=False)
    Path("command.py").write_text(COMMAND)


def started(*words: str, stage: str = "write", shell: tuple[str, ...] = DIRECT) -> subprocess.Popen:
    """Who stands for DVC, with a command of these words that has begun its work."""
    words = [sys.executable, *words]
    command = [part.format(" ".join(words)) for part in shell] or words
    Path("at_work").unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", STARTER, stage, *command], text=True, stdout=subprocess.PIPE)
    wait_for(lambda: Path("at_work").exists() and Path("at_work").read_text())
    return process


def command() -> psutil.Process:
    return psutil.Process(int(Path("at_work").read_text()))


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_a_killed_dvc_takes_its_command_along_and_the_next_run_finishes(shell):
    process = started("command.py", "out", shell=shell)
    orphaned = command()
    kill(process)
    wait_for(lambda: not lives(orphaned), orphan.LOOK + 20)
    process.stdout.close()
    assert not Path("out").exists()
    Path("go").touch()
    with started("command.py", "out") as process:
        assert process.wait() == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["first", "second"]
    assert not list(Path().glob(".new-*")), "half of a folder was left"


def test_it_ends_also_while_it_imports_and_with_what_it_started():
    Path("imports.py").write_text(IMPORTS)
    process = started("imports.py", "out")
    wait_for(lambda: Path("helps").exists() and Path("helps").read_text())
    orphans = [command(), psutil.Process(int(Path("helps").read_text()))]
    kill(process)
    wait_for(lambda: not any(map(lives, orphans)), orphan.LOOK + 20)
    process.stdout.close()


def test_while_dvc_lives_its_command_does():
    with started("command.py", "out") as process:
        time.sleep(3 * orphan.LOOK)
        assert lives(command())
        Path("go").touch()
        assert process.wait() == 0
    assert Path("out/second").exists()


def test_what_dvc_did_not_start_outlives_its_starter():
    process = started("command.py", "out", stage="")
    left = command()
    kill(process)
    time.sleep(3 * orphan.LOOK)
    assert lives(left)
    Path("go").touch()
    wait_for(lambda: not lives(left))
    process.stdout.close()
    assert Path("out/second").exists()


def test_a_process_that_was_forked_into_a_stage_follows_nobody(monkeypatch):
    monkeypatch.setenv(orphan.STAGE, "write")  # as tests/_warm.py does: nobody above was asked by DVC
    assert orphan.starter() is None


def test_a_training_keeps_a_checkpoint_and_goes_on_from_it():
    Path("training.py").write_text(TRAINING.replace("{settings}", repr(SETTINGS)))
    process = started("training.py", "kept")
    orphaned = command()
    kill(process)
    wait_for(lambda: not lives(orphaned), orphan.LOOK + 20)
    step = int(re.search(r"stopped by SIGTERM after step (\d+) of 120", process.stdout.read())[1])
    process.stdout.close()
    assert 0 < step < 120 and Path("kept/stopped.json").exists()
    weights = {}
    for kept in ("kept", "unbroken"):
        done = run(model := Tiny(), MadeUp(), Engine.read(SETTINGS), None, Path(kept))
        assert done.resumed_at == (step if kept == "kept" else 0)
        weights[kept] = parallel.full_state(model)
    assert all(torch.equal(value, weights["unbroken"][name]) for name, value in weights["kept"].items())
