"""Training slots of this host: one run at a time per GPU, or per CPU, and no crash can lose one.

A slot is a file lock (flock): the kernel frees it however its holder dies. Prefect's concurrency limits are not needed
beside it, and would be worse: a server must be up, `dvc repro` would not take part, and a slot whose server and holder
are killed together is lost for good. A second host has locks of its own, for its own GPUs.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tasks.settings import SettingsError

__all__ = ["devices", "slot"]

FOLDER = Path(tempfile.gettempdir()) / "rootstock-slots"  # of the host, not of a checkout: two of them share its GPUs
POLL = 0.2  # seconds between two looks; with several devices there is no single lock to sleep on


@contextmanager
def slot() -> Iterator[str]:
    """Wait for a free device and hold it: "cuda:0", "cuda:1" ..., or "cpu" on a host without GPU.

    ROOTSTOCK_SLOTS: runs that share one device, default 1.

    Raises:
        SettingsError: ROOTSTOCK_SLOTS is not a whole number >= 1.
    """
    names, shares, started, told = devices(), _shares(), time.monotonic(), float("-inf")
    while True:
        for share in range(shares):  # an empty device before the second share of a busy one
            for device, name in names.items():
                if file := _take(f"{name}-{share}.lock"):
                    with file:
                        yield device
                    return
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"waiting for a training slot since {told - started:.0f} s: {', '.join(names)} held by "
                  f"{', '.join(_holders(names.values(), shares))}", flush=True)  # fmt: skip
        time.sleep(POLL)


def devices() -> dict[str, str]:
    """The devices that training may use: torch's name -> a name that is the same in every process of this host."""
    import torch

    # cuda:0 is another card in a process with another CUDA_VISIBLE_DEVICES; its uuid is not.
    found = {f"cuda:{i}": str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())}
    return found or {"cpu": "cpu"}


def _take(name: str) -> IO | None:
    """The open, locked file, or None when somebody else holds it; closing it gives the slot back."""
    file = _open(name)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()}")
    file.flush()
    return file


def _open(name: str) -> IO:
    """Open a file that every user of this host may lock; a link that somebody planted there is refused."""
    if not FOLDER.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        FOLDER.chmod(0o1777)
    path = FOLDER / name
    try:  # without O_CREAT first: Linux refuses that on another user's file in a shared folder
        return os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+")
    except FileNotFoundError:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
        os.fchmod(file.fileno(), 0o666)  # whatever the umask took away
        return file


def _holders(names, shares: int) -> list[str]:
    files = [FOLDER / f"{name}-{share}.lock" for name in names for share in range(shares)]
    return sorted({file.read_text() or "somebody" for file in files})


def _shares() -> int:
    value = os.environ.get("ROOTSTOCK_SLOTS", "1")
    if not value.isdecimal() or int(value) < 1:
        raise SettingsError(
            f"ROOTSTOCK_SLOTS is the number of runs that share a device, a whole number >= 1; got {value!r}"
        )
    return int(value)
