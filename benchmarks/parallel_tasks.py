"""Ten new tasks: their prompts tuned, judged and promoted one after the other, and side by side.

    python benchmarks/parallel_tasks.py [--tasks 10] [--slots 2] [--workers 3] [--repeats 1]

A checkout with a small sample and a finished backbone gets ten new lines below recommend.tasks. `python -m
flows.recommend` then makes all ten champions, once with one worker and one slot, once with several; in between all that
the first made is thrown away. Chains: from the first prompt's start to the last promotion's end. Flow: with Prefect's
own server, the look at the backbone, and the report, too. Each process computes with one thread. The slots are the
benchmark's own, so it waits for no other training, but seconds mean something on an idle machine only: the load before
each run and the cores that it used stand beside them. What each work unit took is printed last.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from _checkout import Checkout  # noqa: E402
from _killing import again, chain, finish  # noqa: E402

from tasks.journal import FOLDER, Entry, entries  # noqa: E402

EVENTS = ("item_like", "item_add_to_cart_tap", "offer_make", "buy_start", "buy_comp")
WITHIN = ("session", "user")
UNITS = ("tune_prompt", "gate", "promote")


@dataclass
class Took:
    """Wall seconds of one run: in all, from the first prompt to the last promotion, and of each unit of its chains."""

    flow: float
    chains: float
    units: dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--slots", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, help="by default one more than slots")
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    workers = given.workers or given.slots + 1
    with tempfile.TemporaryDirectory() as folder:
        checkout = chain(Path(folder) / "run" / "rootstock")
        checkout.params(lambda params: params["recommend"].update(tasks={}))
        checkout.repro("promote_backbone")
        checkout.params(lambda params: params["recommend"].update(tasks=ten(given.tasks)))
        fresh = Path(folder) / "fresh"
        shutil.copytree(checkout.folder, fresh, symlinks=True)
        print("| | flow, s | chains, s | CPU s | cores used | load before |\n|---|---|---|---|---|---|", flush=True)
        side_by_side = f"side by side: {workers} workers, {given.slots} slots"
        pairs = []
        for _ in range(given.repeats):
            one = measure(checkout, fresh, "one after the other", workers=1, slots=1)
            pairs.append((one, measure(checkout, fresh, side_by_side, workers, given.slots)))
        assert finish(checkout)
    report(given.tasks, pairs)


def ten(count: int) -> dict[str, dict]:
    """Tasks that differ in what is positive and within what; further ones are equal to earlier ones but in name."""
    return {
        f"task_{number}": {"given": "event_id = 'item_view'",
                           "positive": f"event_id = '{EVENTS[number % len(EVENTS)]}'",
                           "within": WITHIN[number // len(EVENTS) % 2]}
        for number in range(count)
    }  # fmt: skip


def measure(checkout: Checkout, fresh: Path, name: str, workers: int, slots: int) -> Took:
    """Run the flow from the same start."""
    again(checkout, fresh)
    own = checkout.folder.parent / "tmp"  # where tasks/slots.py keeps its locks
    own.mkdir(exist_ok=True)
    environment = checkout.environment | {
        "ROOTSTOCK_WORKERS": str(workers), "ROOTSTOCK_SLOTS": str(slots), "TMPDIR": str(own),
        "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1",
    }  # fmt: skip
    load, used, started = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([sys.executable, "-m", "flows.recommend"], cwd=checkout.folder, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert not done.returncode, done.stdout[-4000:]
    wall, now = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    took = Took(wall, *_chains(entries(checkout.folder / FOLDER)))
    print(f"| {name} | {wall:.0f} | {took.chains:.0f} | {cpu:.0f} | {cpu / wall:.2f} | {load:.1f} |", flush=True)
    return took


def _chains(ran: list[Entry]) -> tuple[float, dict[str, list[float]]]:
    units = defaultdict(list)
    of_tasks = [entry for entry in ran if entry.unit in UNITS and any(word.startswith("task_") for word in entry.words)]
    for entry in of_tasks:
        units[entry.unit].append(entry.seconds)
    return max(e.started + e.seconds for e in of_tasks) - of_tasks[0].started, units


def report(tasks: int, pairs: list[tuple[Took, Took]]) -> None:
    print("\n| mean seconds of a work unit | one after the other | side by side |\n|---|---|---|")
    for unit in UNITS:
        alone, beside = (mean(second for pair in pairs for second in pair[kind].units[unit]) for kind in (0, 1))
        print(f"| {unit} | {alone:.1f} | {beside:.1f} |")
    for one, many in pairs:
        print(f"\n{tasks} tasks: side by side the chains are {one.chains / many.chains:.2f} times as fast, "
              f"the whole flow {one.flow / many.flow:.2f} times")  # fmt: skip


if __name__ == "__main__":
    main()
