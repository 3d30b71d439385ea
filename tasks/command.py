"""What every `python -m tasks.<name>` shares: known errors become one clear line, the rest keep their traceback."""

import os
import sys
from collections.abc import Callable
from urllib.error import URLError

from tasks.journal import recorded

__all__ = ["quiet", "run"]


def quiet() -> None:
    """Switch the telemetry of every tool off, unless the user switched it on."""
    for name, value in {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }.items():
        os.environ.setdefault(name, value)


def run(main: Callable[..., object]) -> None:
    """Call `main` with the command line's words; an error that a user can mend ends as `error: ...`, exit 1.

    ValueError (all our own refusals), LookupError and OSError (files, disk, network) are such errors; anything else is
    a fault of ours and keeps its traceback, as do all of them when ROOTSTOCK_TRACEBACK=1. A network that gives no
    answer exits 75: trying again later may help, and the flows do.
    """
    quiet()
    try:
        with recorded():
            main(*sys.argv[1:])
    except (ConnectionError, TimeoutError, URLError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)
    except (ValueError, LookupError, OSError) as error:
        if os.environ.get("ROOTSTOCK_TRACEBACK") == "1":
            raise
        text = str(error) if not isinstance(error, KeyError) else f"missing {error}"
        sys.exit(f"error: {text or type(error).__name__}")
