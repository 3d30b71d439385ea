"""repro, stale and alone on a DVC project of a few small stages: real `dvc`, no Prefect server."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tasks import make
from tasks import repro as module
from tasks.command import environment
from tasks.repro import Busy, StageFailed, alone, repro, stale

ROOT = Path(__file__).parents[2]
GRAPH = """
stages:
  look:
    cmd: python -c "open('look.txt', 'w').write('x')"
    always_changed: true
    outs: [look.txt]
  raw:
    cmd: python work.py raw
    deps: [source.txt, look.txt]
    outs: [raw.txt]
  model:
    cmd: python work.py model
    deps: [raw.txt]
    outs: [model.txt]
"""
WORK = """
import json, os, sys, time
name = sys.argv[1]
plan = json.load(open("plan.json")).get(name, {})
open(name + ".pid", "w").write(str(os.getpid()))
open(name + ".txt", "w").write("half")
while "until" in plan and not os.path.exists(plan["until"]):
    time.sleep(0.05)
if "error" in plan:
    print(plan["error"], file=sys.stderr)
    sys.exit(plan["status"])
open(name + ".txt", "w").write(open("source.txt").read())
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setattr(module, "POLL", 0.2)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "source.txt").write_text("one")
    plan(tmp_path)
    return tmp_path


def plan(project: Path, **stages: dict) -> None:
    (project / "plan.json").write_text(json.dumps(stages))


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def gone(pid_file: Path) -> bool:
    try:
        return psutil.Process(int(pid_file.read_text())).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_says_what_ran_and_what_is_stale(project, capfd):
    assert repro("model") == ["look", "raw", "model"]
    assert stale() == []  # although `look` runs every time
    assert repro("model", single=True) == []
    assert "model: nothing to do" in capfd.readouterr().out
    (project / "source.txt").write_text("two")
    assert stale() == ["raw"]
    assert repro("model") == ["look", "raw", "model"]


def test_a_failure_speaks_in_the_words_of_its_stage(project):
    plan(project, raw={"error": "working ...\nerror: 17 rows have no time\n  e.g. row 3", "status": 75})
    with pytest.raises(StageFailed) as failed:
        repro("model")
    assert failed.value.stage == "raw"  # not the one asked for
    assert failed.value.said == "17 rows have no time\n  e.g. row 3"
    assert failed.value.status == make.TEMPORARY == 75
    assert str(failed.value) == "stage raw failed: 17 rows have no time\n  e.g. row 3"


def test_what_dvc_says_of_a_full_disk_is_explained():
    line = "ERROR: failed to reproduce 'model': No possible cache link types for 'model.txt'. See <https://dvc.org>."
    told = str(module._failure("model", 255, ["Running stage 'look':", line]))
    assert re.search(r"No possible cache link types.*\n[\d,.]+ MB are free at /\S+: make room there, then run it", told)
    assert "MB are free" not in str(module._failure("model", 255, [line.replace("No possible", "Many")]))


@pytest.mark.parametrize(("status", "again"), [(75, True), (1, False), (None, False)])
def test_only_a_fault_that_may_pass_is_tried_again(status, again):
    from prefect.states import Failed

    failure = StageFailed("fetch@merrec", "the hub does not answer", status)
    assert make._worth_another_try(None, None, Failed(data=failure)) is again


@pytest.mark.parametrize("path", ["/elsewhere", None])
def test_a_stages_python_is_ours_whatever_path_says(monkeypatch, path):
    monkeypatch.delenv("PATH")
    if path:
        monkeypatch.setenv("PATH", path)
    assert shutil.which("python", path=environment()["PATH"]) == os.path.join(os.path.dirname(sys.executable), "python")
    assert environment()["DVC_NO_ANALYTICS"] == "1"


def test_a_broken_graph_is_a_clear_error(project):
    (project / "dvc.yaml").write_text("stages: {model: {}}")
    with pytest.raises(StageFailed, match=r"dvc\.yaml.*validation failed"):
        stale()


