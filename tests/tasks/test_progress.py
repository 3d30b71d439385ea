"""Progress bars say how far, how fast and how long, where there is a terminal and where there is none."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from _bars import seen

from tasks.progress import counted

ROOT = Path(__file__).parents[2]
OWN = {"engine.py", "training.py", "ask_teacher.py"}  # bars that begin in the middle, or on one rank of several

CODE = """
from tasks.progress import progress
with progress(4, "rows of x", "row") as bar:
    for _ in range(4):
        bar.update()
"""


def test_a_bar_ends_with_its_rate_and_the_time_left():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, text=True, capture_output=True,
                          env=os.environ | {"TQDM_DISABLE": ""}, check=True)  # fmt: skip
    lines = done.stderr.replace("\r", "\n").split("\n")
    assert "rows of x: 100%|==========| 4/4 [00:00<00:00," in lines[-2] and " row/s]" in lines[-2]
    assert len([line for line in lines if line]) <= 2  # not one for each step: nobody redraws them here


def test_items_are_counted_when_they_are_done(monkeypatch):
    bars, left = seen(monkeypatch), []
    for item in counted("abc", "letters", "letter"):
        left.append((item, bars[0].n))
    assert left == [("a", 0), ("b", 1), ("c", 2)] and (bars[0].total, bars[0].n) == (3, 3)
    assert list(counted(iter("ab"), "letters", "letter", 2)) == ["a", "b"] and bars[1].n == 2


def test_every_bar_is_one_that_shows_under_dvc():
    """`disable=None` of tqdm would hide a bar where there is no terminal."""
    users = {
        path.name
        for path in (ROOT / "tasks").rglob("*.py")
        if any(
            isinstance(node, ast.ImportFrom) and node.module == "tqdm" for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert users == OWN | {"progress.py"}
    assert not [name for name in OWN if "disable=None" in (ROOT / "tasks" / name).read_text()]
