"""The MLflow pages: this machine only, or behind a password that stands nowhere."""

import base64
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tasks import hosts, ui
from tasks.hosts import HostRefused, this_machine

ROOT = Path(__file__).parents[2]
CANARY = "canary-7f3a-swordfish"
ELSEWHERE = ("0.0.0.0", "::", "10.1.2.3", "box.example.org")
PAGES = ("/", "/api/2.0/mlflow/experiments/search?max_results=1", "/ajax-api/2.0/mlflow/registered-models/search",
         "/graphql", "/api/2.0/mlflow-artifacts/artifacts", "/get-artifact?path=x&run_uuid=y", "/v1/traces",
         "/api/2.0/mlflow/users/get?username=admin", "/ajax-api/3.0/mlflow/assistant/config", "/metrics")  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ROOTSTOCK_HOST", "PORT", "MLFLOW_TRACKING_URI", ui.PASSWORD, ui.USER, *ui.OPENINGS):
        monkeypatch.delenv(name, raising=False)


def test_this_machine_needs_no_password():
    words, environment = ui.server()
    assert words[words.index("--host") + 1] == "127.0.0.1" and "--app-name" not in words
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "sqlite:///mlruns/mlflow.db"
    names = environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"localhost:5000", "127.0.0.1:5000", "[::1]:5000"} <= set(names) and "*" not in "".join(names)


@pytest.mark.parametrize("address", ELSEWHERE)
def test_another_host_without_a_password_is_refused(address, monkeypatch, tmp_path):
    monkeypatch.setenv("ROOTSTOCK_HOST", address)
    assert not this_machine(address)
    with pytest.raises(HostRefused, match=f"would listen on {address}.* Set MLFLOW_AUTH_ADMIN_PASSWORD"):
        ui.server()
    monkeypatch.setenv(ui.PASSWORD, "short")
    with pytest.raises(HostRefused, match="has 5 characters; give it 12 or more"):
        ui.server()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ELSEWHERE)
def test_the_password_is_on_no_command_line_and_in_no_file(address, monkeypatch, tmp_path):
    monkeypatch.setenv("ROOTSTOCK_HOST", address)
    monkeypatch.setenv(ui.PASSWORD, CANARY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:{CANARY}@db.example.org/mlflow")
    words, environment = ui.server()
    assert words[-2:] == ["--app-name", "basic-auth"] and CANARY not in " ".join(words)
    assert len(environment["MLFLOW_FLASK_SERVER_SECRET_KEY"]) == 64
    assert all(CANARY not in file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    named = environment.get("MLFLOW_SERVER_ALLOWED_HOSTS", "")
    assert (address in named.split(",")) == (address not in ("0.0.0.0", "::"))


@pytest.mark.parametrize(("name", "value"), [("MLFLOW_SERVER_ALLOWED_HOSTS", "box.example.org, *"),
                                             ("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "*"),
                                             ("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")])  # fmt: skip
def test_checks_of_the_browser_stay_on(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(HostRefused, match=f"{name}=.* switches a check"):
        ui.server()


def test_what_else_is_refused(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    with pytest.raises(HostRefused, match="names a server already"):
        ui.server()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("PORT", "80x")
    with pytest.raises(HostRefused, match="PORT is '80x'"):
        ui.server()
    monkeypatch.setenv("PORT", "5099")
    monkeypatch.setenv(ui.PASSWORD, CANARY)
    monkeypatch.setattr(ui, "find_spec", lambda name: None)
    with pytest.raises(HostRefused, match="needs Flask-WTF"):
        ui.server()


def test_another_password_than_the_first_is_refused(monkeypatch, tmp_path):
    """MLflow would go on with the first one, and a person would think that it was changed."""
    import sqlite3

    from werkzeug.security import generate_password_hash

    (tmp_path / "mlruns").mkdir()
    monkeypatch.setenv(ui.PASSWORD, CANARY)
    connection = sqlite3.connect(tmp_path / "mlruns/auth.db")
    ui.server()  # an empty file: no user yet
    connection.execute("create table users (username text, password_hash text)")
    connection.execute("insert into users values ('admin', ?)", (generate_password_hash(CANARY),))
    connection.commit()
    ui.server()
    monkeypatch.setenv(ui.PASSWORD, "another-password")
    with pytest.raises(HostRefused, match="knows another password for admin") as refused:
        ui.server()
    assert "another-password" not in str(refused.value)


def test_the_command_says_so_in_one_line():
    done = subprocess.run([sys.executable, "-m", "tasks.ui"], text=True, capture_output=True, check=False,
                          env=os.environ | {"ROOTSTOCK_HOST": "0.0.0.0", "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: the MLflow server would listen on 0.0.0.0")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def status(url: str, password: str | None = None, **headers: str) -> int:
    request = urllib.request.Request(url, headers=headers)
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_real_server_asks_for_the_password(tmp_path):
    """Every page but the health check and the server's version; a foreign Host header gets nothing even with it."""
    address, log = f"http://127.0.0.1:{(port := free_port())}", tmp_path / "log"
    environment = os.environ | {"PORT": str(port), ui.PASSWORD: CANARY, "PYTHONPATH": str(ROOT)}
    with open(log, "wb") as said:
        server = subprocess.Popen([sys.executable, "-m", "tasks.ui"], env=environment, stdout=said, stderr=said)
        try:
            _await(f"{address}/health", server, log)
            open_pages = [page for page in PAGES if status(address + page) not in (401, 403, 404)]
            search = f"{address}/api/2.0/mlflow/experiments/search?max_results=1"
            found = [
                status(search, CANARY),
                status(search, "wrong-password"),
                status(search, CANARY, Host="evil.example"),
            ]
            running = Path(f"/proc/{server.pid}/cmdline").read_text()
        finally:
            server.terminate()
            server.wait(30)
    assert open_pages == []
    assert found == [200, 401, 403]
    assert CANARY not in running and "basic-auth" in running
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert tmp_path / "mlruns/auth.db" in files
    assert not [file for file in files if CANARY.encode() in file.read_bytes()]  # the log and the database of users too


def _await(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            if status(url) == 200:
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)


def test_who_reaches_an_address(monkeypatch):
    assert [this_machine(each) for each in ("127.0.0.2", "[::1]", "localhost", "")] == [True, True, True, False]
    monkeypatch.setenv("ROOTSTOCK_HOST", "")
    assert hosts.host() == "127.0.0.1"
    assert hosts.port(5001) == 5001
