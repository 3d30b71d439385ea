"""A stage's command ends with the DVC that runs it: what a killed `dvc` left would write where the next run does.

DVC gives its stage's name to a command, and that passes it on to all it starts: the nearest process above without it
is DVC, whichever shell stands between and however DVC was started. The kernel's own way (PR_SET_PDEATHSIG) ends a
process with its parent, and that can be the shell, which lives on.
"""

import os
import signal
import threading
import time

import psutil

from tasks.process import alive, mark

__all__ = ["follow", "starter"]

STAGE = "DVC_STAGE"
LOOK = 0.5  # seconds between two looks at DVC; each takes some 50 microseconds


def follow() -> None:
    """From now on SIGTERM ends this process as soon as its DVC is gone; tasks/engine.py keeps a checkpoint first.

    Does nothing in a process that DVC did not start, as with `nohup python -m tasks.train ... &`. A command lives on
    where DVC can't be seen: on another host, or when it was killed before this call.
    """
    if dvc := starter():
        try:
            followed = mark(dvc.pid)
        except ProcessLookupError:  # it has just gone
            followed = ""
        threading.Thread(target=_end_after, args=(followed,), name="orphan", daemon=True).start()


def starter() -> psutil.Process | None:
    """The DVC that runs the stage to which this process belongs; None outside a stage."""
    stage, here = os.environ.get(STAGE), psutil.Process()
    if stage is None or _stage(here) != stage:  # what a process puts into its own environment says nothing
        return None
    return next((process for process in here.parents() if _stage(process) != stage), None)


def _stage(process: psutil.Process) -> str | None:
    """The stage with which a process was started, as far as this one may ask."""
    try:
        return process.environ().get(STAGE)
    except psutil.Error:
        return None


def _end_after(followed: str) -> None:
    while alive(followed) is not False:  # None: the host has got another name
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
