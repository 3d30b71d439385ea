"""A week in minutes: the deployed schedule on a fast clock, with all that can happen to it; what is left at the end.

    nice python benchmarks/week.py [--day 60] [--folder FOLDER]

A checkout with a small sample, a real Prefect server and worker, `watch` every so many seconds in place of each night.
Nothing arrives; new data; data that break a rule; data that drift; the worker is killed in the middle of a run and days
go by before somebody comes; the server is killed in the middle of a run; two runs are due at once, and a person types
`dvc repro` meanwhile. Prints a row a day and the whole history of runs, and fails unless it ends with one champion a
model, nothing stale, a whole database, nothing missed twice, and a message of each failure.
"""

import argparse
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from _deployed import ENDED, Receiver, deployed, until  # noqa: E402
from _killing import Running, chain, finish, left  # noqa: E402

WORKED = ENDED - {"Cancelled"}  # two at once: one is Cancelled before it does anything
SEEDS = (8, 9, 21, 22)  # of new data; of 24,000 rows not every seed keeps the rules of the door
MISSED = 3  # days that nobody comes
PATIENCE = 1500.0  # seconds
QUARTER = 1200.0  # so long may Prefect wait for an event that SQLite lost, before it tells of the next
CHANGED = """

_good = fetch


def fetch(out, source, rows, seed):
    _good(out, source, rows, seed)
    for shard in sorted(out.glob("*.parquet")):
        frame = pl.read_parquet(shard)
        frame.with_columns({expression}).write_parquet(shard)
"""
BROKEN = "event_id=pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit('item_click')).otherwise(pl.col('event_id'))"
DRIFTED = "pl.when(pl.col('stime').dt.day() > 24).then((pl.col('price') * 3).clip(1, 5000)).otherwise(pl.col('price'))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--day", type=float, default=60.0, help="seconds")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, Receiver() as receiver:
        Week(given.folder or Path(temporary), given.day, receiver).live()


