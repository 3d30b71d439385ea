"""What the machinery costs when there is nothing to do: start-up of every command, Prefect per stage, a no-op run.

    python benchmarks/overhead.py [--commands] [--flow] [--times 3]

Start-up: CPU seconds of `python -m tasks.<name>` without words in an empty folder, which ends before any work, and of
importing the module, which comes before its work; the best of three. What works without words gets --help. Prefect: a
flow of twenty stages that do nothing, against a server that is up, less the same loop without Prefect. No-op: the
deployment `watch` in a checkout where nothing is new, from its first line to its last, and from the moment that it was
due. CPU seconds, because the machine may do other work; wall seconds beside them.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
BOUND = 1.5
WITHOUT_WORDS = (
    "demo",
    "deploy",
    "estimate",
    "mend",
    "plain_words",
    "prune",
    "readme",
    "reference",
    "ui",
)  # begin at once

FLOW = """
import os, time
os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def make(stage):
    return [stage]
@flow(log_prints=True)
def stages(count):
    started, used = time.perf_counter(), time.process_time()
    for i in range(count):
        make(f"stage{i}")
    return time.perf_counter() - started, time.process_time() - used
stages(2)
wall, cpu = stages(20)
print("RESULT", wall / 20, cpu / 20)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", action="store_true", help="only start-up")
    parser.add_argument("--flow", action="store_true", help="only Prefect")
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    if given.commands or not given.flow:
        commands(given.times)
    if given.flow or not given.commands:
        prefect()


def commands(times: int) -> None:
    """A table of start-up, the slowest first."""
    names = sorted(path.stem for path in (ROOT / "tasks").glob("*.py") if "__main__" in path.read_text())
    found = {name: (min(start("-m", f"tasks.{name}", *["--help"] * (name in WITHOUT_WORDS)) for _ in range(times)),
                    min(start("-c", f"import tasks.{name}") for _ in range(times))) for name in names}  # fmt: skip
    slow = {name: cost for name, (cost, _) in found.items() if cost > BOUND}
    print("| command | CPU s until it refuses no words | until it is imported |\n|---|---|---|")
    for name, (cost, whole) in sorted(found.items(), key=lambda item: -max(item[1])):
        print(f"| `tasks.{name}` | {cost:.2f} | {whole:.2f} |")
    print(f"\n{len(found)} commands, {len(slow)} above {BOUND} s: {', '.join(slow) or 'none'}")


def start(*words: str) -> float:
    """CPU seconds of Python with these words, in an empty folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([sys.executable, *words], cwd=place, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600,
                       env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=False)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prefect() -> None:
    """Prefect's cost per stage, and of a scheduled run that finds nothing new."""
    from _checkout import DISTILL, ITEMS, LANGUAGE, RECOMMEND, WRITING, copied
    from _deployed import deployed

    def little(params: dict) -> None:
        params["datasets"] = {"corpora": params["datasets"]["corpora"] | {"documents": 200}}

    with tempfile.TemporaryDirectory() as folder:
        checkout = copied(Path(folder) / "rootstock", little, without=RECOMMEND + ITEMS + LANGUAGE + WRITING + DISTILL)
        checkout.repro()
        with deployed(checkout) as place:
            place.up()
            done = subprocess.run([sys.executable, "-c", FLOW], env=place.environment(), cwd=folder, text=True,
                                  check=True, stdout=subprocess.PIPE)  # fmt: skip
            wall, cpu = map(float, done.stdout.split("RESULT")[1].split())
            print("\n| | wall s | CPU s of the flow's process |\n|---|---|---|")
            print(f"| a stage in Prefect | {wall:.2f} | {cpu:.3f} |")
            for _ in range(2):
                asked = time.monotonic()
                run = place.await_run(place.start()[0], {"Completed", "Failed"})
                print(f"| no-op `watch`: {run['state']} | {run['seconds']:.1f}, {time.monotonic() - asked:.1f} "
                      "from when it was due | |")  # fmt: skip
            print(f"\nload average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
