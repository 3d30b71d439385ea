"""`python -m flows.<name>`: the flow with a server of its own, unless PREFECT_API_URL names one."""

import os
import signal
from collections.abc import Callable, Mapping

from tasks.deploy import expect_server

__all__ = ["settled", "start"]


def start(flow: Callable, **parameters) -> None:
    """Run a flow from the command line; when it is stopped, nothing that it started lives on.

    Raises:
        ServerUnreachable: PREFECT_API_URL names a server that does not answer.
    """
    if not expect_server():
        # Prefect would leave its temporary server behind on SIGTERM; on Ctrl-C, which reaches that server too, it would
        # try for minutes to report to it.
        signal.signal(signal.SIGINT, _leave)
        signal.signal(signal.SIGTERM, _leave)
    flow(**parameters)


def _leave(number: int, _frame) -> None:
    import psutil

    for child in psutil.Process().children():
        child.terminate()
    os._exit(128 + number)


def settled(results: Mapping[str, list[str] | BaseException]) -> tuple[dict, dict[str, BaseException], list[str]]:
    """Chains that ran side by side: the stages of those that got through, the others' errors, and a line on each."""
    failed = {name: result for name, result in results.items() if isinstance(result, BaseException)}
    done = {name: result for name, result in results.items() if name not in failed}
    return done, failed, [f"- **{name}** failed: {error}" for name, error in failed.items()]
