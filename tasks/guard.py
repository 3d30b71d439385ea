"""Stop `dvc repro` before it deletes somebody's own file in data/, which is an unfrozen import of landing/.

DVC empties the target of such an import before it fills it again, without asking. What DVC itself put there can be had
again, so a file may go when its bytes are recorded in data.dvc, lie in DVC's cache, or are those of the same file in
landing/, the whole or (after a killed import) the beginning of it. Any other file is somebody's own.
This runs first in every `dvc repro`, so it also refuses names in params.yaml that the shell would run.
"""

import configparser
import hashlib
import json
import re
from pathlib import Path

from tasks.command import run
from tasks.files import read_json, write_json, write_text
from tasks.plain_words import refuse_others

__all__ = ["OwnFiles", "guard"]

NOTE = """# landing/ and data/: raw files

`dvc repro` fills landing/<dataset> from the `source` of each dataset in params.yaml, checks the files at the door, and
imports landing/ as data/ (see data.dvc). Both folders belong to DVC: it empties and fills them as it needs.

Put no file of your own here or into data/. Keep it in a folder of your own and name that as a dataset's `source`.
"""
SEEN = Path(".dvc/tmp/rootstock/guard.json")  # files found safe, by size, time and inode: hashed once, not every time
LEFTOVER = re.compile(r"\.[\w-]{22}\.tmp$")  # how DVC calls a file that it has not finished
JUNK = {".DS_Store", "Thumbs.db", "desktop.ini"}  # file managers leave them everywhere
SHOWN = 10


class OwnFiles(ValueError):
    """data/ holds files that DVC would delete and that nothing could bring back."""


def guard(data: str | Path, landing: str | Path) -> Path:
    """Check data/ and write landing/README.md, whose bytes never change.

    Returns:
        The path of the README.

    Raises:
        OwnFiles: names the files and says what to do; nothing was deleted.
    """
    data, landing = Path(data), Path(landing)
    record = data.with_name(f"{data.name}.dvc")
    # only an unfrozen import empties its target: a plain `dvc add data` takes edits up, a frozen one is left alone
    recorded = record.read_text() if record.exists() else ""
    if data.exists() and re.search(r"^deps:", recorded, re.M) and not re.search(r"^frozen: *true", recorded, re.M):
        _check(data, landing, recorded)
    return write_text(landing / "README.md", NOTE)


def _check(data: Path, landing: Path, recorded: str) -> None:
    before = read_json(SEEN) if SEEN.exists() else {}
    files = {path.relative_to(data).as_posix(): path for path in sorted(data.rglob("*")) if _counts(path)}
    marks = {name: _mark(path) for name, path in files.items()}
    own = [name for name in files if before.get(name) != marks[name]]
    if own:
        cache = _cache()
        listed = _listed(cache, recorded, files)
        own = [name for name in own if not _had_again(_md5(files[name]), listed, cache)]
        own = [name for name in own if not _in_landing(landing / name, files[name])]
    write_json(SEEN, {name: mark for name, mark in marks.items() if name not in own})
    if own:
        named = "".join(f"\n  {data / name}" for name in own[:SHOWN])
        more = f"\n  and {len(own) - SHOWN} more" if own[SHOWN:] else ""
        raise OwnFiles(
            f"{data}/ holds {len(own)} file(s) not known as DVC's own, and `dvc repro` would delete them:{named}"
            f"{more}\nMove each to a folder of your own and name that as a dataset's `source` in params.yaml, or delete"
            " it if nobody needs it; then run again. Nothing was changed."
        )


def _counts(path: Path) -> bool:
    """Not a folder, not junk, not a copy that DVC has not finished."""
    return (path.is_symlink() or not path.is_dir()) and path.name not in JUNK and not LEFTOVER.search(path.name)


def _mark(path: Path) -> list[int]:
    """What changes when a file does."""
    stat = path.lstat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _in_landing(landed: Path, file: Path) -> bool:
    """Whether the file is the landed one, or the beginning of it."""
    if not (landed.is_file() and file.is_file()) or landed.stat().st_size < file.stat().st_size:
        return False
    with open(landed, "rb") as whole, open(file, "rb") as part:
        while block := part.read(1 << 20):
            if whole.read(len(block)) != block:
                return False
    return True


def _had_again(md5: str | None, listed: set[str], cache: Path) -> bool:
    return md5 is not None and (md5 in listed or (cache / md5[:2] / md5[2:]).exists())


def _listed(cache: Path, recorded: str, files: dict[str, Path]) -> set[str]:
    """The md5 of every file that data.dvc records, as far as they can be known here.

    DVC keeps the list in its cache and its md5 in data.dvc. Without a cache (data/ copied into a fresh clone) the list
    is made anew from data/: if it has that md5, every file is a recorded one.
    """
    found = re.search(r"^outs:.*?md5: *(\w\w)(\w+)\.dir", recorded, re.M | re.S)
    if not found:
        return set()
    kept = cache / found[1] / f"{found[2]}.dir"
    if kept.exists():
        return {entry["md5"] for entry in read_json(kept)}
    entries = [{"md5": _md5(path), "relpath": name} for name, path in sorted(files.items())]
    made = hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
    return {entry["md5"] for entry in entries} if made == found[1] + found[2] else set()


def _md5(path: Path) -> str | None:
    """As DVC hashes it; None for what is no regular file."""
    if not path.is_file():
        return None
    with open(path, "rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _cache() -> Path:
    """DVC's cache of files by md5, where .dvc/config or .dvc/config.local puts it."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.read([".dvc/config", ".dvc/config.local"])
    return Path(".dvc") / config.get("cache", "dir", fallback="cache").strip("\"'") / "files" / "md5"


def main(data: str, landing: str) -> None:
    """python -m tasks.guard data landing"""
    refuse_others()
    print(f"nothing in {data}/ would be lost; {guard(data, landing)} written")


if __name__ == "__main__":
    run(main)
