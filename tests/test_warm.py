"""A process that was forked with its libraries is told, and tells, what Python itself would be told and tell."""

import os
import signal
import subprocess
import sys
import time

import pytest

SAY = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), os.environ.get("ASKED"), "torch" in sys.modules, sys.path[:1], __name__,
                  sys.stdin.read()]))
"""


@pytest.fixture
def both(warm, tmp_path):
    """Call Python itself, then the forked one, in a folder that has a module: both answers."""
    (tmp_path / "here.py").write_text(SAY)

    def call(*words: str, **more: str) -> list[subprocess.CompletedProcess]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
        return [subprocess.run([python, *words], cwd=tmp_path, env=environment, input="given", text=True, check=False,
                               capture_output=True) for python in (sys.executable, warm)]  # fmt: skip

    return call


@pytest.mark.parametrize("words", [("-c", SAY, "a", "b c"), ("-P", "-c", SAY), ("-P", "here.py", "-x")])
def test_words_folder_environment_and_input_are_the_callers(both, words):
    cold, quick = both(*words, ASKED="yes")
    assert cold.returncode == quick.returncode == 0, quick.stderr
    assert quick.stdout.replace("true", "false") == cold.stdout.replace(cold.args[0], quick.args[0])
    assert "true" in quick.stdout and "true" not in cold.stdout  # torch was there


def test_a_module_is_the_folder_s_own(both, tmp_path):
    cold, quick = both("-m", "here", "x")
    assert quick.stdout.replace("true", "false") == cold.stdout != ""
    cold, quick = both("-m", "nowhere")
    assert cold.returncode == quick.returncode == 1 and "No module named nowhere" in quick.stderr
    cold, quick = both("-P", "-c", "import here")
    assert cold.returncode == quick.returncode == 1 and "ModuleNotFoundError" in quick.stderr
    cold, quick = both("-P", "-c", "import here", PYTHONPATH=str(tmp_path))
    assert quick.stdout.replace("true", "false") == cold.stdout != ""


@pytest.mark.parametrize("code", [
    "import sys; sys.exit(75)", "import sys; sys.exit('error: so')", "raise SystemExit", "1 / 0",
    "import os; os.kill(os.getpid(), 9)", "import atexit; atexit.register(print, 'last'); print('first')",
])  # fmt: skip
def test_it_ends_as_python_would(both, code):
    cold, quick = both("-c", code)
    assert (quick.returncode, quick.stdout) == (cold.returncode, cold.stdout)
    assert quick.stderr.splitlines()[-1:] == cold.stderr.splitlines()[-1:]


def test_it_dies_with_who_asked_and_hears_what_that_is_told(warm):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    for number in (signal.SIGKILL, signal.SIGTERM):
        asked = subprocess.Popen([warm, "-c", code], stdout=subprocess.PIPE, text=True)
        process = int(asked.stdout.readline())
        asked.send_signal(number)
        assert asked.wait(60) == -number
        asked.stdout.close()
        deadline = time.monotonic() + 60
        while os.path.exists(f"/proc/{process}"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
