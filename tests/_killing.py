"""Kill a run at any moment, start it again, and compare what is left with what an unbroken run leaves."""

import csv
import hashlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from _checkout import DISTILL, ITEMS, LANGUAGE, RECOMMEND, WRITING, Checkout, copied

NAMED = re.compile(r"\d{8}T\d{6}\.\d+Z")  # Great Expectations names a page by its moment
WRITTEN = ("landing", "data", "artifacts")
# What holds seconds, moments or identities, and so differs between two unbroken runs, too; and what the door said,
# which compares new data with those before them: after a kill these may be the same.
TIMED = re.compile(
    r"/(system\.csv|proof\.json|verdict\.(json|html))$|/receipt/|/validation/|^dvc\.lock$|/registry\.json$|/checkpoints/"
)
COSTS = ("latency_ms", "peak_memory_mb", "seconds", "tokens_per_second", "wait_share", "wall_seconds")


@dataclass
class Kill:
    """One SIGKILL: seconds after the start, the stage that was at work, and who was doing what."""

    seconds: float
    stage: str
    doing: str
    mended: int = 0  # half-written files of DVC, mended before the run that was killed


@dataclass
class Left:
    """What a run leaves: bytes of every file by SHA-256, versions and champions, and the stray."""

    files: dict[str, str]
    versions: dict[str, list[str]]
    champions: dict[str, int]
    unfinished: list[str] = field(default_factory=list)


def small(params: dict) -> None:
    """The least that still goes through every stage of the recommender's chain."""
    params["datasets"] = {"sample": params["datasets"]["sample"] | {"rows": 24000}}
    recommend = params["recommend"]
    recommend["backbone"]["training"] |= {"epochs": 1, "checkpoint_steps": 10}
    recommend["head"]["training"] |= {"epochs": 2, "batch": 64}
    task = recommend["backbone"]["tasks"].pop("item_like")
    recommend["tasks"] = {"add_later": task}
    params["gates"]["default"] = {"floors": {"auc": 0.1}, "ceilings": {"latency_ms": 5000}, "least_positives": 1}


def language(params: dict) -> None:
    """The least that still goes through every stage of the language chain: one model pre-trained, one tuned."""
    params["datasets"] = {
        "corpora": {"source": "tasks/datasets/corpora.py", "documents": 120},
        "listings": {"source": "tasks/datasets/listings.py", "rows": 120},
    }
    training = {"steps": 24, "batch": 8, "evaluate_steps": 8, "checkpoint_steps": 2}
    tuned = {"from": "bert", "kind": "classification", "data": "listings", "length": 32}
    params["language"] = {
        "tokenizer": {"kind": "wordpiece", "vocabulary": 400, "data": "corpora"},
        "tokens": ["corpora"],
        "pretrain": {"bert": {"size": "nano", "data": "corpora", "length": 48, "training": training}},
        "finetune": {"category": tuned | {"training": {"steps": 8, "batch": 8, "checkpoint_steps": 2}}},
        "gates": {"pretrain": {"ceilings": {"loss": 20.0}, "improvement": {"metric": "loss", "margin": -9.0}},
                  "finetune": {"floors": {"accuracy": 0.0}}},
    }  # fmt: skip
    none = {"methods": {}, "mixes": {}, "chains": {}, "several": {}, "teachers": {}}
    gates = {"floors": {"kept": 0.0}, "ceilings": {"ratio": 1.0, "latency_ms": 100000}}
    params["distill"] |= none | {"length": 32, "gates": {"mix": gates}}


def distillation(params: dict) -> None:
    """Those two, and a student of the tuned one by a mix of two methods."""
    language(params)
    params["distill"] |= {"student": {"layers": 1}, "mixes": {"tiny": {"minilm": {}, "pd": {"weight": 0.5}}},
                          "training": {"steps": 8, "batch": 8, "checkpoint_steps": 2}}  # fmt: skip


CHAINS = {
    "recommend": (small, ITEMS + LANGUAGE + WRITING + DISTILL),
    "language": (language, RECOMMEND + ITEMS + WRITING + DISTILL),
    "distill": (distillation, RECOMMEND + ITEMS + WRITING),
}
LAST = {"recommend": "promote@add_later", "language": "promote_finetune@category", "distill": "promote_mix@tiny"}


def chain(folder: Path, kind: str = "recommend") -> Checkout:
    """A checkout with the stages from data to champions of one chain, an entry of each sort; nothing has run in it."""
    change, without = CHAINS[kind]
    return copied(folder, change, without)


