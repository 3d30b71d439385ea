"""A checkout under a real Prefect server and worker, on a fast clock, and a receiver of its messages."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import yaml
from _checkout import Checkout

ENDED = {"Completed", "Failed", "Crashed", "Cancelled"}
PATIENCE = 420.0  # seconds for a run; the machine may be busy with other tests


class Receiver:
    """A web address that keeps what is posted to it, in `said`, while it is entered."""

    def __enter__(self):
        said = self.said = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Deployed:
    """`python -m tasks.deploy up` in a checkout; look at its runs, and kill its parts."""

    def __init__(self, checkout: Checkout, port: int):
        self.checkout, self.port = checkout, port

    def up(self) -> str:
        return self.checkout("tasks.deploy", "up")

    def stop(self) -> None:
        self.checkout("tasks.deploy", "stop")

    def schedule(self, every: float | None, deploy: bool = True) -> None:
        """Run `watch` every so many seconds in place of each night; None: only when it is asked for."""
        path = self.checkout.folder / "prefect.yaml"
        graph = yaml.safe_load(path.read_text())
        graph["deployments"] = [entry for entry in graph["deployments"] if entry["name"] == "watch"]
        graph["deployments"][0]["schedules"] = [{"interval": every, "active": True}] if every else []
        path.write_text(yaml.safe_dump(graph, sort_keys=False))
        for words in (["prefect", "--no-prompt", "deploy", "--all"], ["tasks.deploy", "arrange"]) if deploy else ():
            subprocess.run([sys.executable, "-m", *words], check=True, cwd=self.checkout.folder,
                           env=self.environment(), stdout=subprocess.DEVNULL)  # fmt: skip

    def process(self, name: str) -> psutil.Process:
        """The server, or the worker."""
        return psutil.Process(int((self.checkout.folder / f".prefect/{name}.pid").read_text().split()[-1]))

    def kill(self, name: str) -> None:
        """SIGKILL a part and everything that it started, as a power cut would."""
        process = self.process(name)
        family = [process, *process.children(recursive=True)]
        for member in family:
            member.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=10)

    def ask(self, path: str, body: dict | None = None):
        """What the server answers, as JSON; asked again, as Prefect's own clients do, where its SQLite was locked."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}", content,
                                         {"Content-Type": "application/json"})  # fmt: skip
        for pause in (1, 2, 4, 8, 16, None):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or pause is None:
                    raise
                time.sleep(pause)

    def environment(self) -> dict[str, str]:
        return self.checkout.environment | {
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_HOME": str(self.checkout.folder / ".prefect"),
        }

    def runs(self) -> list[dict]:
        """The runs of the deployment `watch` in the order in which they were due: name, state, message, seconds ..."""
        watch = self.ask("deployments/name/watch/watch")["id"]
        found, page = [], True
        while page:
            page = self.ask("flow_runs/filter", {"deployments": {"id": {"any_": [watch]}}, "offset": len(found),
                                                 "sort": "EXPECTED_START_TIME_ASC"})  # fmt: skip
            found += page
        return [{"id": run["id"], "name": run["name"], "state": run["state_name"], "tags": run["tags"],
                 "message": run["state"]["message"] or "", "due": run["expected_start_time"],
                 "started": run["start_time"] or "", "seconds": run["total_run_time"]} for run in found]  # fmt: skip

    def missed(self) -> list[dict]:
        """Runs whose time has come and that nobody took."""
        now = datetime.now(UTC)
        return [run for run in self.runs() if run["state"] == "Scheduled" and datetime.fromisoformat(run["due"]) < now]

    def open(self) -> list[str]:
        """What has not ended of the runs that began, and of the flows that they called."""
        begun = {"flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}}
        return [f"{run['name']} is {run['state_name']}" for run in self.ask("flow_runs/filter", begun)]

    def start(self, times: int = 1) -> list[str]:
        """Ask for a run now, or for several at once: their ids."""
        watch = self.ask("deployments/name/watch/watch")["id"]
        return [self.ask(f"deployments/{watch}/create_flow_run", {})["id"] for _ in range(times)]

    def await_run(self, run: str, states: set[str]) -> dict:
        return until(lambda: next((r for r in self.runs() if r["id"] == run and r["state"] in states), None),
                     f"run {run} in {states}")  # fmt: skip


@contextmanager
def deployed(checkout: Checkout, webhook: str = "") -> Iterator[Deployed]:
    """A server and a worker for a checkout; both end with the block, also when it fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    checkout.environment |= {"ROOTSTOCK_PORT": str(port), "ROOTSTOCK_WEBHOOK": webhook,
                             "PREFECT_API_DATABASE_TIMEOUT": "60"}  # fmt: skip
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        checkout.environment.pop(name, None)
    place = Deployed(checkout, port)
    place.schedule(every=None, deploy=False)
    try:
        yield place
    finally:
        place.stop()


def until(ask: Callable[[], object], what: str, patience: float = PATIENCE):
    """What `ask` answers once it is true."""
    deadline = time.monotonic() + patience
    while not (found := ask()):
        assert time.monotonic() < deadline, f"not within {patience:.0f} s: {what}"
        time.sleep(1)
    return found
