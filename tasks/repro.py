"""Bring a DVC stage up to date, for one run at a time: DVC decides whether there is anything to do."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tasks import leash
from tasks.command import environment, run
from tasks.files import FULL, locked, room
from tasks.mend import mend
from tasks.plain_words import refuse_others
from tasks.process import mark

__all__ = ["Busy", "StageFailed", "alone", "dvc", "repro", "stale", "why_stale"]

WAIT = float(os.environ.get("ROOTSTOCK_WAIT", 3600))  # seconds: how long to stand in line behind another run
POLL = 5.0  # seconds between two looks at whether it has ended
PROGRESS = 10.0  # seconds between two lines of one progress bar
CHATTER = (  # what DVC says after each stage, of no use in a flow's log
    "Data and pipelines are up to date",
    "Stage '",
    "To enable auto staging",
    "To track the changes with git",
    "Updating lock file",
    "Use `dvc push`",
    "dvc config core.autostage",
    "git add ",
)
RUNNING: set[subprocess.Popen] = set()  # what `alone` ends when the flow is stopped


class StageFailed(ValueError):
    """A stage did not succeed; the message is what the stage itself said.

    Args:
        stage: the stage that broke, which may lie upstream of the one asked for.
        said: its own last lines.
        status: exit status of its command; None when DVC did not come to run it.
    """

    def __init__(self, stage: str, said: str, status: int | None):
        super().__init__(stage, said, status)
        self.stage, self.said, self.status = stage, said, status

    def __str__(self) -> str:
        return f"stage {self.stage} failed: {self.said}"


class Busy(ValueError):
    """Another run holds this checkout for longer than we wait."""


@contextmanager
def alone() -> Iterator[None]:
    """Hold this checkout for one flow run: two flows at once would each find DVC busy at another stage, and both fail.

    A second flow waits its turn. When the flow is stopped (SIGTERM, cancelled, Ctrl-C) its stages end with it;
    otherwise the threads that wait for them would keep a stopped flow alive until its training ends.

    Raises:
        Busy: after ROOTSTOCK_WAIT seconds, default an hour.
    """
    line, started = "another flow is at work on this checkout", time.monotonic()
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked("flow", wait=False))
                break
            except BlockingIOError:
                _wait(line, started)
        try:
            yield
        except BaseException:
            for process in list(RUNNING):
                process.stdin.close()
            raise


def repro(stage: str, single: bool = False, run: str = "") -> list[str]:
    """Bring `stage` up to date, with everything it needs.

    Args:
        single: this stage only, for work side by side.
        run: what tasks/journal.py calls the run that this is a part of; without it, this call is one.

    Returns:
        The stages that really ran, in order; empty when everything was fresh.

    Raises:
        StageFailed: a command or DVC itself failed.
        Busy: a `dvc repro` that somebody typed did not end in time.
    """
    started = time.monotonic()
    while True:
        status, lines = dvc("repro", *(["--single-item"] if single else []), stage, run=run)
        ran = [found[1] for line in lines if (found := re.search(r"Running stage '(.+)':", line))]
        ran += ["data.dvc"] if any(line.startswith("Importing '") for line in lines) else []
        if status == 0:
            print(f"{stage}: ran {', '.join(ran)}" if ran else f"{stage}: nothing to do")
            return ran
        if not any("is busy, it is being blocked by" in line for line in lines):
            raise _failure(stage, status, lines)
        blocker = next((line.strip(" -") for line in lines if line.strip().startswith("(PID")), "an unknown process")
        line = f"{stage}: DVC is busy with {blocker}"
        _wait(line, started)
        while _at_work(blocker):
            _wait(line, started)


def stale() -> list[str]:
    """The stages that DVC would run now; see `why_stale`."""
    return list(why_stale())


def why_stale() -> dict[str, list]:
    """The stages that DVC would run now, as far as it can know before the first of them has run, and its reasons.

    Stages that run each time by design count only when something else about them changed.

    Raises:
        StageFailed: DVC cannot read the graph.
        Busy: see `repro`.
    """
    started = time.monotonic()
    while True:
        _mend()
        done = subprocess.run([*_DVC, "status", "--json"], env=environment(), text=True, capture_output=True)
        if done.returncode == 0:
            status = json.loads(done.stdout or "{}")
            return {stage: why for stage, why in status.items() if why != ["always changed"]}
        if "is busy" not in done.stderr:
            raise _failure("status", done.returncode, done.stderr.splitlines())
        _wait("dvc status: DVC is busy", started)


_DVC = [sys.executable, "-m", "dvc", "--wait-for-lock"]


def dvc(*words: str, run: str = "") -> tuple[int, list[str]]:
    """Run DVC on a leash and print its lines as they come: exit status and all lines but those of progress bars.

    Args:
        run: see `repro`.
    """
    _mend()
    refuse_others()
    command = [sys.executable, "-I", "-S", leash.__file__, *_DVC, *words]
    process = subprocess.Popen(
        command,
        env=environment() | {"PYTHONUNBUFFERED": "1", "ROOTSTOCK_RUN": run},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the flow, and the flow ends DVC
    )
    RUNNING.add(process)
    try:
        lines = list(_print_lines(process.stdout.fileno()))
        return process.wait(), lines
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
        RUNNING.discard(process)


def _mend() -> None:
    for line in mend():
        print(line)


def _print_lines(file: int) -> Iterator[str]:
    """Print and yield whole lines; a progress bar rewrites its line with carriage returns, of which few are printed."""
    rest, shown = "", float("-inf")
    while chunk := os.read(file, 65536):
        *parts, rest = re.split(r"(?<=[\r\n])", rest + chunk.decode(errors="replace"))
        for part in filter(str.strip, parts):
            if part.endswith("\n"):
                if not part.lstrip().startswith(CHATTER):
                    print(part.rstrip())
                yield part.rstrip()
            elif time.monotonic() - shown > PROGRESS:
                print(part.strip())
                shown = time.monotonic()
    if rest.strip():
        print(rest.rstrip())
        yield rest.rstrip()


def _failure(stage: str, status: int, lines: list[str]) -> StageFailed:
    if 128 < status < 192:
        return StageFailed(stage, f"it was ended by signal {status - 128} before it was done; run it again", None)
    broken = re.search(r"failed to reproduce '(.+?)'.*?(?:exited with (-?\d+))?$", "\n".join(lines), re.MULTILINE)
    stage = broken[1] if broken else stage
    code = int(broken[2]) if broken and broken[2] else None
    said = [line for line in lines if line and not line.startswith(("Running stage", "Stage '", "> ", "Verifying"))]
    first = max((i for i, line in enumerate(said) if line.startswith("error: ")), default=None)
    if first is not None:
        ours = [line for line in said[first:] if not line.startswith("ERROR: failed to reproduce")]
        return StageFailed(stage, "\n".join(ours).removeprefix("error: "), code)
    told = "\n".join(said[-15:]) or f"dvc ended with status {status}"
    # Of a full disk DVC says that no kind of link is possible, and leaves half of what it was writing.
    full = "No possible cache link types" in told or FULL.search(told)
    return StageFailed(stage, f"{told}\n{room('.')}" if full else told, code)


def _at_work(blocker: str) -> bool:
    """Whether the process that DVC named is still there.

    DVC itself is not asked again before: it would hold its lock meanwhile, and a `dvc repro` that finds the lock held
    when its stage ends gives up after 3 s, with hours of training unrecorded.
    """
    named = re.search(r"\(PID (\d+)\)", blocker)
    try:
        return bool(named and mark(int(named[1])))
    except ProcessLookupError:
        return False


def _wait(line: str, started: float) -> None:
    waited = time.monotonic() - started
    if waited > WAIT:
        raise Busy(f"{line}, for {waited / 60:.0f} minutes now; end it or wait for it, then run this again")
    if waited % 60 < POLL:  # one line a minute is enough
        print(f"{line}; waiting since {waited:.0f} s, at most {WAIT / 60:.0f} minutes")
    time.sleep(POLL)


if __name__ == "__main__":
    run(lambda stage: repro(stage))
