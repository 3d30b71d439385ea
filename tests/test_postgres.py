"""MLflow and Prefect on PostgreSQL, which goes and comes back; skipped where PostgreSQL or its driver is absent."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from tasks import track
from tasks.track import RegistryUnreachable

ROOT = Path(__file__).parents[1]
TOOLS = ("initdb", "pg_ctl", "createdb")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)) or find_spec("psycopg2") is None,
    reason="needs PostgreSQL's initdb, pg_ctl and createdb on PATH, and psycopg2",
)
FLOW = """
from prefect import flow
@flow
def hello():
    return "done"
assert hello() == "done"
"""


class Postgres:
    """A cluster of its own on a free port of this host, run by somebody who is not root, as it demands."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder / "cluster", free_port()
        self.user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        self.folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(self.folder, self.user)
        self.call("initdb", "-D", str(self.folder), "-U", "rootstock", "--auth", "trust")

    def call(self, *words: str) -> None:
        # From a folder that everybody may enter, and with no output pipe that the server would keep open.
        switch = {"user": self.user} if os.getuid() == 0 else {}
        subprocess.run(words, check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **switch)

    def start(self) -> None:
        given = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        self.call("pg_ctl", "-D", str(self.folder), "-w", "-o", given, "-l", str(self.folder / "log"), "start")

    def stop(self) -> None:
        self.call("pg_ctl", "-D", str(self.folder), "-w", "-m", "immediate", "stop")

    def database(self, name: str, driver: str) -> str:
        self.call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "rootstock", name)
        return f"{driver}://rootstock@127.0.0.1:{self.port}/{name}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def postgres():
    # Not in pytest's folder, which every start of pytest closes to others: the server is another user's.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)
        made = Postgres(Path(folder))
        made.start()
        yield made
        if (made.folder / "postmaster.pid").exists():
            made.stop()


def test_a_registry_that_goes_away_and_comes_back(postgres, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres.database("mlflow", "postgresql"))
    before = track.identity()
    run = track.log_run("kept", params={"a": 1}, metrics={"auc": 0.5}, tags={"kind": "candidate"})
    postgres.stop()
    with pytest.raises(RegistryUnreachable, match="nothing was registered and the champion is as it was") as gone:
        track.log_run("lost", params={}, metrics={})
    assert "\n" not in str(gone.value)
    postgres.start()
    assert track.identity() == before
    assert track.run_data(run) == ({"a": "1"}, {"auc": 0.5})
    assert track.find_run(kind="candidate") == run


def test_prefect_goes_on_after_its_database_came_back(postgres, tmp_path):
    port = free_port()
    environment = os.environ | {
        "PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.database("prefect", "postgresql+asyncpg"),
    }  # fmt: skip
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen([sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
                                  env=environment, stdout=log, stderr=log)  # fmt: skip
    try:
        healthy(port, server, tmp_path / "log")
        hello = lambda: subprocess.run([sys.executable, "-c", FLOW], env=environment, check=True, cwd=tmp_path,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        hello()
        postgres.stop()
        time.sleep(2)
        postgres.start()
        assert server.poll() is None
        hello()
    finally:
        server.terminate()
        server.wait(30)


def healthy(port: int, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])
