"""Left alone for a year: kills at every point, lost files, a backup; nothing is lost.

The chain is run once, by commands that are killed; `benchmarks/kills.py` does it a hundred times, at random moments.
"""

import shutil
import subprocess
import time

import pytest
import yaml
from _checkout import ALWAYS, Checkout
from _killing import Kill, Running, chain, finish, killed, left


def fetching(running: Running) -> bool:
    return any((running.folder / "landing").glob(".new-*"))


def training(running: Running) -> bool:
    return any((running.folder / "artifacts/checkpoints").rglob("step-*"))


def committing(running: Running) -> bool:
    """The backbone's command has ended, and DVC takes its outputs over."""
    done = (running.folder / "artifacts/backbone/metrics.json").exists()
    return done and running.stage() == "backbone" and not running.unit()


def writing_the_lock(running: Running) -> bool:
    return running.writes_lock()


def judging(running: Running) -> bool:
    return running.stage() == "gate_backbone" and running.unit() == "gate" and settled(running, 3.0)


def registering(running: Running) -> bool:
    """The promotion has made its run in MLflow, and is at work on the version."""
    return running.stage().startswith("promote") and any((running.folder / "mlruns/artifacts").rglob("*.parquet"))


def settled(running: Running, seconds: float) -> bool:
    running.since = getattr(running, "since", time.monotonic())
    return time.monotonic() - running.since > seconds


AIMS = (fetching, training, committing, writing_the_lock, judging, registering)


@pytest.fixture(scope="module")
def survivor(tmp_path_factory, warm) -> Checkout:
    """The small demo chain, brought through by `dvc repro` after six kills; `kills` says where they struck."""
    broken = chain(tmp_path_factory.mktemp("kills") / "rootstock")
    kills = {aim.__name__: killed(broken, ("dvc", "repro"), aim) for aim in AIMS}
    made = Checkout(broken.folder, warm)
    made.kills, made.ran = kills, finish(made)
    return made


def test_kills_at_every_point_lose_nothing_and_leave_nothing(survivor):
    struck: dict[str, Kill] = survivor.kills
    assert all(struck.values()), {aim for aim, kill in struck.items() if kill is None}
    assert struck["fetching"].doing == "tasks.fetch"
    assert struck["training"].doing == "tasks.train"
    assert struck["committing"].doing == "dvc"
    assert struck["judging"].doing == "tasks.gate"
    assert struck["registering"].doing.startswith("tasks.promote")
    found = left(survivor)  # the database is whole, no lock is held, nothing is stale
    assert found.champions == {"recommend-backbone": 1, "recommend-add_later": 1}
    assert {name: len(contents) for name, contents in found.versions.items()} == dict.fromkeys(found.champions, 1)
    assert found.unfinished == []
    assert not [name for name in found.files if "/." in name]  # what is written beside begins with a dot
    assert set(survivor.ran) >= set(ALWAYS)
    units = [line.split()[0] for line in survivor.json("artifacts/prompt/add_later/proof.json")["stages_before"]]
    assert units.count("tune_prompt") == 1  # the journal of its run, found by the DVC above it
    assert survivor.repro() == []


def test_the_bytes_are_those_of_an_unbroken_run(survivor):
    weights = survivor.folder / "artifacts/backbone/model.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(survivor.folder / "artifacts/checkpoints")  # the killed training's: this one begins anew
    assert survivor.repro("--force", "--single-item", "backbone") == ["backbone"]
    assert weights.read_bytes() == before


def test_a_corrupted_cache_object_is_noticed_and_made_again(survivor):
    head = survivor.folder / "artifacts/prompt/add_later/head.safetensors"
    good, lock = head.read_bytes(), yaml.safe_load((survivor.folder / "dvc.lock").read_text())
    outs = lock["stages"]["prompt@add_later"]["outs"]
    md5 = next(out["md5"] for out in outs if out["path"].endswith("head.safetensors"))
    cached = survivor.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.chmod(0o644)
    cached.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    head.unlink()
    ran = survivor.repro()
    assert "prompt@add_later" in ran
    assert head.read_bytes() == good == cached.read_bytes()
    assert survivor.champion("recommend-add_later") == 1
    assert survivor.repro() == []


def test_a_backup_is_a_checkout_again_and_serves(survivor, tmp_path):
    survivor("tasks.backup", "save", str(tmp_path / "kept"))
    place = tmp_path / "elsewhere" / "rootstock"
    subprocess.run(["git", "clone", "-q", str(survivor.folder), str(place)], check=True)
    other = Checkout(place, survivor.python)
    for name in ("params.yaml", "dvc.yaml"):  # the test's own settings, which no commit has
        shutil.copy(survivor.folder / name, place / name)
    (place / "params.yaml").write_bytes((tmp_path / "kept/state/params.yaml").read_bytes())
    gone = survivor.folder.with_name("gone")
    survivor.folder.rename(gone)  # nothing may be served from where it was
    try:
        assert "nothing is stale" in other("tasks.backup", "restore", str(tmp_path / "kept"))
        assert other.repro() == []
        assert other.champion("recommend-add_later") == 1
        rows = next((place / "mlruns").rglob("rows.parquet"))
        other("tasks.score", "models:/recommend-add_later@champion", str(rows), str(tmp_path / "out.parquet"))
        assert (tmp_path / "out.parquet").stat().st_size > 0
    finally:
        gone.rename(survivor.folder)
