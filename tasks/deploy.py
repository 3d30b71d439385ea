"""`make deploy`: a Prefect server, a worker and the deployments of prefect.yaml on this machine, for one checkout.

    python -m tasks.deploy up       start what is not up yet; safe to repeat, also after a crash or a reboot
    python -m tasks.deploy stop     end worker and server; schedules, runs and reports stay in .prefect/

The server listens on this machine only. All that it keeps, an SQLite file included, lies in .prefect/ of the checkout.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from tasks.command import quiet, run
from tasks.files import locked, write_text

__all__ = ["DeployFailed", "ServerUnreachable", "deploy", "expect_server", "stop"]

FOLDER = Path(".prefect")
POOL = "rootstock"
HOST = "127.0.0.1"
PATIENCE = 120.0  # seconds for the server to answer; a new database alone takes 10 to 20 on a busy machine
GRACE = 30.0  # seconds for the worker to end its flows
SILENCE = timedelta(seconds=90)  # three missed heartbeats: the run is dead, see prefect.yaml


class DeployFailed(ValueError):
    """Server, worker or deployments did not come up."""


class ServerUnreachable(ValueError):
    """PREFECT_API_URL names a server that does not answer."""


def deploy() -> str:
    """Bring up server, pool, deployments, crash automation and worker: the address of the UI.

    Raises:
        DeployFailed: the port is taken, or a part did not come up; shows the end of its log.
    """
    with locked("deploy"):
        FOLDER.mkdir(exist_ok=True)
        environment, address = _environment(), f"http://{HOST}:{_port()}"
        if _alive("server"):
            if (there := (FOLDER / "port").read_text()) != str(_port()):
                raise DeployFailed(f"the server is already up, on port {there}; to move it: make undeploy, then deploy")
            print("server: already up")
        else:
            _refuse_taken_port()
            write_text(FOLDER / "port", str(_port()))
            _start("server", ["server", "start", "--host", HOST, "--port", str(_port())], environment)
        _await_health(f"{address}/api")
        _prefect(environment, "work-pool", "create", POOL, "--type", "process", "--overwrite")
        _prefect(environment, "--no-prompt", "deploy", "--all")
        if _alive("worker"):
            print("worker: already up")
        else:
            subprocess.run([sys.executable, "-m", "tasks.deploy", "settle"], env=environment, check=True)
            _start("worker", ["worker", "start", "--pool", POOL, "--type", "process", "--name", POOL], environment)
    print(f"""
Prefect is up at {address}: deployments, schedules, runs and reports.
  run one now         PREFECT_API_URL={address}/api python -m prefect deployment run watch/watch
  logs                {FOLDER}/server.log, {FOLDER}/worker.log
  stop                make undeploy, or: python -m tasks.deploy stop""")
    return address


def stop() -> None:
    """End worker and server, the worker's running flows first; what is down already is no error."""
    for name in ("worker", "server"):
        if process := _alive(name):
            _end(process)
            print(f"{name}: stopped")
        else:
            print(f"{name}: was not up")
        (FOLDER / f"{name}.pid").unlink(missing_ok=True)


def expect_server() -> bool:
    """Whether a server is set, which must then answer: Prefect itself would try for long before it says so.

    Raises:
        ServerUnreachable: nobody answers at PREFECT_API_URL.
    """
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url and not _healthy(url):
        raise ServerUnreachable(
            f"PREFECT_API_URL is {url}, but no Prefect server answers there. Start it (make deploy), or unset "
            "PREFECT_API_URL to run without a server; `dvc repro` needs none either"
        )
    return bool(url)


def settle() -> None:
    """Bury runs whose process is gone, and write the automation that does so from now on; called while no worker is up.

    The automation sees only what dies while the server lives. After a power cut nobody else would end those runs, and
    each would keep its deployment's only place for good.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    open_states = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=open_states))),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
        )
        living = _living()
        for run in (run for run in runs if str(run.id) not in living):
            client.set_flow_run_state(run.id, Crashed(message="its process is gone"))
            print(f"run {run.name}: its process is gone, now Crashed")
    _automate()


def _living() -> set[str]:
    """Ids of the flow runs that have a process of this user on this host."""
    import psutil

    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID"))
    return found


def _automate() -> None:
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    beat = "prefect.flow-run.heartbeat"
    wanted = Automation(
        name="a run whose process is gone is Crashed",
        trigger=EventTrigger(
            after={beat},
            expect={beat} | {f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {SILENCE.seconds} s")],
    )
    try:
        known = Automation.read(name=wanted.name)
    except ValueError:  # none of this name
        wanted.create()
        return
    if known.trigger.within != SILENCE:  # writing it anew would forget the runs it is counting down for
        known.trigger.within = SILENCE
        known.update()


def _port() -> int:
    return int(os.environ.get("ROOTSTOCK_PORT", "4200"))


def _environment() -> dict[str, str]:
    quiet()
    address = f"http://{HOST}:{_port()}"
    return {
        **os.environ,
        "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath),
        "PREFECT_HOME": str(FOLDER.resolve()),
        "PREFECT_API_URL": f"{address}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        # Any page in the browser could reach a local server whose default is to allow every origin.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address,
        # In memory, as is the default, the place in a deployment's concurrency limit is lost with the server, for good.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }


def _prefect(environment: dict[str, str], *words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "prefect", *words], env=environment, text=True, capture_output=True)
    if done.returncode:
        raise DeployFailed(f"prefect {' '.join(words)} failed: {(done.stdout + done.stderr).strip()[-2000:]}")


def _start(name: str, words: list[str], environment: dict[str, str]) -> None:
    with open(FOLDER / f"{name}.log", "ab") as log:
        command = [sys.executable, "-m", "prefect", *words]
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    import psutil

    write_text(FOLDER / f"{name}.pid", f"{process.pid} {psutil.Process(process.pid).create_time()}\n")
    print(f"{name}: started, process {process.pid}")


def _alive(name: str):
    """The process that the pid file names, or None; after a reboot the number may belong to somebody else."""
    import psutil

    try:
        pid, born = (FOLDER / f"{name}.pid").read_text().split()
        process = psutil.Process(int(pid))
        alive = abs(process.create_time() - float(born)) < 1 and process.status() != psutil.STATUS_ZOMBIE
        return process if alive else None
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None


def _refuse_taken_port() -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, _port()))
        except OSError:
            raise DeployFailed(
                f"port {_port()} of {HOST} is taken by another program; end it, or choose another one: "
                f"ROOTSTOCK_PORT={_port() + 1} make deploy"
            ) from None


def _await_health(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not _healthy(url):
        if not _alive("server") or time.monotonic() > deadline:
            log = (FOLDER / "server.log").read_text(errors="replace")[-2000:]
            raise DeployFailed(f"the Prefect server does not answer at {url}; the end of its log:\n{log}")
        time.sleep(0.5)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _end(process) -> None:
    """SIGTERM, so that the worker ends its flows; then SIGKILL for all that is left of its session."""
    import psutil

    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=GRACE)
    for survivor in left:
        survivor.kill()
    psutil.wait_procs(left, timeout=5)


def main(word: str = "") -> None:
    """python -m tasks.deploy [up | stop]"""
    words = {"": deploy, "up": deploy, "stop": stop, "settle": settle}
    if word not in words:
        raise ValueError(f"tasks.deploy knows no {word!r}; the words are: up, stop")
    words[word]()


if __name__ == "__main__":
    run(main)
