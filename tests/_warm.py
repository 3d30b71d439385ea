"""Python processes that have their libraries already: forked from one that imported them, not begun from nothing.

A stage of a test's checkout is `python -m tasks.<unit>`, and most of its seconds are imports of torch, MLflow and the
like, the same ones each time. `Warm.python` is a small program that asks a server for a process; the server has
imported libraries, nothing of ours, and forks. The process gets the caller's words, folder, environment and open files,
imports from that folder what is ours, ends with its own status, and dies with who asked for it.

Two things differ from Python itself, so what is about them runs Python itself: the process is no child of its caller,
and all of them order the elements of a set alike.
"""

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType

__all__ = ["Warm"]

SOCKET = "socket"
LIBRARIES = (
    "alembic.command", "dvc.cli.parser", "dvc.repo.index", "dvc.repo.open_repo", "dvc_render.vega", "flufl.lock", "git",
    "great_expectations", "matplotlib.figure", "matplotlib.projections", "mlflow.pyfunc", "mlflow.transformers",
    "mlflow.store.model_registry.sqlalchemy_workspace_store", "mlflow.store.tracking.sqlalchemy_workspace_store",
    "opentelemetry.sdk.metrics.view", "polars", "pyarrow.parquet", "safetensors.numpy", "safetensors.torch",
    "scipy.optimize", "sklearn.metrics", "tabulate", "torch._dynamo", "torch.optim", "transformers.pipelines",
    "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.t5.modeling_t5", "wcwidth",
)  # fmt: skip
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
words, here = sys.argv[1:], os.getcwd()
places = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
if words[:1] not in (["-m"], ["-c"], ["-P"]) or any(os.path.exists(f"{{place}}/sitecustomize.py") for place in places):
    os.execv({python!r}, [{python!r}, *words])
asked = socket.socket(socket.AF_UNIX)
os.chdir({folder!r})  # a socket's name must be short
asked.connect({socket!r})
os.chdir(here)
request = json.dumps([words, here, dict(os.environ)]).encode()
socket.send_fds(asked, [len(request).to_bytes(4, "big")], [0, 1, 2])
asked.sendall(request)
answers = asked.makefile()
process = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(process, number))
status = int(answers.readline())
if status < 0:  # a signal ended it
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


class Warm:
    """A server in a folder of its own while entered; `python` is the program that asks it."""

    def __init__(self, folder: Path):
        self.folder, self.python = folder, folder / "bin/python"
        self.python.parent.mkdir()
        self.python.write_text(CLIENT.format(python=sys.executable, folder=str(folder), socket=SOCKET))
        self.python.chmod(0o755)

    def __enter__(self) -> "Warm":
        words = [sys.executable, "-P", __file__, str(self.folder), str(self.python)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # both are read on import
        self.server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self.server.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_) -> None:
        self.server.stdin.close()  # it notices, as it does when pytest is killed
        self.server.wait()
        self.server.stdout.close()


class Server:
    """Forks for whoever asks; `asking` holds their connections and the processes that they got."""

    def __init__(self, folder: str, python: str):
        self.python, self.asking = python, {}
        os.chdir(folder)
        self.door = socket.socket(socket.AF_UNIX)
        self.door.bind(SOCKET)
        self.door.listen()
        self.ended, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(told)
        self.events = selectors.DefaultSelector()
        for what in (sys.stdin, self.door, self.ended):
            self.events.register(what, selectors.EVENT_READ)

    def serve(self) -> list[str]:
        """Returns in every process that was asked for, with its words; the server itself ends with its input."""
        while True:
            for key, _ in self.events.select():
                if key.fileobj is sys.stdin:
                    for process in self.asking.values():
                        os.kill(process, signal.SIGKILL)
                    os._exit(0)
                elif key.fileobj is self.door:
                    if words := self._fork():
                        return words
                elif key.fileobj == self.ended:
                    os.read(self.ended, 4096)
                    self._tell()
                elif key.fileobj in self.asking:  # and is gone
                    os.kill(self.asking[key.fileobj], signal.SIGKILL)
                    self.events.unregister(key.fileobj)

    def _fork(self) -> list[str] | None:
        asked, _ = self.door.accept()
        length, files, _, _ = socket.recv_fds(asked, 4, 3, socket.MSG_WAITALL)
        request = asked.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
        if not (process := os.fork()):
            asked.close()
            return self._become(files, *json.loads(request))
        for file in files:
            os.close(file)
        self.asking[asked] = process
        asked.sendall(b"%d\n" % process)
        self.events.register(asked, selectors.EVENT_READ)
        return None

    def _tell(self) -> None:
        """Whose process has ended is told how."""
        for asked, process in list(self.asking.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del self.asking[asked]
                if asked in self.events.get_map():
                    self.events.unregister(asked)
                    asked.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                asked.close()

    def _become(self, files: list[int], words: list[str], folder: str, environment: dict[str, str]) -> list[str]:
        """In the new process: let go of the server's, and take the caller's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.events.close()
        for each in (self.door, *self.asking):
            each.close()
        os.close(self.ended)
        for place, file in enumerate(files):
            os.dup2(file, place)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
        if environment.get("PYTHONUNBUFFERED"):
            sys.stdout.reconfigure(write_through=True)
        sys.executable, sys.orig_argv = self.python, [self.python, *words]
        return words


def live(words: list[str]) -> None:
    """Run as Python would, and end as it would; but it takes no module apart, which would copy all their memory."""
    code = 1
    try:
        run(words)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def run(words: list[str]) -> None:
    """`-m MODULE`, `-c CODE` or, after `-P`, also a file."""
    main = sys.modules["__main__"] = ModuleType("__main__")
    alone = words[0] == "-P"
    kind, *rest = words[alone:]
    if kind == "-m":
        module, *rest = rest
        sys.path[:0] = [] if alone else [os.getcwd()]
        sys.argv[:] = ["-m", *rest]
        runpy._run_module_as_main(module)
    elif kind == "-c":
        code, *rest = rest
        sys.path[:0] = [] if alone else [""]
        sys.argv[:] = ["-c", *rest]
        exec(compile(code, "<string>", "exec"), main.__dict__)
    else:
        sys.argv[:] = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    for library in LIBRARIES:
        import_module(library)
    assert threading.active_count() == 1, "a fork would lose these threads"
    gc.freeze()  # what is never looked at again is never copied
    server = Server(*sys.argv[1:])
    print("ready", flush=True)
    live(server.serve())
