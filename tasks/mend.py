"""Mend what a kill or a power cut left of DVC's own files: it writes them in place, and then refuses to start.

    python -m tasks.mend        for a person; the flows do it themselves, before they ask DVC for anything

dvc.lock: stages that were written whole are kept, the others come from the last whole dvc.lock that was seen; what is
lost with it is a memory of what ran, which DVC makes again, mostly from its run cache. data.dvc: the last whole one.
.dvc/tmp/rwlock: places held by a process that is gone, or whose number has since gone to a program other than DVC.
"""

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from tasks.command import run
from tasks.files import LOCKS, write_text

__all__ = ["Unmendable", "mend"]

TMP = Path(".dvc/tmp")
LOCK, DATA = Path("dvc.lock"), Path("data.dvc")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


class Unmendable(ValueError):
    """A file was lost that nothing here can bring back; git can."""


def mend() -> list[str]:
    """Mend dvc.lock, data.dvc and DVC's lock file, if they need it; what was done, a line each.

    Does nothing while DVC itself holds its lock: then a file is being written, not broken.

    Raises:
        Unmendable: data.dvc is broken and was never seen whole.
    """
    with ExitStack() as held:
        try:
            for name in ("lock", "rwlock.lock"):
                held.enter_context(_taken(TMP / name))
        except (BlockingIOError, FileNotFoundError):  # DVC is at work, or has never been
            return []
        return [*_mend_places(TMP / "rwlock"), *_mend_lock(), *_mend_data()]


@contextmanager
def _taken(path: Path) -> Iterator[None]:
    """DVC's own lock, as DVC takes it."""
    with open(path, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _mend_lock() -> Iterator[str]:
    text, kept = _read(LOCK), _read(LOCKS / LOCK.name)
    if text is None or text == kept:
        return
    if _whole(found := _stages(text)) and text.endswith("\n"):
        write_text(LOCKS / LOCK.name, text)
        return
    # Every entry but the last is whole: it was written before the next one began.
    begins = [match.start() for match in re.finditer(r"^  \S", text, re.MULTILINE)]
    found = (_stages(text[: begins[-1]]) or {}) if begins else {}
    stages = (_stages(kept or "") or {}) | {name: stage for name, stage in found.items() if _sound(stage)}
    if stages:
        write_text(LOCK, yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False, width=4096))
    else:
        LOCK.unlink()
    yield f"{LOCK} was half written by a run that was killed; {len(stages)} stages are known again"


def _stages(text: str) -> dict | None:
    """The entries of a dvc.lock; None when it is not one."""
    try:
        found = yaml.load(text, LOADER)
    except yaml.YAMLError:
        return None
    if not isinstance(found, dict) or "schema" not in found:
        return None
    stages = found.get("stages") or {}
    return stages if isinstance(stages, dict) else None


def _whole(stages: dict | None) -> bool:
    return stages is not None and all(map(_sound, stages.values()))


def _sound(stage) -> bool:
    """Whether DVC would read it: a command, and lists of what has a path."""
    if not isinstance(stage, dict) or "cmd" not in stage:
        return False
    lists = [stage.get(part, []) for part in ("deps", "outs")]
    return all(
        isinstance(entries, list) and all(isinstance(entry, dict) and "path" in entry for entry in entries)
        for entries in lists
    )


def _mend_data() -> Iterator[str]:
    text, kept = _read(DATA), _read(LOCKS / DATA.name)
    if text is None or text == kept:
        return
    try:
        found = yaml.load(text, LOADER)
    except yaml.YAMLError:
        found = None
    outs = found.get("outs") if isinstance(found, dict) else None
    if isinstance(outs, list) and outs and all(isinstance(out, dict) and "path" in out for out in outs):
        write_text(LOCKS / DATA.name, text)
        return
    if kept is None:
        raise Unmendable(f"{DATA} was half written by a run that was killed, and no whole one is kept here; take it "
                         f"from git: git checkout {DATA}")  # fmt: skip
    write_text(DATA, kept)
    yield f"{DATA} was half written by a run that was killed; it is as it was before that run"


def _mend_places(path: Path) -> Iterator[str]:
    """Drop what no DVC holds any more; DVC itself goes by the number of the process only."""
    if not (text := _read(path)):
        if text == "":
            path.unlink()
        return
    try:
        held = json.loads(text)
        kept = {
            "write": {file: holder for file, holder in held.get("write", {}).items() if _is_dvc(holder)},
            "read": {
                file: living
                for file, holders in held.get("read", {}).items()
                if (living := [holder for holder in holders if _is_dvc(holder)])
            },
        }
    except (ValueError, AttributeError, TypeError, KeyError):
        path.unlink()
        yield f"{path} was half written by a run that was killed; it is empty again"
        return
    if kept != {"write": held.get("write", {}), "read": held.get("read", {})}:
        write_text(path, json.dumps(kept))


def _is_dvc(holder: dict) -> bool:
    import psutil

    try:
        process = psutil.Process(int(holder["pid"]))
        return any("dvc" in Path(word).name for word in process.cmdline())
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None


def main() -> None:
    """python -m tasks.mend"""
    print("\n".join(mend()) or "nothing to mend")


if __name__ == "__main__":
    run(main)
