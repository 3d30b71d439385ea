"""Progress bars say how far, how fast and how long, where there is a terminal and where there is none."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
from tasks.progress import progress
with progress(4, "rows of x", "row") as bar:
    for _ in range(4):
        bar.update()
"""


def test_a_bar_ends_with_its_rate_and_the_time_left():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=Path(__file__).parents[2], text=True, capture_output=True,
                          env=os.environ | {"TQDM_DISABLE": ""}, check=True)  # fmt: skip
    lines = done.stderr.replace("\r", "\n").split("\n")
    assert "rows of x: 100%|==========| 4/4 [00:00<00:00," in lines[-2] and " row/s]" in lines[-2]
    assert len([line for line in lines if line]) <= 2  # not one for each step: nobody redraws them here
