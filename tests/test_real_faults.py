"""Two people at once, and a machine that fails, with the real tools: one waits or is told why, and nothing is lost.

One checkout is built once, by a person and two flows at a time, and every test leaves it healthy for the next. Disks
are mounted by a process of its own, and are gone with it.
"""

import ctypes
import fcntl
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from _checkout import ALWAYS, Checkout
from _forked import ended
from _killing import Running, chain, killed

BERT = ["fetch@corpora", "ingest@corpora", "tokenizer", "tokens@corpora", "parts@bert", "pretrain@bert",
        "gate_pretrain@bert", "promote_pretrain@bert"]  # fmt: skip
FLOW = "from tasks.repro import alone, repro\nwith alone():\n    repro('promote_pretrain@bert')"
MODEL = "artifacts/pretrain/bert/model/model.safetensors"
AGAIN = ("dvc", "repro", "--force", "--single-item", "pretrain@bert")
ELSEWHEN = """
import os, time
now, now_ns, days = time.time, time.time_ns, int(os.environ["DAYS_FROM_NOW"])
time.time = lambda: now() + days * 86400
time.time_ns = lambda: now_ns() + days * 86400 * 10**9
"""
LIBRARIES = """
import numpy, polars, safetensors.numpy
from tasks.files import DiskFull, new_folder
many = numpy.random.default_rng(1).random(1 << 16)
for write in (lambda file: numpy.save(file, many), lambda file: polars.DataFrame({"x": many}).write_parquet(file),
              lambda file: safetensors.numpy.save_file({"x": many}, file)):
    try:
        with new_folder("artifacts/out") as fresh:
            write(fresh / "file")
    except DiskFull as error:
        print(error)
"""


class Typed(Running):
    """A command that somebody typed, or a schedule started."""

    def __init__(self, checkout: Checkout, *words: str):
        log = checkout.folder.parent / f"{len(list(checkout.folder.parent.glob('*.log')))}.log"
        with open(log, "wb") as lines:
            self.process = subprocess.Popen([sys.executable, *words], cwd=checkout.folder, stdout=lines,
                                            env=checkout.environment | {"PYTHONUNBUFFERED": "1"},
                                            stderr=subprocess.STDOUT)  # fmt: skip
        super().__init__(checkout.folder, self.process.pid, log)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def halted(self, unit: str):
        """Wait for its work unit, and let that stand still until `resume`."""
        process = wait_for(lambda: self.units().get(unit), self)
        process.suspend()
        return process


def wait_for(condition: Callable[[], object], of: Typed):
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert of.process.poll() is None, of.said()
        assert time.monotonic() < deadline, f"did not happen in time\n{of.said()}"
        time.sleep(0.01)
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm) -> Checkout:
    """A pre-trained model and its version, made by a person and two flows who all began before the first had ended."""
    made = chain(tmp_path_factory.mktemp("faults") / "rootstock", "language")
    made.params(lambda params: (params["datasets"].pop("listings"), params["language"].update(finetune={})))
    first = Typed(made, "-m", "dvc", "repro", "pretrain@bert")
    training = first.halted("pretrain")
    second = Typed(made, "-m", "dvc", "repro", "pretrain@bert")
    made.refused = [(second.process.wait(), second.said(), first.process.pid)]
    flow = Typed(made, "-c", FLOW)
    wait_for(lambda: "DVC is busy" in flow.said(), flow)
    late = Typed(made, "-c", FLOW)
    wait_for(lambda: "another flow is at work" in late.said(), late)
    training.resume()
    judging = flow.halted("gate_language")
    third = Typed(made, "-m", "dvc", "repro", "--single-item", "gate_pretrain@bert")
    made.refused.append((third.process.wait(), third.said(), r"\d+"))
    judging.resume()
    after = Checkout(made.folder, warm)
    after.refused, after.typed = made.refused, [first, second, third, flow, late]
    after.ends = [each.process.wait() for each in (first, flow, late)]
    return after


def healthy(checkout: Checkout) -> bool:
    return not checkout.stale() & set(BERT)