def killed(checkout: Checkout, words: tuple[str, ...], now: Callable[["Running"], bool]) -> Kill | None:
    """Run a command and SIGKILL its whole process group as soon as `now` says so; None when it ended before, well.

    Raises:
        AssertionError: it ended before, and not well.
    """
    log = checkout.folder.parent / "run.log"
    with open(log, "wb") as lines:
        process = subprocess.Popen([sys.executable, "-m", *words], cwd=checkout.folder, env=checkout.environment,
                                   stdout=lines, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        running = Running(checkout.folder, process.pid, log)
        while process.poll() is None and not now(running):
            time.sleep(0.003)
        if process.poll() is None:
            doing = running.doing()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Kill(round(running.seconds(), 2), running.stage(), doing)
    if _unreadable(process.returncode, said := log.read_text(errors="replace")):
        checkout("tasks.mend")
        if kill := killed(checkout, words, now):
            kill.mended += 1
        return kill
    assert process.returncode == 0, f"{words} exit {process.returncode}\n{said[-4000:]}"
    return None


def _unreadable(status: int, said: str) -> bool:
    """Whether DVC refused to start, because a kill left half of a file that it writes in place."""
    return bool(status) and "Running stage" not in said and bool(re.search(r"dvc\.lock|data\.dvc|RWLock", said))


class Running:
    """What a run is at, seen from outside."""

    def __init__(self, folder: Path, pid: int, log: Path):
        self.folder, self.pid, self.log, self.started, self.size = folder, pid, log, time.monotonic(), 0

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def stages(self) -> list[str]:
        """The stages that were begun, in order."""
        found = re.findall(r"(?:Running stage|Importing) '(.+?)'", self.log.read_text(errors="replace"))
        return [Path(stage).name for stage in found]

    def stage(self) -> str:
        """The last one; "before the first" when none was."""
        return next(reversed(self.stages()), "before the first")

    def writes_lock(self) -> bool:
        """Whether DVC has just begun to write dvc.lock anew: it is shorter than it was."""
        try:
            size = (self.folder / "dvc.lock").stat().st_size
        except FileNotFoundError:
            size = 0
        before, self.size = self.size, size
        return size < before

    def unit(self) -> str:
        """The work unit whose process is alive, or ""."""
        return next(iter(self.units()), "")

    def units(self) -> dict[str, psutil.Process]:
        """Work unit -> its process, of those that are alive."""
        try:
            words = {child: child.cmdline() for child in psutil.Process(self.pid).children(recursive=True)}
        except psutil.Error:
            return {}
        return {part.removeprefix("tasks."): child for child, line in words.items() for part in line
                if re.fullmatch(r"tasks\.\w+", part)}  # fmt: skip

    def doing(self) -> str:
        return f"tasks.{unit}" if (unit := self.unit()) else "dvc"


def finish(checkout: Checkout) -> list[str]:
    """Bring everything up to date: the stages that ran. What DVC itself can't read any more, our own command mends."""
    done = checkout.run("-m", "dvc", "repro", stderr=subprocess.STDOUT)
    if _unreadable(done.returncode, done.stdout):
        checkout("tasks.mend")
        return checkout.repro()
    assert not done.returncode, done.stdout[-6000:]
    return re.findall(r"Running stage '(.+)'", done.stdout)


def left(checkout: Checkout) -> Left:
    """Look at everything that a run left; fails when the database, the locks or DVC's status are not as they should."""
    folder = checkout.folder
    paths = [path for top in WRITTEN for path in sorted((folder / top).rglob("*")) if path.is_file()]
    paths += [path for path in folder.iterdir() if path.is_file()]
    files = {NAMED.sub("MOMENT", path.relative_to(folder).as_posix()): _hash(path) for path in paths}
    odd = [path for path in (folder / ".dvc/cache").rglob("*") if path.is_file() and not _an_object(path)]
    files |= {path.relative_to(folder).as_posix(): "" for path in odd}
    with sqlite3.connect(folder / "mlruns/mlflow.db") as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
        versions, champions = {}, {}
        query = ("select v.name, v.version, t.value from model_versions v join model_version_tags t "
                 "on t.name = v.name and t.version = v.version and t.key = 'content_sha256' order by 1, 2")  # fmt: skip
        for name, _, content in database.execute(query):
            versions.setdefault(name, []).append(content)
        for name, version in database.execute(
            "select name, version from registered_model_aliases where alias = 'champion'"
        ):
            assert name not in champions
            champions[name] = version
        running = database.execute("select name from runs where status = 'RUNNING'").fetchall()
    assert checkout.stale() == set(), checkout.stale()
    for lock in (folder / ".dvc/tmp").rglob("*.lock"):
        subprocess.run(["flock", "--nonblock", str(lock), "true"], check=True)
    return Left(files, versions, champions, [name for (name,) in running])


def differences(broken: Left, unbroken: Left) -> list[str]:
    """In what a run that was killed differs from one that was not; empty when nothing was lost or left behind."""
    found = [f"stray {name}" for name in sorted(set(broken.files) - set(unbroken.files))]
    found += [f"lost {name}" for name in sorted(set(unbroken.files) - set(broken.files))]
    both = set(broken.files) & set(unbroken.files)
    found += [f"other bytes in {name}" for name in sorted(both)
              if broken.files[name] != unbroken.files[name] and not TIMED.search(name)]  # fmt: skip
    found += [f"{what}: {mine}, unbroken {theirs}" for what, mine, theirs in (
        ("versions", broken.versions, unbroken.versions), ("champions", broken.champions, unbroken.champions),
        ("unfinished MLflow runs", broken.unfinished, unbroken.unfinished),
    ) if mine != theirs]  # fmt: skip
    return found


def again(checkout: Checkout, fresh: Path) -> None:
    """Put a checkout back to how it was copied, in place: nothing has run in it."""
    for name in (checkout.folder, checkout.folder.parent / "site"):
        shutil.rmtree(name, ignore_errors=True)
    shutil.copytree(fresh, checkout.folder, symlinks=True)


def _hash(path: Path) -> str:
    """Of a file without the numbers that say how long something took, which differ from run to run."""
    content = path.read_bytes()
    if path.suffix == ".json":
        content = re.sub(rb'"(%b)": (\{[^}]*\}|[\d.e-]+)' % "|".join(COSTS).encode(), b"", content)
    if path.suffix == ".csv":
        rows = csv.DictReader(content.decode().splitlines())
        content = repr([{name: value for name, value in row.items() if name not in COSTS} for row in rows]).encode()
    return hashlib.sha256(content).hexdigest()


def _an_object(path: Path) -> bool:
    return bool(re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name)) or "runs" in path.parts
