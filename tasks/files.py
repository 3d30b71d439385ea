"""Files that are whole or absent: written beside, then renamed, under a lock that dies with its holder."""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path

__all__ = [
    "FULL", "DiskFull", "digest", "locked", "new_folder", "on_disk", "read_if_there", "read_json", "room", "write_json",
    "write_text",
]  # fmt: skip

LOCKS = Path(".dvc/tmp/rootstock")  # beside DVC's own locks: local to the checkout, never versioned
FULL = re.compile("|".join(map(os.strerror, (ENOSPC, EDQUOT))))
SHORT = re.compile(r"^\d+ requested and \d+ written$")  # numpy, of a full disk and of a broken one


class DiskFull(OSError):
    """A disk has no room, or an owner no more of it."""


@contextmanager
def on_disk(path: str | Path) -> Iterator[None]:
    """A block that writes to `path`: of a full disk it says where, how full and what now, whichever library met it.

    Python names no file when a write finds no room, polars calls it a broken file, and numpy gives two numbers only.

    Raises:
        DiskFull: in the place of what the block raised.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:  # each library's own errors: they have no common class
        full = FULL.search(str(error))
        if not full and not (SHORT.search(str(error)) and _free(path)[1] < 1 << 20):
            raise
        why = full[0] if full else os.strerror(ENOSPC)
        raise DiskFull(ENOSPC, f"{why}; nothing was written to {path}. {room(path)}") from None


def room(path: str | Path) -> str:
    """How much is free on the disk of `path`, or of the nearest folder above it that is there, and what to do then."""
    place, free = _free(path)
    return f"{free / 1e6:,.1f} MB are free at {place}: make room there, then run it again"


def _free(path: str | Path) -> tuple[Path, int]:
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return place, shutil.disk_usage(place).free


@contextmanager
def locked(name: str, wait: bool = True) -> Iterator[None]:
    """Hold the lock `name`; the kernel frees it however the holder dies.

    Raises:
        BlockingIOError: somebody holds it and `wait` is false.
    """
    LOCKS.mkdir(parents=True, exist_ok=True)
    with open(LOCKS / f"{name.replace('/', '_')}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """A folder to fill; it takes the place of `target` when the block ends well, and leaves no trace when it does not.

    The lock keeps out the child of a killed `dvc`, which may be at its last step when the next run starts the stage.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(str(target)):
        for stale in target.parent.glob(f".new-{target.name}-*"):  # left by a kill; nobody else holds the lock
            shutil.rmtree(stale, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".new-{target.name}-", dir=target.parent))
        try:
            with on_disk(target):
                yield fresh
            fresh.chmod(0o755)
            if target.exists():
                shutil.rmtree(target)
            os.replace(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a small file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with on_disk(path):
            fresh.write_text(text)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value) -> Path:
    """Write JSON with sorted keys: equal values are equal bytes. NaN and infinity become null, which no gate passes."""
    return write_text(path, json.dumps(_finite(value), indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path):
    """Read a JSON file.

    Raises:
        ValueError: it is not JSON; names the file.
    """
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it and run `dvc repro` again") from None


def read_if_there(path: str | Path) -> dict:
    """A JSON object, or an empty one where there is no such file."""
    return read_json(path) if Path(path).is_file() else {}


def digest(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's relative names and contents; dot files and compiled Python do not count."""
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != "." and p.suffix != ".pyc")
    if not files:
        raise FileNotFoundError(f"{path} has no files to hash; run the stage that writes it first")
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(path).as_posix().encode() + b"\0" + bytes.fromhex(digest(file)))
    return total.hexdigest()


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