def test_waits_for_a_dvc_that_somebody_typed(project, monkeypatch):
    plan(project, raw={"until": "go"})
    typed = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "raw"], env=environment())
    wait_for((project / "raw.pid").exists)
    said = []

    def wait(line: str, started: float) -> None:
        said.append(line)
        (project / "go").touch()
        time.sleep(0.3)

    monkeypatch.setattr(module, "_wait", wait)
    asked, ask = [], module.dvc
    monkeypatch.setattr(module, "dvc", lambda *words, **more: asked.append(words) or ask(*words, **more))
    assert repro("raw", single=True) == []  # the other one made it
    assert len(asked) == 2  # not while the other was at work, whose stage could then not be recorded
    assert typed.wait() == 0
    assert re.search(rf"raw: DVC is busy with \(PID {typed.pid}\): .* repro raw", said[0])


def test_waiting_ends_some_time(monkeypatch, capfd):
    monkeypatch.setattr(module, "POLL", 0.01)
    module._wait("DVC is busy with (PID 7)", time.monotonic())
    assert "DVC is busy with (PID 7); waiting since 0 s, at most 60 minutes" in capfd.readouterr().out
    with pytest.raises(Busy, match=r"\(PID 7\), for 61 minutes now; end it or wait for it"):
        module._wait("DVC is busy with (PID 7)", time.monotonic() - 61 * 60)


def test_a_killed_flow_leaves_no_orphan_and_the_next_run_completes(project):
    plan(project, raw={"until": "doomsday"})
    code = "from tasks.repro import repro; repro('model')"
    flow = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(lambda: (project / "raw.pid").exists() and (project / "raw.pid").read_text())
    flow.kill()
    flow.wait()
    wait_for(lambda: gone(project / "raw.pid"), module.leash.GRACE + 5)
    plan(project)
    assert "model" in repro("model")
    assert (project / "raw.txt").read_text() == "one"


def test_a_killed_dvc_takes_its_stage_along(project):
    plan(project, raw={"until": "doomsday"})
    failures = []

    def work():
        try:
            repro("raw")
        except StageFailed as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_for(lambda: (project / "raw.pid").exists() and (project / "raw.pid").read_text())
    # The nearest ancestor that is dvc: whether a shell stands between depends on which one SHELL names.
    above = psutil.Process(int((project / "raw.pid").read_text())).parents()
    next(process for process in above if "dvc" in (Path(word).name for word in process.cmdline())).kill()
    thread.join(module.leash.GRACE + 5)
    assert gone(project / "raw.pid")
    assert "signal 9" in str(failures[0])


def test_a_stopped_flow_ends_what_its_threads_wait_for(project):
    plan(project, raw={"until": "doomsday"})
    results = []
    thread = threading.Thread(target=lambda: results.append(module.dvc("repro", "raw")))

    def stop_in_the_middle():
        with alone():
            thread.start()
            wait_for((project / "raw.pid").exists)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    thread.join(module.leash.GRACE + 5)
    assert results[0][0] == 128 + signal.SIGTERM
    assert not module.RUNNING


def test_a_second_flow_waits_its_turn(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "POLL", 0.05)
    order = []

    def second():
        with alone():
            order.append("second")

    with alone():
        with monkeypatch.context() as impatient:
            impatient.setattr(module, "WAIT", -1.0)
            with pytest.raises(Busy, match="another flow is at work on this checkout"):
                second()
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
    assert "another flow is at work on this checkout; waiting" in capfd.readouterr().out


def test_of_a_progress_bar_only_few_lines_are_printed(capfd):
    read, write = os.pipe()
    bars = b"".join(b"\r%d%%" % i for i in range(100))
    os.write(write, b"Running stage 'x':\n" + bars + b"\r\nStage 'y' didn't change, skipping\ndone")
    os.close(write)
    assert list(module._print_lines(read)) == ["Running stage 'x':", "Stage 'y' didn't change, skipping", "done"]
    assert capfd.readouterr().out.splitlines() == ["Running stage 'x':", "0%", "done"]
    os.close(read)
