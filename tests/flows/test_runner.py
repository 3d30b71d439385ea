"""The runner that the environment names: what is refused, and a flow whose chains are processes of Dask and of Ray."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows import distill, language, recommend, recommenders
from flows._runner import Runner
from tasks.settings import SettingsError

ROOT = Path(__file__).parents[2]
TASKS = ("offer_make", "buy_start", "buy_comp")
STEPS = ("prompt", "gate", "promote")
GRAPH = """
stages:
  promote_backbone: {{cmd: {python} mark.py promote_backbone}}
  prompt: {{foreach: "${{recommend.tasks}}", do: {{cmd: "{python} mark.py prompt ${{key}}"}}}}
  gate: {{foreach: "${{recommend.tasks}}", do: {{cmd: "{python} mark.py gate ${{key}}"}}}}
  promote: {{foreach: "${{recommend.tasks}}", do: {{cmd: "{python} mark.py promote ${{key}}"}}}}
"""
MARK = """
import os, sys, time
from pathlib import Path
import psutil
# tasks/repro.py runs DVC on a leash: who holds it is the process in which the flow put this chain
above = psutil.Process().parents()
held = next(place for place, process in enumerate(above) if any(w.endswith("leash.py") for w in process.cmdline()))
name = "-".join(sys.argv[1:])
Path("marks", name).write_text(f"{above[held + 1].pid} {os.environ['ROOTSTOCK_RUN']}")
if sys.argv[1] == "prompt":
    until = time.monotonic() + 60
    while len(list(Path("marks").glob("prompt-*"))) < 2:  # another chain is tuning at the same time
        if time.monotonic() > until:
            sys.exit("error: alone")
        time.sleep(0.05)
if name in Path("broken").read_text().split():
    sys.exit("error: it broke")
"""


# In a process of its own, with a file: the processes of a cluster import it.
FLOW = """
import os
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness
from flows import _command, recommend

if __name__ == "__main__":  # a cluster's processes import this file
    _command.published = lambda: ("", [])
    heartbeat = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})  # or its thread is joined for a second
    with prefect_test_harness(server_startup_timeout=120), heartbeat:
        state = recommend.recommend(return_state=True)
    try:
        state.result()
    except recommend.TasksFailed as error:
        print("FAILED", os.getpid(), error)
"""


@pytest.fixture(autouse=True)
def _free(monkeypatch):
    for name in ("ROOTSTOCK_RUNNER", "ROOTSTOCK_RUNNER_ADDRESS", "ROOTSTOCK_WORKERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


# ---------------------------------------------------------------- the choice


def test_every_flow_that_fans_out_asks_for_its_runner():
    flows = (recommend.recommend, recommenders.recommenders, distill.distill, language.language)
    assert all(isinstance(flow.task_runner, Runner) for flow in flows)


def test_threads_are_what_is_not_chosen(monkeypatch):
    made = Runner().duplicate()
    assert type(made) is ThreadPoolTaskRunner and made._max_workers == 4
    monkeypatch.setenv("ROOTSTOCK_RUNNER", "threads")
    monkeypatch.setenv("ROOTSTOCK_WORKERS", "7")
    assert Runner().duplicate()._max_workers == 7  # read when a run begins


@pytest.mark.parametrize(("told", "words"), [
    ({"RUNNER": "spark"}, "threads, dask, ray; got 'spark'"),
    ({"RUNNER_ADDRESS": "tcp://a:1"}, "names none; set it to dask or ray"),
    ({"WORKERS": "0"}, ">= 1, got '0'"), ({"WORKERS": "many"}, ">= 1, got 'many'"),
])  # fmt: skip
def test_what_cannot_be_chosen(told, words, monkeypatch, server):
    for name, value in told.items():
        monkeypatch.setenv(f"ROOTSTOCK_{name}", value)
    with pytest.raises(SettingsError, match=words):
        Runner().duplicate()


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_package_that_is_absent_is_named(name, monkeypatch, server):
    monkeypatch.setenv("ROOTSTOCK_RUNNER", name)
    monkeypatch.setattr("flows._runner.find_spec", lambda package: None)
    with pytest.raises(SettingsError, match=f"needs the package prefect-{name}, .*: pip install -c constraints.txt"):
        Runner().duplicate()


def test_a_cluster_needs_a_server_that_all_reach(monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_RUNNER", "dask")
    monkeypatch.setattr("flows._runner.find_spec", lambda package: package)
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(SettingsError, match="set PREFECT_API_URL"):
        Runner().duplicate()


def test_addresses_and_workers_reach_dask(monkeypatch, server):
    monkeypatch.setenv("ROOTSTOCK_RUNNER", "dask")
    monkeypatch.setenv("ROOTSTOCK_WORKERS", "3")
    local = Runner().duplicate().cluster_kwargs
    assert (local["n_workers"], local["host"], local["dashboard_address"]) == (3, "127.0.0.1", None)
    monkeypatch.setenv("ROOTSTOCK_RUNNER_ADDRESS", "tcp://scheduler:8786")
    assert Runner().duplicate().address == "tcp://scheduler:8786"


# ---------------------------------------------------------------- a run


@pytest.fixture
def checkout(made, tmp_path, monkeypatch):
    """A DVC repository whose stages write down in which process of the flow they ran."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    (tmp_path / "dvc.yaml").write_text("vars: [params.yaml]\n" + GRAPH.format(python=sys.executable))
    (tmp_path / "mark.py").write_text(MARK)
    (tmp_path / "broken").write_text("gate-buy_start")
    (tmp_path / "marks").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(f"prefect_{name}") is None, reason=f"no prefect-{name} here"))
    for name in ("dask", "ray")
])  # fmt: skip
def test_chains_are_processes_of_a_cluster(name, checkout):
    (checkout / "run_flow.py").write_text(FLOW)
    environment = os.environ | {"ROOTSTOCK_RUNNER": name, "ROOTSTOCK_WORKERS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "run_flow.py"], cwd=checkout, env=environment, text=True, check=False,
                          capture_output=True)  # fmt: skip
    found = re.search(r"(?s)FAILED (\d+) 1 of 3 tasks failed.*buy_start.*stage gate@buy_start failed: it broke",
                      done.stdout)  # fmt: skip
    assert found, done.stdout + done.stderr
    flow = int(found[1])
    told = {file.name: file.read_text().split() for file in (checkout / "marks").iterdir()}
    marks = {name: int(process) for name, (process, _) in told.items()}
    assert len({run for _, run in told.values()}) == 1  # the journal knows all of them as one run
    expected = {f"{step}-{task}" for step in STEPS for task in TASKS} - {"promote-buy_start"}
    assert set(marks) == expected | {"promote_backbone"}
    chains = [{marks[f"{step}-{task}"] for step in STEPS if f"{step}-{task}" in marks} for task in TASKS]
    assert [len(each) for each in chains] == [1, 1, 1]  # a chain stays where it began
    assert len(set.union(*chains)) >= 2 and flow not in set.union(*chains)
    assert marks["promote_backbone"] == flow  # what is shared runs in the flow
