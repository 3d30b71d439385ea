"""What every `python -m tasks.<name>` shares: known errors become one clear line, the rest keep their traceback."""

import ast
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.error import URLError

from tasks.journal import recorded

__all__ = ["environment", "quiet", "refuse_words", "run", "threads"]


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


def environment() -> dict[str, str]:
    """This process's, quiet, in which `python` is the Python that runs here: a stage's command takes PATH's first."""
    quiet()
    return os.environ | {"PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath)}


def threads() -> int:
    """With how many a stage computes: OMP_NUM_THREADS, else all cores of this process's share (containers and
    `taskset` count). Sums are grouped by it, so it belongs to what decides a trained model's last bits."""
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # "4,2" is four, and two within each
    return int(told or len(os.sched_getaffinity(0)))


def refuse_words(folder: Path, module: str, words: Sequence[str]) -> None:
    """End the process for `--help`, which shows how a command is called, and for more or fewer words than it takes.

    Its file is read, not imported: `tasks/__init__.py` asks before anything heavy is loaded. A command that takes any
    words, `main(*words)`, looks at them itself.
    """
    file = folder / f"{module.removeprefix('tasks.')}.py"
    tree = ast.parse(file.read_text()) if module.startswith("tasks.") and file.is_file() else None
    main = tree and _main(tree)
    if not main or main.args.vararg and not main.args.args:
        return
    most = len(main.args.args)
    least, usage = most - len(main.args.defaults), _usage(main, module)
    if words and set(words) <= {"-h", "--help"}:
        print(f"{usage}\n\n{ast.get_docstring(tree)}")
        sys.exit()
    if len(words) < least or len(words) > most and not main.args.vararg:
        sys.exit(f"error: {module} was given {' '.join(words) or 'no words'}; type {usage}")


def _main(tree: ast.Module) -> ast.FunctionDef | ast.Lambda | None:
    """What a command's last lines give to `run`: a function of its file."""
    last = tree.body[-1]
    called = last.body[-1].value if isinstance(last, ast.If) and isinstance(last.body[-1], ast.Expr) else None
    given = called.args[0] if isinstance(called, ast.Call) and len(called.args) == 1 else None
    if isinstance(given, ast.Name):
        return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == given.id)
    return given if isinstance(given, ast.Lambda) else None


def _usage(main: ast.FunctionDef | ast.Lambda, module: str) -> str:
    """The first line of its docstring where that says how it is called, else the names of its arguments."""
    told = "" if isinstance(main, ast.Lambda) else (ast.get_docstring(main) or "").partition("\n")[0]
    if told.startswith("python -m"):
        return told
    names, least = [arg.arg.upper() for arg in main.args.args], len(main.args.args) - len(main.args.defaults)
    more = [f"[{name}]" for name in names[least:]] + ["[...]"] * bool(main.args.vararg)
    return " ".join([f"python -m {module}", *names[:least], *more])


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
