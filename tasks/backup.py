"""Save what cannot be made again, and bring it back: DVC's objects, MLflow's and Prefect's databases, verdicts.

    python -m tasks.backup save FOLDER                 again into the same folder: only what is new is copied
    python -m tasks.backup restore FOLDER [--aside]    into a clone of the repository; --aside: move what is there away

FOLDER/objects holds DVC's cache by content, FOLDER/state all else as it lay in the checkout, FOLDER/backup.json what
was saved when, with hashes. Secrets lie in it (Prefect's blocks), so only its owner may read it. Left out: code (git
has it), outputs that DVC checks out of its objects, .dvc/config.local with passwords of remotes, logs and locks.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from tasks import track
from tasks.command import run
from tasks.files import digest, new_folder, read_json, write_json
from tasks.repro import alone, dvc, stale

__all__ = ["BackupBroken", "InTheWay", "Unsettled", "restore", "save"]

TRACKED = ("data.dvc", "dvc.lock", "params.yaml", "prefect.yaml")  # git has a version of them, perhaps not this one
FOLDERS = ("landing", "artifacts", "mlruns", ".prefect")
CACHE = Path(".dvc/cache/files/md5")
ASIDE = Path(".dvc/tmp/before_restore")
PASSING = (".log", ".pid", ".db-wal", ".db-shm", ".db-journal")  # of the moment: no use in another one
MOVED = {  # what of MLflow's database says where a file lies
    "experiments": ("artifact_location",), "runs": ("artifact_uri",), "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}  # fmt: skip
ATTEMPTS = 3


class Unsettled(ValueError):
    """Somebody's `dvc repro` changed dvc.lock while it was being saved."""


class InTheWay(ValueError):
    """Restoring would overwrite files."""


class BackupBroken(ValueError):
    """The folder is no backup, or its files are not the ones that were saved."""


def save(folder: str | Path) -> dict:
    """Save the state of this checkout, between two flows: waits for the one that runs.

    Returns:
        backup.json: moment, revision of the code, root of the checkout, sha256 of every state file, number of objects.

    Raises:
        InTheWay: the folder holds something else.
        Unsettled: a `dvc repro` goes on and on.
        Busy: a flow does.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "backup.json").exists():
        raise InTheWay(f"{folder} holds something that is no backup; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with alone():
        for _ in range(ATTEMPTS):
            before = digest("dvc.lock")
            known = _save_objects(folder / "objects")
            with new_folder(folder / "state") as fresh:
                _save_state(fresh, folder / "state")
            if digest("dvc.lock") == before:
                break
        else:
            raise Unsettled("dvc.lock changed while it was being saved: somebody runs `dvc repro`; wait for it")
    state = {path.relative_to(folder / "state").as_posix(): digest(path) for path in _files(folder / "state")}
    about = {"saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "revision": _revision(),
             "root": str(Path.cwd()), "mlflow": track.shown(), "objects": known, "state": state}  # fmt: skip
    write_json(folder / "backup.json", about)
    return about


def restore(folder: str | Path, aside: bool = False) -> list[str]:
    """Bring a backup back into this checkout, which must not hold a state of its own.

    Args:
        aside: move what is in the way to .dvc/tmp/before_restore/ instead of refusing.

    Returns:
        The stages that DVC would run now: none, unless the code is of another revision than then.

    Raises:
        BackupBroken: it isn't what was saved, and nothing was changed; or DVC can't check its outputs out.
        InTheWay: names the files; nothing was changed.
    """
    folder = Path(folder)
    about = _checked(folder)
    with alone():
        if occupied := _occupied(folder / "state"):
            if not aside:
                raise InTheWay(f"here is a state already: {', '.join(map(str, occupied))}; restore into a fresh clone, "
                               f"or say --aside to have it moved to {ASIDE}/")  # fmt: skip
            _move_aside(occupied)
        shutil.copytree(folder / "objects", CACHE, dirs_exist_ok=True)
        shutil.copytree(folder / "state", ".", dirs_exist_ok=True)
        _move(Path("mlruns/mlflow.db"), about["root"], str(Path.cwd()))
        status, lines = dvc("checkout")
        if status:
            raise BackupBroken("dvc checkout failed: " + "\n".join(lines[-5:]))
        return stale()


def _save_objects(place: Path) -> int:
    """Copy the objects that are not there yet; how many there are."""
    objects = [path for path in _files(CACHE) if len(path.parent.name) == 2 and len(path.stem) == 30]
    for path in objects:
        target = place / path.relative_to(CACHE)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_name(f".{target.name}")
            shutil.copy2(path, fresh)
            os.replace(fresh, target)
    return len(objects)


def _save_state(fresh: Path, last: Path) -> None:
    cached = _cached()
    for path in [Path(name) for name in TRACKED] + [file for top in FOLDERS for file in _files(Path(top))]:
        if not path.exists() or path.name.endswith(PASSING) or any(path.is_relative_to(output) for output in cached):
            continue
        target, before = fresh / path, last / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".db":
            _save_database(path, target)
        elif before.is_file() and _stamp(before) == _stamp(path):
            os.link(before, target)  # saved already, by an earlier call
        else:
            shutil.copy2(path, target)


def _save_database(source: Path, target: Path) -> None:
    """A copy of one moment, while others write to it."""
    with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as live, sqlite3.connect(target) as copy:
        live.backup(copy)
    live.close(), copy.close()


def _cached() -> list[Path]:
    """Outputs that DVC can check out of its objects."""
    stages = (yaml.safe_load(Path("dvc.lock").read_text()) or {}).get("stages", {})
    outs = [out for stage in stages.values() for out in stage.get("outs", []) if "md5" in out]
    return [Path(out["path"]) for out in outs if (CACHE / out["md5"][:2] / out["md5"][2:]).exists()]


def _checked(folder: Path) -> dict:
    if not (folder / "backup.json").is_file():
        raise BackupBroken(f"{folder} is no backup: it has no backup.json")
    about = read_json(folder / "backup.json")
    broken = [
        f"state/{name}"
        for name, hashed in about["state"].items()
        if not (folder / "state" / name).is_file() or digest(folder / "state" / name) != hashed
    ]
    objects = list(_files(folder / "objects"))
    broken += [str(path.relative_to(folder)) for path in objects if _md5(path) != path.parent.name + path.stem]
    if len(objects) < about["objects"]:
        broken.append(f"objects: {len(objects)} of {about['objects']}")
    if broken:
        raise BackupBroken(f"{folder}: {len(broken)} files are not those that were saved: {', '.join(broken[:5])}")
    return about


def _occupied(state: Path) -> list[Path]:
    """What restoring would overwrite: folders of a state, and files of git that differ from git's and from ours."""
    found = [path for path in (*map(Path, FOLDERS), CACHE, Path("data")) if any(_files(path))]
    for name in TRACKED:
        mine, theirs = Path(name), state / name
        if mine.exists() and theirs.exists() and digest(mine) != digest(theirs) and _changed(name):
            found.append(mine)
    return found


