"""`make deploy`: a Prefect server, a worker and the deployments of prefect.yaml on this machine, for one checkout.

    python -m tasks.deploy up       start what is not up yet; safe to repeat, also after a crash or a reboot
    python -m tasks.deploy stop     end worker and server; schedules, runs and reports stay in .prefect/

The server listens on this machine; with ROOTSTOCK_HOST on a network, where PREFECT_SERVER_API_AUTH_STRING=user:password
must be set, and clients set PREFECT_API_AUTH_STRING. All that it keeps, an SQLite file included, lies in .prefect/.
ROOTSTOCK_WEBHOOK: an address that is told of every run that failed or crashed; set but empty, nobody is told any more.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from tasks import process as marks
from tasks.command import environment, run
from tasks.files import locked, read_json, write_json, write_text
from tasks.hosts import host, password, this_machine

__all__ = ["DeployFailed", "ServerUnreachable", "deploy", "expect_server", "stop"]

FOLDER = Path(".prefect")
POOL = "rootstock"
HOST = "127.0.0.1"
AUTH = "PREFECT_SERVER_API_AUTH_STRING"  # user:password; the server asks for it, our own clients are given it
PATIENCE = 120.0  # seconds for the server to answer; a new database alone takes 10 to 20 on a busy machine
GRACE = 30.0  # seconds for the worker to end its flows
SILENCE = timedelta(seconds=90)  # three missed heartbeats: the run is dead, see prefect.yaml
ONCE = timedelta(minutes=1)  # a run that failed is told once in this time
MISSED = FOLDER / "missed.json"  # deployments whose runs were missed while nobody was up, until one caught up on them
PAGE = 200  # the most runs that Prefect gives in one answer
WEBHOOK = "ROOTSTOCK_WEBHOOK"
BLOCK = "rootstock"  # Prefect's name for the address, which it keeps encrypted in its database
NOTIFY = "a run that failed or crashed is told to the webhook"
LATE = "missed: nobody was up; one run catches up"
GONE = "its process is gone"
BURIED = "rootstock.run.buried"  # what `settle` says of a run that died
# `text` is what Slack, Mattermost and their like show; the other fields are for programs.
PAYLOAD = """{
  "text": {{ (flow.name ~ " " ~ flow_run.state.name ~ ": " ~ (flow_run.state.message or "") ~ " " ~ (flow_run|ui_url)) | tojson }},
  "deployment": {{ deployment.name | tojson }},
  "run": {{ flow_run.name | tojson }},
  "state": {{ flow_run.state.name | tojson }},
  "message": {{ (flow_run.state.message or "") | tojson }},
  "url": {{ (flow_run|ui_url) | tojson }}
}"""  # noqa: E501


class DeployFailed(ValueError):
    """Server, worker or deployments did not come up."""


class ServerUnreachable(ValueError):
    """PREFECT_API_URL names a server that does not answer."""


def deploy() -> str:
    """Bring up server, pool, deployments, automations and worker: the address of the UI.

    Runs that were missed while no worker was up are caught up once, however many they were.

    Raises:
        DeployFailed: the port is taken, the webhook is no address, or a part did not come up; shows the end of its log.
    """
    webhook()
    with locked("deploy"):
        FOLDER.mkdir(exist_ok=True)
        environment, address = _environment(), f"http://{_reached()}:{_port()}"
        if _alive("server"):
            if (there := (FOLDER / "port").read_text()) != str(_port()):
                raise DeployFailed(f"the server is already up, on port {there}; to move it: make undeploy, then deploy")
            print("server: already up")
        else:
            _refuse_taken_port()
            write_text(FOLDER / "port", str(_port()))
            _start("server", ["server", "start", "--host", _listens(), "--port", str(_port())], environment)
        _await_health(f"{address}/api")
        idle = not _alive("worker")
        if idle:
            _ourselves("look", environment)
        _prefect(environment, "work-pool", "create", POOL, "--type", "process", "--overwrite")
        _prefect(environment, "--no-prompt", "deploy", "--all")
        _ourselves("arrange", environment)
        if idle:
            _ourselves("settle", environment)
            _start("worker", ["worker", "start", "--pool", POOL, "--type", "process", "--name", POOL], environment)
        else:
            print("worker: already up")
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


def webhook() -> str | None:
    """The address to tell of failures; "" to tell nobody any more, None to leave that as it is.

    Raises:
        DeployFailed: ROOTSTOCK_WEBHOOK is no address; it isn't shown, because such addresses are secrets.
    """
    address = os.environ.get(WEBHOOK)
    if address and not address.startswith(("http://", "https://")):
        raise DeployFailed(f"{WEBHOOK} must begin with http:// or https://; its {len(address)} characters do not")
    return address


def look() -> None:
    """Cancel the runs whose time came while no worker was up, and write down whose they were.

    Before anything else is done: with a schedule that prefect.yaml no longer has, its runs would be forgotten.
    """
    from prefect.states import Cancelled

    with _client() as client:
        late = _late(client)
        known = read_json(MISSED) if MISSED.exists() else []
        write_json(MISSED, sorted({*known, *(str(run.deployment_id) for run in late)}))
        for run in late:
            client.set_flow_run_state(run.id, Cancelled(message=LATE), force=True)


def _client():
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def _late(client) -> list:
    """Runs of a schedule whose time has come and that nobody took."""
    from prefect.client.schemas.filters import FlowRunFilterExpectedStartTime
    from prefect.client.schemas.objects import StateType

    due = FlowRunFilterExpectedStartTime(before_=datetime.now(UTC))
    found = _runs(client, [StateType.SCHEDULED], expected_start_time=due)
    return [run for run in found if run.auto_scheduled and run.deployment_id]


def _runs(client, states: list, pool: str | None = POOL, **also) -> list:
    """All runs of a pool that are in one of these states; the flows that a flow calls have none."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )

    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)), **also)
    within, found = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])) if pool else None, []
    while page := client.read_flow_runs(flow_run_filter=wanted, work_pool_filter=within, limit=PAGE, offset=len(found)):
        found += page
    return found