def test_who_comes_second_waits_or_is_told_and_nothing_runs_twice(checkout):
    first, _, _, flow, late = checkout.typed
    assert checkout.ends == [0, 0, 0], flow.said() + late.said()
    for status, said, holder in checkout.refused:
        assert status == 255
        assert "is busy, it is being blocked by" in said
        assert re.search(rf"\(PID {holder}\): .*dvc.* repro", said), said
    assert re.search(
        rf"DVC is busy with \(PID {first.process.pid}\): .* repro pretrain@bert; waiting since", flow.said()
    )
    assert "another flow is at work on this checkout; waiting" in late.said()
    ran = [stage for each in checkout.typed for stage in re.findall(r"Running stage '(.+)'", each.said())]
    assert sorted(stage for stage in ran if stage not in ALWAYS) == sorted(BERT)
    lock = yaml.safe_load((checkout.folder / "dvc.lock").read_text())["stages"]
    assert set(lock) - {*ALWAYS} == {*BERT}
    assert healthy(checkout)
    assert checkout.champion("language-bert") == 1


def test_a_finished_stage_that_could_not_be_recorded_is_not_lost(checkout):
    """DVC gives up after 3 s when another DVC is at work as a stage ends; `dvc commit` takes what the stage made."""
    person = Typed(checkout.plain(), "-m", "dvc", "repro", "--force", "--single-item", "tokens@corpora")
    working = person.halted("tokens")
    with open(checkout.folder / ".dvc/tmp/lock", "r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        working.resume()
        assert person.process.wait() == 255
    assert "Unable to acquire lock. Most likely another DVC process is running" in person.said()
    checkout("dvc", "commit", "--force", "tokens@corpora")
    assert healthy(checkout)
    assert checkout.repro("pretrain@bert") == []


def test_a_corrupted_checkpoint_is_said_and_the_one_before_it_continues(checkout):
    good, lock = ((checkout.folder / name).read_bytes() for name in (MODEL, "dvc.lock"))
    found = lambda: sorted((checkout.folder / "artifacts/checkpoints/pretrain/bert").rglob("step-*.safetensors"))
    assert killed(checkout.plain(), AGAIN, lambda running: len(found()) == 2)
    newest = found()[-1]
    newest.write_bytes(newest.read_bytes()[:-1] + bytes([newest.read_bytes()[-1] ^ 1]))
    assert checkout.repro(*AGAIN[2:]) == ["pretrain@bert"]
    assert f"{newest.relative_to(checkout.folder)} is corrupt" in checkout.said
    assert re.search(rf"bert: continues at step {int(newest.stem[5:]) - 2} from", checkout.said)
    assert (checkout.folder / MODEL).read_bytes() == good
    (checkout.folder / "dvc.lock").write_bytes(lock)  # the seconds in its run.json would have it judged again
    checkout("dvc", "checkout", "--force", "pretrain@bert")
    assert healthy(checkout)


def test_half_a_listing_in_the_cache_is_made_again(checkout):
    """An object that lists a folder; that of a file is in test_unattended.py."""
    outs = yaml.safe_load((checkout.folder / "dvc.lock").read_text())["stages"]["tokens@corpora"]["outs"]
    md5 = next(out["md5"] for out in outs if out["md5"].endswith(".dir"))
    listing = checkout.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    good = listing.read_bytes()
    listing.chmod(0o644)
    listing.write_bytes(good[:100])
    shutil.rmtree(checkout.folder / "artifacts/tokens")
    assert checkout.repro("pretrain@bert") == ["tokens@corpora"]
    assert listing.read_bytes() == good
    assert healthy(checkout)


def own_mounts() -> None:
    """This process, forked for it, and what it starts see mounts of their own from here on."""
    new_mounts = 0x20000
    if ctypes.CDLL(None).unshare(new_mounts):
        sys.exit("no mounts of its own")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


MOUNTS = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None or ended(own_mounts) != [0],
    reason="only root may mount a small disk; tests/tasks/test_faults.py limits the size of files instead",
)


def on_a_small_disk(checkout: Checkout) -> None:
    """Put a copy of the checkout on a disk of its own, in the place of the checkout itself."""
    own_mounts()
    small = checkout.folder.parent / "small"
    small.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(small)], check=True)
    shutil.copytree(checkout.folder, small, symlinks=True, dirs_exist_ok=True)
    subprocess.run(["mount", "--bind", str(small), str(checkout.folder)], check=True)


def fill(checkout: Checkout, free: int) -> Path:
    """Leave so many bytes of the small disk."""
    balloon = checkout.folder / ".dvc/tmp/balloon"
    balloon.unlink(missing_ok=True)
    with open(balloon, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(checkout.folder).free - free)
    return balloon


