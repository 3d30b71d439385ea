"""Deployment: prefect.yaml fits the flows, dead servers and taken ports are named, stale pid files mean nothing."""

import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tasks import deploy as module
from tasks import process
from tasks.deploy import DeployFailed, ServerUnreachable, expect_server, stop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module.FOLDER.mkdir()
    return tmp_path


@pytest.fixture
def taken_port(monkeypatch):
    with socket.socket() as somebody:
        somebody.bind((module.HOST, 0))
        somebody.listen()
        port = somebody.getsockname()[1]
        monkeypatch.setenv("ROOTSTOCK_PORT", str(port))
        yield port


def deployments() -> dict[str, dict]:
    return {entry["name"]: entry for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


def test_every_deployment_is_a_flow():
    from prefect import Flow

    assert set(deployments()) == {"data", "distill", "language", "recommend", "recommenders", "watch"}
    for name, entry in deployments().items():
        file, flow = entry["entrypoint"].split(":")
        assert isinstance(getattr(import_module(f"flows.{Path(file).stem}"), flow), Flow), name


def test_one_run_at_a_time_and_a_backlog_is_caught_up_once():
    for entry in deployments().values():
        assert entry["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert [name for name, entry in deployments().items() if entry["schedules"]] == ["watch"]


def test_a_dead_run_is_known_after_three_missed_heartbeats():
    for entry in deployments().values():
        beat = int(entry["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
        assert module.SILENCE.total_seconds() == 3 * beat
        assert entry["work_pool"]["name"] == module.POOL


def test_a_taken_port_is_a_clear_error(checkout, taken_port):
    with pytest.raises(DeployFailed, match=f"port {taken_port} of 127.0.0.1 is taken by another program"):
        module.deploy()
    assert not (module.FOLDER / "server.pid").exists()


def test_a_server_on_another_port_is_named(checkout, monkeypatch):
    monkeypatch.setattr(module, "_alive", lambda name: True)
    monkeypatch.setenv("ROOTSTOCK_PORT", "4207")
    (module.FOLDER / "port").write_text("4200")
    with pytest.raises(DeployFailed, match="already up, on port 4200"):
        module.deploy()


def test_a_dead_server_is_named_at_once(monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    started = time.monotonic()
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(ServerUnreachable, match="http://127.0.0.1:9/api, but no Prefect server answers"),
    ):
        expect_server()
    assert time.monotonic() - started < 8
    with temporary_settings({PREFECT_API_URL: None}):
        assert expect_server() is False


def test_a_port_that_answers_something_else_is_no_server(taken_port):
    assert not module._healthy(f"http://127.0.0.1:{taken_port + 1 if taken_port < 65535 else 1}/api")
    assert not module._healthy("no url")


@pytest.mark.parametrize("text", ["", "nonsense", "HOST BOOT 1 999999999", "HOST BOOT 1 OURS", "HOST other START OURS"])
def test_a_stale_pid_file_is_nobody(checkout, text, capsys):
    # The last two: this number belongs to another program by now, since a reboot or not.
    for name, value in zip(("HOST", "BOOT", "START", "OURS"), process.mark().split(), strict=True):
        text = text.replace(name, value)
    (module.FOLDER / "server.pid").write_text(text)
    assert module._alive("server") is None
    stop()
    assert "server: was not up" in capsys.readouterr().out
    assert not (module.FOLDER / "server.pid").exists()


def test_stop_ends_the_process_and_its_children(checkout, monkeypatch, capsys):
    import psutil

    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    server = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    born = psutil.Process(server.pid)
    while not born.children():
        time.sleep(0.05)
    (child,) = born.children()
    monkeypatch.setattr(module, "GRACE", 0.5)
    (module.FOLDER / "worker.pid").write_text(process.mark(server.pid))
    assert module._alive("worker").pid == server.pid
    stop()
    server.wait(5)
    assert not child.is_running()
    assert "worker: stopped" in capsys.readouterr().out


def test_a_webhook_is_an_address_and_is_never_shown(checkout, monkeypatch):
    monkeypatch.setenv(module.WEBHOOK, "hooks.example.org/T0/secret")
    with pytest.raises(DeployFailed, match="must begin with http") as refused:
        module.deploy()
    assert "secret" not in str(refused.value)
    assert not (module.FOLDER / "server.pid").exists()
    monkeypatch.setenv(module.WEBHOOK, "")
    assert module.webhook() == ""
    monkeypatch.delenv(module.WEBHOOK)
    assert module.webhook() is None


def test_an_unknown_word_is_refused():
    with pytest.raises(ValueError, match="the words are: up, stop"):
        module.main("down")