def settle() -> None:
    """Bury runs whose process is gone, and start one in place of those that were missed; called while no worker is up.

    The automation sees only what dies while the server lives. After a power cut nobody else would end those runs, and
    each would keep its deployment's only place for good.
    """
    from prefect.exceptions import ObjectNotFound

    with _client() as client:
        living = _living()
        for run in _runs(client, _unfinished()):
            if str(run.id) not in living and _bury(client, run):
                _tell(run)
                print(f"run {run.name}: {GONE}, now Crashed")
        for missed in read_json(MISSED) if MISSED.exists() else []:
            with suppress(ObjectNotFound):  # that deployment is no more
                run = client.create_flow_run_from_deployment(missed, tags=["catch-up"])
                print(f"run {run.name}: catches up on what was missed while nobody was up")
    MISSED.unlink(missing_ok=True)


def _unfinished() -> list:
    from prefect.client.schemas.objects import StateType

    return [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def _bury(client, run) -> bool:
    """Call a run Crashed, and the flows that it called; False when the automation was quicker."""
    from prefect.client.schemas.filters import FlowRunFilterParentFlowRunId
    from prefect.client.schemas.responses import SetStateStatus
    from prefect.states import Crashed

    done = client.set_flow_run_state(run.id, Crashed(message=GONE))
    parent = FlowRunFilterParentFlowRunId(any_=[run.id])
    for called in _runs(client, _unfinished(), pool=None, parent_flow_run_id=parent):
        _bury(client, called)
    return done.status == SetStateStatus.ACCEPT


def _tell(run) -> None:
    """Say that a run was buried.

    Prefect's own event of that would wait a quarter of an hour for the one before it, which died with the server.
    """
    from prefect.events import emit_event

    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.state-message": "of a run"}
    related = {"flow": run.flow_id, "deployment": run.deployment_id}
    emit_event(
        BURIED,
        resource | {"prefect.resource.name": run.name},
        related=[
            {"prefect.resource.id": f"prefect.{kind}.{number}", "prefect.resource.role": kind}
            for kind, number in related.items()
            if number
        ],
    )


def _living() -> set[str]:
    """Ids of the flow runs that have a process of this user on this host."""
    import psutil

    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID"))
    return found


def arrange() -> None:
    """Take away schedules that prefect.yaml no longer has, and write the automations: `prefect deploy` does neither."""
    from prefect.exceptions import ObjectNotFound

    with _client() as client:
        for entry in yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]:
            with suppress(ObjectNotFound):
                there = client.read_deployment_by_name(f"{entry['entrypoint'].split(':')[1]}/{entry['name']}")
                for schedule in there.schedules if not entry.get("schedules") else []:
                    client.delete_deployment_schedule(there.id, schedule.id)
    _automate()