def full(checkout: Checkout) -> None:
    on_a_small_disk(checkout)
    good = (checkout.folder / MODEL).read_bytes()
    balloon = fill(checkout, 300_000)
    said = checkout(*AGAIN, fails=True)
    place, free = r"artifacts/checkpoints/pretrain/bert/\S+", rf"0\.\d MB are free at {checkout.folder}/\S+"
    told = (
        rf"error: \[Errno 28\] No space left on device; nothing was written to {place}\. {free}: make room there, then"
    )
    assert re.search(told, said), said
    fill(checkout, 300_000)  # DVC made room: it takes away what a stage is to write
    told = subprocess.run([sys.executable, "-c", LIBRARIES], cwd=checkout.folder, env=checkout.environment, text=True,
                          check=True, stdout=subprocess.PIPE).stdout  # fmt: skip
    assert re.findall(r"nothing was written to (\S+)\. ", told) == ["artifacts/out"] * 3, told
    assert not list((checkout.folder / "artifacts").rglob(".*"))
    shutil.rmtree(checkout.folder / "artifacts/tokens")
    fill(checkout, 20_000)
    said = checkout("tasks.repro", "pretrain@bert", fails=True)  # here DVC itself finds no room
    assert re.search(r"error: stage tokens@corpora failed: (.|\n)*\n0\.0 MB are free at \S+: make room there", said), (
        said
    )
    balloon.unlink()
    assert checkout.repro("tokens@corpora") == []  # out of the cache, whatever was half-written
    assert checkout.repro(*AGAIN[2:]) == ["pretrain@bert"]
    assert (checkout.folder / MODEL).read_bytes() == good
    assert not checkout.stale() & {*BERT[:6]}


def read_only(checkout: Checkout) -> None:
    own_mounts()
    good, place = (checkout.folder / MODEL).read_bytes(), checkout.folder / "artifacts"
    subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
    assert re.search(rf"\[Errno 30\] Read-only file system: '{place}/pretrain/bert/\S+'", checkout(*AGAIN, fails=True))
    assert "error: [Errno 30] Read-only file system: 'artifacts/." in checkout("dvc", "repro", fails=True)
    subprocess.run(["umount", str(place)], check=True)
    assert checkout.repro("promote_pretrain@bert") == []
    assert (checkout.folder / MODEL).read_bytes() == good


@MOUNTS
@pytest.mark.parametrize("fault", [full, read_only])
def test_a_disk_that_takes_nothing_more(checkout, fault):
    assert ended(lambda: fault(checkout.plain()), seconds=300) == [0]
    assert healthy(checkout)


def test_a_database_that_another_program_holds_for_too_long(checkout):
    """One that lets go in time is waited for: tests/tasks/test_faults.py."""
    holder = sqlite3.connect(checkout.folder / "mlruns/mlflow.db", isolation_level=None)
    holder.execute("begin exclusive")
    said = checkout(*AGAIN[:-1], "promote_pretrain@bert", fails=True)
    assert "(database is locked); nothing was registered and the champion is as it was. Another program holds" in said
    assert "Traceback" not in said
    holder.close()
    assert checkout.champion("language-bert") == 1
    assert healthy(checkout)


def test_a_clock_that_jumps_makes_nothing_stale_and_loses_no_champion(checkout, tmp_path):
    """The clock as Python tells it, shifted when an interpreter starts; the times of files by utime."""
    (tmp_path / "sitecustomize.py").write_text(ELSEWHEN)
    checkout.environment["PYTHONPATH"] = str(tmp_path)
    try:
        checkout.params(lambda params: params["language"]["pretrain"]["bert"]["training"].update(steps=25))
        for days, stage in ((400, "pretrain"), (-400, "gate_pretrain"), (-9, "promote_pretrain")):
            checkout.environment["DAYS_FROM_NOW"] = str(days)
            assert f"{stage}@bert" in checkout.repro(f"{stage}@bert")
        assert checkout.champion("language-bert") == 2
        with sqlite3.connect(checkout.folder / "mlruns/mlflow.db") as database:
            query = "select creation_time from model_versions where name = 'language-bert' order by version"
            [first], [second] = database.execute(query).fetchall()
        assert second < first
        for moment, path in enumerate((checkout.folder / "artifacts").rglob("*")):
            os.utime(path, (moment % 2 * (2**31 - 9),) * 2)
        assert checkout.repro("promote_pretrain@bert") == []
        assert healthy(checkout)
        assert checkout.champion("language-bert") == 2
    finally:
        for name in ("PYTHONPATH", "DAYS_FROM_NOW"):
            checkout.environment.pop(name, None)
