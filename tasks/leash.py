"""Run a command that cannot outlive its starter, `kill -9` of either included.

    python tasks/leash.py COMMAND...        standard input: a pipe whose other end the starter holds

The kernel closes the pipe however the starter dies; then everything the command started is ended. The same happens when
the command itself is killed, because the stage that a killed `dvc` was running would live on. Needs a POSIX system.
"""

import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 5.0  # seconds between the request to end and SIGKILL


def main(*command: str) -> int:
    """Run `command` in a process group of its own; its exit status, 128 + signal when a signal ended it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    # In a thread: the handler runs where `wait` runs, and until that has reaped the command its group is not empty.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end, args=(process.pid,)).start())
    threading.Thread(target=_hold, args=(process.pid,), daemon=True).start()
    status = process.wait()
    end(process.pid)
    return status if status >= 0 else 128 - status


def end(group: int) -> None:
    """End a process group; returns when nobody is left in it."""
    deadline = time.monotonic() + GRACE
    try:
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:  # the group is empty, which is the aim
        return


def _hold(group: int) -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: this returns when the starter is gone
    end(group)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