class Week:
    """The checkout, its deployment, and what happens to them."""

    def __init__(self, folder: Path, day: float, receiver: Receiver):
        self.day, self.receiver, self.seeds = day, receiver, iter(SEEDS)
        self.checkout = chain(folder / "rootstock")
        self.code = self.checkout.folder / "tasks/datasets/sample.py"
        self.good = self.code.read_text()
        finish(self.checkout)

    def live(self) -> None:
        with deployed(self.checkout, webhook=self.receiver.url) as self.place:
            self.place.schedule(every=self.day, deploy=False)
            self.place.up()
            print("| day | what happened | run | s | said | champions |\n|---|---|---|---|---|---|", flush=True)
            self.one(0, "the data are compared with those trained on, once", self.nothing, "Completed")
            self.one(1, "nothing arrives", self.nothing, "Completed")
            self.one(2, "new data arrive", self.new_data, "Completed")
            self.one(3, "data that break a rule arrive", lambda: self.change(BROKEN), "Failed")
            self.one(4, "drift arrives: prices of the last days triple", lambda: self.change(DRIFTED), "Completed")
            assert any("price" in line for line in self.drift()), self.drift()
            self.one(5, f"the worker is killed in mid-run; nobody comes for {MISSED} days", self.lonely, "Completed")
            self.one(6, "the server is killed in mid-run", self.server_dies, "Completed")
            self.one(7, "two runs are due at once, and a person types dvc repro", self.crowd, "Completed")
            self.end()

    def one(self, day: int, what: str, happens: Callable[[], set[str] | None], state: str) -> None:
        """Let it happen, and print the first run that began after it and ended; `happens` may say what began before."""
        began = {run["id"] for run in self.place.runs() if run["started"]}
        began = happens() or began
        ended = lambda: [run for run in self.place.runs() if run["id"] not in began and run["state"] in WORKED]
        run = until(ended, f"a run after: {what}", PATIENCE)[0]
        print(f"| {day} | {what} | {run['state']} | {run['seconds']:.0f} | {first(run)} | {self.champions()} |",
              flush=True)  # fmt: skip
        assert run["state"] == state, run

    def nothing(self) -> None:
        """The day is quiet."""

    def new_data(self) -> None:
        seed = next(self.seeds)
        self.code.write_text(self.good)
        self.checkout.params(lambda params: params["datasets"]["sample"].update(seed=seed))

    def change(self, expression: str) -> None:
        self.code.write_text(self.good + CHANGED.replace("{expression}", expression))

    def training(self) -> set[str]:
        """Wait until a run trains: the runs that began until now."""
        worker = Running(self.checkout.folder, self.place.process("worker").pid, Path())
        until(lambda: worker.unit() == "train", "a run that trains", PATIENCE)
        return {run["id"] for run in self.place.runs() if run["started"]}

    def lonely(self) -> set[str]:
        self.new_data()
        began = self.training()
        self.place.kill("worker")
        until(lambda: len(self.place.missed()) >= MISSED, f"{MISSED} missed days", PATIENCE)
        assert self.place.up().count("catches up on what was missed") == 1
        return began

    def server_dies(self) -> set[str]:
        self.new_data()
        began = self.training()
        self.place.kill("server")
        self.place.up()
        (run,) = [run for run in self.place.runs() if run["state"] == "Running"]
        return began - {run["id"]}

    def crowd(self) -> set[str]:
        self.new_data()
        began = {run["id"] for run in self.place.runs() if run["started"]}
        self.place.start(times=2)
        self.training()
        person = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=self.checkout.folder, text=True,
                                env=self.checkout.environment, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)  # fmt: skip
        self.person = f"exit {person.returncode}: {' '.join(person.stdout.split())[-160:]}"
        assert person.returncode == 0 or "busy" in person.stdout or "lock" in person.stdout, person.stdout
        return began

    def drift(self) -> list[str]:
        """What `watch` told of features over their thresholds, as events."""
        found = self.place.ask("events/filter", {"filter": {"event": {"name": ["rootstock.drift"]}}})["events"]
        return [line for event in found for line in event["payload"]["over"]]

    def champions(self) -> str:
        with sqlite3.connect(self.checkout.folder / "mlruns/mlflow.db") as database:
            found = database.execute("select name, version from registered_model_aliases where alias = 'champion'")
            return ", ".join(f"{name.removeprefix('recommend-')} {version}" for name, version in sorted(found))

    def end(self) -> None:
        """Take the schedule away, wait for the end of all runs, and look at what is left."""
        self.place.schedule(every=None)
        until(lambda: all(run["state"] in ENDED for run in self.place.runs()), "an end of all runs", PATIENCE)
        runs = self.history()
        failed = sorted(run["name"] for run in runs if run["state"] in {"Failed", "Crashed"})
        until(lambda: len(self.receiver.said) >= len(failed), "a message of each failure", QUARTER)
        assert sorted(said["run"] for said in self.receiver.said) == failed
        assert [run["state"] for run in runs if "catch-up" in run["tags"]] == ["Completed"]
        assert len([run for run in runs if run["message"].startswith("missed")]) >= MISSED
        assert self.place.open() == []
        found = left(self.checkout)  # nothing is stale, MLflow's database is whole, no lock is held
        assert set(found.champions) == {"recommend-backbone", "recommend-add_later"}
        assert found.unfinished == []
        versions = {name: len(contents) for name, contents in found.versions.items()}
        print(f"\nversions {versions}, champions {found.champions}, nothing stale, database whole, no run open")
        print(f"the webhook was told: {', '.join(said['text'][:60] for said in self.receiver.said)}")
        print(f"drift was told: {'; '.join(self.drift())}\nthe person was told: {self.person}")

    def history(self) -> list[dict]:
        """Print all runs in the order in which they were due."""
        print("\n| due | run | state | s | said |\n|---|---|---|---|---|")
        for run in (runs := self.place.runs()):
            name = run["name"] + ", catch-up" * ("catch-up" in run["tags"])
            print(f"| {run['due'][11:19]} | {name} | {run['state']} | {run['seconds']:.0f} | {first(run)} |")
        return runs


def first(run: dict) -> str:
    """The first line of what a run said."""
    return (run["message"].splitlines() or [""])[0][:90]


if __name__ == "__main__":
    main()