def _changed(name: str) -> bool:
    done = subprocess.run(["git", "status", "--porcelain", "--", name], text=True, capture_output=True, check=False)
    return bool(done.returncode or done.stdout.strip())


def _move_aside(paths: list[Path]) -> None:
    place = ASIDE / time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    for path in paths:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, place / path)
        print(f"{path} moved to {place / path}")


def _move(database: Path, old: str, new: str) -> None:
    """MLflow writes absolute places: let them point into this checkout."""
    if old == new or not database.exists():
        return
    with sqlite3.connect(database) as connection:
        for table, columns in MOVED.items():
            for column in columns:
                connection.execute(f"update {table} set {column} = replace({column}, ?, ?) where {column} like ?",
                                   (f"{old}/", f"{new}/", f"%{old}/%"))  # fmt: skip
    connection.close()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _md5(path: Path) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], text=True, capture_output=True, check=False)
    return done.stdout.strip() or "none"


def main(word: str = "", folder: str = "", *options: str) -> None:
    """python -m tasks.backup save FOLDER | restore FOLDER [--aside]"""
    if word == "save" and folder and not options:
        about = save(folder)
        print(f"saved {about['objects']} objects and {len(about['state'])} files in {folder}")
        if about["mlflow"] != track.HERE:
            print(f"MLflow is at {about['mlflow']}, not in mlruns/: save its database and its artifacts by their means")
    elif word == "restore" and folder and set(options) <= {"--aside"}:
        left = restore(folder, aside=bool(options))
        then, now = json.loads((Path(folder) / "backup.json").read_text())["revision"], _revision()
        print("restored; nothing is stale" if not left else f"restored; stale: {', '.join(left)}")
        if then != now:
            print(f"the code was at {then[:12]} then and is at {now[:12]} now")
    else:
        raise ValueError("python -m tasks.backup save FOLDER, or: restore FOLDER [--aside]")


if __name__ == "__main__":
    run(main)
