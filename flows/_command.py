"""`python -m flows.<name>`: the flow with a server of its own, unless PREFECT_API_URL names one."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tasks.deploy import expect_server
from tasks.notice import notice

__all__ = ["finish", "start"]


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


def finish(
    flow: str,
    title: str,
    ran: Mapping[str, list[str]],
    results: Mapping[str, list[str] | BaseException],
    said: Sequence[str],
    rows: Callable[[dict[str, list[str]]], list],
    error: type[ValueError],
    what: str,
) -> dict[str, list[str]]:
    """End a flow whose chains ran side by side: a report of all, then the failures, if there are any.

    Args:
        flow, title: of the report.
        ran: what was shared -> the stages that ran for it.
        results: chain -> the stages that ran, or what went wrong.
        said: lines of the report besides a line on each failure.
        rows: of the report's table, from all stages that ran.
        error: raised where a chain failed.
        what: the chains are, such as "models".

    Returns:
        `ran` and the chains that got through.
    """
    failed = {name: result for name, result in results.items() if isinstance(result, BaseException)}
    done = {**ran, **{name: result for name, result in results.items() if name not in failed}}
    words = [f"- **{name}** failed: {why}" for name, why in failed.items()] + list(said)
    judged = any(stage.startswith("promote") for stages in done.values() for stage in stages)
    link, lost = published() if judged else ("", [])
    words += lost
    notice(flow, title, rows(done), "\n".join(words), link)
    if failed:
        raise error(f"{len(failed)} of {len(results)} {what} failed, the others are done\n" + "\n".join(words))
    return done


def published() -> tuple[str, list[str]]:
    """Write the page about this run and keep it in MLflow.

    Returns:
        Where a browser opens it, and a line about why it does not: hours of training are not lost for a page.
    """
    from tasks.report import publish  # a flow that finds nothing to do never needs it
    from tasks.track import page_of

    place = Path("artifacts/report/index.html")
    try:
        _, runs = publish("params.yaml", Path("artifacts"), Path("data"), place)
        return (page_of(runs[0], "report/index.html") if runs else ""), []
    except (ValueError, LookupError, OSError) as error:
        return "", [f"- no page about this run: {error}; `make report` writes it"]