def _automate() -> None:
    """A silent run is Crashed, and the webhook is told of every failure."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    beat = "prefect.flow-run.heartbeat"
    _written(
        "a run whose process is gone is Crashed",
        EventTrigger(
            after={beat},
            expect={beat} | {f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {SILENCE.seconds} s"),
    )
    address = webhook()
    if address is not None:
        _notify(address)


def _notify(address: str) -> None:
    from prefect.automations import Automation
    from prefect.blocks.webhook import Webhook
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    if not address:
        with suppress(ValueError):  # none of this name
            Automation.read(name=NOTIFY).delete()
        with suppress(ValueError):
            Webhook.delete(f"webhook/{BLOCK}")
        return
    block = Webhook(url=address, headers={"Content-Type": "application/json"})
    _written(
        NOTIFY,
        EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", BURIED},
            # What `settle` buries is told by its own event.
            match=ResourceSpecification(
                {"prefect.resource.id": "prefect.flow-run.*", "prefect.state-message": f"!{GONE}"}
            ),
            # The run of a deployment: the flows that it calls fail with it, and one message is enough.
            match_related=ResourceSpecification({"prefect.resource.role": "deployment"}),
            # Where SQLite was locked the server reads an event again, and would tell of it again.
            for_each={"prefect.resource.id"},
            within=ONCE,
            posture=Posture.Reactive,
            threshold=1,
        ),
        CallWebhook(block_document_id=block.save(BLOCK, overwrite=True), payload=PAYLOAD),
    )


def _written(name: str, trigger, action) -> None:
    """Write an automation, unless it is there as it should be: written anew, it would forget what it counts down."""
    from prefect.automations import Automation

    wanted = Automation(name=name, trigger=trigger, actions=[action])
    try:
        known = Automation.read(name=name)
    except ValueError:  # none of this name
        wanted.create()
        return
    same = [(each.expect, each.match, each.for_each, each.within) for each in (known.trigger, trigger)]
    if same[0] != same[1] or known.actions != [action]:
        known.trigger, known.actions = trigger, [action]
        known.update()


def _port() -> int:
    return int(os.environ.get("ROOTSTOCK_PORT", "4200"))


def _listens() -> str:
    """ROOTSTOCK_HOST, which is this machine, or stands behind a password."""
    password(AUTH, host(), "the Prefect server")
    return host()


def _reached() -> str:
    """Where programs of this machine reach the server."""
    return HOST if this_machine(_listens()) or host() in ("0.0.0.0", "::") else host()


def _environment() -> dict[str, str]:
    address = f"http://{_reached()}:{_port()}"
    return {
        **environment(),
        **({"PREFECT_API_AUTH_STRING": os.environ[AUTH]} if os.environ.get(AUTH) else {}),
        "PREFECT_HOME": str(FOLDER.resolve()),
        "PREFECT_API_URL": f"{address}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        # Any page in the browser could reach a local server whose default is to allow every origin.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address,
        # In memory, as is the default, the place in a deployment's concurrency limit is lost with the server, for good.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # It would cancel what was missed before `look` sees it, where a dead run still has the deployment's only place.
        "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    }


def _ourselves(word: str, environment: dict[str, str]) -> None:
    """Run one of our own words against the server: Prefect reads its address once, when it is imported."""
    done = subprocess.run([sys.executable, "-m", "tasks.deploy", word], env=environment, text=True, capture_output=True)
    if done.returncode:
        raise DeployFailed(f"tasks.deploy {word} failed: {(done.stdout + done.stderr).strip()[-2000:]}")
    print(done.stdout, end="")


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
    write_text(FOLDER / f"{name}.pid", f"{marks.mark(process.pid)}\n")
    print(f"{name}: started, process {process.pid}")


def _alive(name: str):
    """The process that the pid file names, or None; after a reboot the number may belong to somebody else."""
    import psutil

    with suppress(FileNotFoundError, psutil.NoSuchProcess):
        marked = (FOLDER / f"{name}.pid").read_text()
        return psutil.Process(int(marked.split()[-1])) if marks.alive(marked) else None
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
    words = {"": deploy, "up": deploy, "stop": stop, "look": look, "settle": settle, "arrange": arrange}
    if word not in words:
        raise ValueError(f"tasks.deploy knows no {word!r}; the words are: up, stop")
    words[word]()


if __name__ == "__main__":
    run(main)
