"""A mark that tells a process from all others, also from one of the same number after a reboot or a clock jump."""

import os
import socket
from pathlib import Path

__all__ = ["alive", "mark"]

BOOT = Path("/proc/sys/kernel/random/boot_id")


def mark(pid: int | None = None) -> str:
    """Host, boot, number and start of a process: this one unless said.

    Raises:
        ProcessLookupError: there is no such process.
    """
    number = os.getpid() if pid is None else pid
    return f"{socket.gethostname()} {_born(number)} {number}"


def alive(marked: str) -> bool | None:
    """Whether the marked process still runs; None when that can't be known here: it ran on another host.

    >>> alive(mark())
    True
    """
    try:
        host, boot, start, number = marked.split()
        if host != socket.gethostname():
            return None
        return _born(int(number)) == f"{boot} {start}"
    except (ValueError, ProcessLookupError):
        return False


def _born(pid: int) -> str:
    if (
        not BOOT.exists()
    ):  # not Linux: the start is told by the clock, and a jump of the clock looks like another process
        import psutil

        try:
            return f"- {psutil.Process(pid).create_time():.0f}"
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(str(error)) from None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    if fields[0] == "Z":  # dead, and only not yet asked for by its starter
        raise ProcessLookupError(f"process {pid} has ended")
    return f"{BOOT.read_text().strip()} {fields[19]}"  # the 22nd field: ticks from the boot to its start
