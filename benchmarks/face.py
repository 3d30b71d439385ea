"""How large is the report of a run, and how soon can it be used? Made-up runs of 1 to 200 tasks, in headless Chromium.

    python benchmarks/face.py [--loads 9] [--out FILE]

Milliseconds from the start of the navigation to DOMContentLoaded (the page can be read and scrolled: it has no script)
and to its first paint, on a window of a phone, medians of so many loads; and the seconds that writing it takes.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _browser import CHROMIUM, Tab, browser
from _reported import made_up

from tasks.files import write_text
from tasks.report import report

TASKS = (1, 10, 40, 200)
TIMES = """(() => {
  const page = performance.getEntriesByType('navigation')[0], paint = performance.getEntriesByType('paint')[0];
  return [page.domContentLoadedEventEnd, paint ? paint.startTime : NaN];
})()"""


def measured(tab: Tab, tasks: int, loads: int, place: Path) -> str:
    """One line of the table."""
    root = made_up(place / str(tasks), tasks=tasks, slices=60, features=200, texts=30, steps=3000)
    page, started = root / "artifacts/report/index.html", time.perf_counter()
    report(str(root / "params.yaml"), root / "artifacts", root / "data", page, stale=set(), journal=root / "journal")
    seconds, times = time.perf_counter() - started, []
    for _ in range(loads):
        tab.look(page, 360, 800, "light")
        time.sleep(0.3)  # for the paint
        times.append(tab.ask(TIMES))
    ready, painted = (median(column) for column in zip(*times, strict=True))
    return f"| {tasks} | {page.stat().st_size / 1e6:.3f} | {seconds:.1f} | {ready:.0f} | {painted:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loads", type=int, default=9)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("error: no Chromium on this machine; apt-get install chromium")
    with TemporaryDirectory() as place, browser(Path(place) / "profile") as tab:
        lines = [measured(tab, tasks, asked.loads, Path(place)) for tasks in TASKS]
    head = [
        f"60 slices and a curve of 3,000 steps a task, 200 features, 30 prompts; {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.0f}", "",
        "| tasks | MB | seconds to write | ms to DOMContentLoaded | ms to first paint |", "|---|---|---|---|---|",
    ]  # fmt: skip
    text = "\n".join([*head, *lines]) + "\n"
    print(text)
    if asked.out:
        write_text(asked.out, text)


if __name__ == "__main__":
    main()
