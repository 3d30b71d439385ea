"""Bring a dataset's raw files in: copied or made, checked at the door, only then in place of the last good version."""

import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

import polars as pl

from tasks.command import run
from tasks.datasets._text import TextUnreadable
from tasks.files import new_folder, read_json, write_json
from tasks.hub import downloaded, on_the_hub
from tasks.progress import counted
from tasks.settings import SettingsError, read
from tasks.validate import DataRejected, Unreadable, validate

__all__ = ["copy_files", "dataset", "fetch"]

SUFFIXES = (".parquet", ".csv", ".tsv", ".txt", ".json", ".jsonl", ".csv.gz", ".tsv.gz", ".txt.gz", ".jsonl.gz")
DRIFT = 0.25  # see tasks.validate; a dataset's `drift` overrides it
# Settings of a dataset that are not its module's fetch(): this unit or ingest reads them.
ELSEWHERE = ("source", "drift", "split", "idle_minutes", "since", "until", "heldout", "filters")


def fetch(name: str, settings: dict, landing: str | Path, report: str | Path) -> dict:
    """Fill `landing` with the raw files of a dataset, or leave it as it is.

    Args:
        name: a file of tasks/datasets.
        settings: the dataset's entry in params.yaml: `source` (a file or folder), `drift`, what its own fetch() takes.
        landing: the folder to replace; the same source gives the same bytes.
        report: folder of the validation report (see `tasks.validate`) and of accepted.json, the profile of the version
            in `landing`: the next one must resemble its mix of events.

    Returns:
        The profile of the new version (see `tasks.validate`), with "left_out": what the module's read() skips, counted
        by its left_out(raw) where it has one.

    Raises:
        LookupError: tasks/datasets has no such file.
        SettingsError: a setting is missing or nobody's.
        DataRejected: the files are broken, or break the dataset's rules; `landing` is untouched.
        OSError: the source is not there.
    """
    module = dataset(name)
    fill, drift = _filler(name, module, settings), settings.get("drift", DRIFT)
    accepted = Path(report) / "accepted.json"
    reference = read_json(accepted) if accepted.exists() else None
    with new_folder(landing) as fresh:
        fill(fresh)
        _check_files(name, fresh)
        try:
            profile = validate(module.read(fresh), module.expectations(), report, name, reference, drift)
            profile["left_out"] = module.left_out(fresh) if hasattr(module, "left_out") else {}
        except (pl.exceptions.PolarsError, FileNotFoundError, Unreadable, TextUnreadable) as error:
            reason = str(error).split("\n\n")[0].replace(str(fresh), str(landing))  # what follows is the query plan
            found = f"{name}: tasks/datasets/{name}.py cannot read these files: {reason}"
            raise DataRejected(f"{found}{_listed(_odd_files(fresh))}\nNothing was written.") from None
    write_json(accepted, profile)
    return profile


def dataset(name: str) -> ModuleType:
    """The module tasks/datasets/<name>.py.

    Raises:
        LookupError: no such file; names the closest ones.
    """
    folder = import_module("tasks.datasets").__path__
    known = sorted(m.name for m in iter_modules(folder) if m.name[0] != "_")
    if name not in known:
        close = ", ".join(get_close_matches(name, known) or known)
        raise LookupError(f"tasks/datasets has no {name!r}; closest: {close}. A new one is a new file there.")
    return import_module(f"tasks.datasets.{name}")


def copy_files(out: Path, source: Path) -> None:
    """Copy a file, or the tables and texts of a folder, into the empty folder `out`; names what it leaves out.

    Args:
        out: an empty folder.
        source: a file, a folder, or hub:OWNER/NAME@COMMIT/PATH, see tasks/hub.py.

    Raises:
        FileNotFoundError: the source is not there.
        HubError: nor on the hub.
        DataRejected: it holds no file of a known kind.
    """
    if on_the_hub(source):
        with downloaded(source, SUFFIXES, out.parent) as folder:
            copy_files(out, folder)
        return
    if not source.exists():
        raise FileNotFoundError(f"source {source} does not exist; relative paths start at the repository root")
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    taken = [file for file in files if file.name.endswith(SUFFIXES) and file.name[0] != "."]
    if not taken:
        raise DataRejected(
            f"source {source} has no file that ends in {', '.join(SUFFIXES)} (it has {len(files)} files)"
        )
    for file in counted(taken, "fetch", "file"):
        target = out / (file.name if file == source else file.relative_to(source))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    if left := [file.name for file in files if file not in set(taken)]:
        print(f"left out {len(left)} files that are no tables: {', '.join(left[:5])}{', ...' if left[5:] else ''}")


def _filler(name: str, module: ModuleType, settings: dict) -> Callable[[Path], None]:
    """How the empty folder gets its files; every setting is checked before any work."""
    if not isinstance(settings, dict) or not settings.get("source"):
        raise SettingsError(f"datasets.{name} needs `source`: the file or folder that its raw files come from")
    drift = settings.get("drift", DRIFT)
    if isinstance(drift, bool) or not isinstance(drift, (int, float)) or not drift > 0:
        raise SettingsError(f"datasets.{name}.drift is {drift!r}; it must be a number above 0, e.g. 0.25")
    own = getattr(module, "fetch", None)
    kinds = signature(own).parameters if own else {}
    taken = [p for p in list(kinds)[2:] if kinds[p].kind is not Parameter.VAR_KEYWORD]
    given = {key: value for key, value in settings.items() if key not in ELSEWHERE}
    if unknown := [key for key in given if key not in taken]:
        accepted = ", ".join([*ELSEWHERE, *taken])
        raise SettingsError(f"datasets.{name} has unknown settings: {', '.join(unknown)}; it accepts: {accepted}")
    if absent := [p for p in taken if kinds[p].default is Parameter.empty and p not in given]:
        raise SettingsError(f"datasets.{name} lacks the settings: {', '.join(absent)}")
    source = Path(settings["source"])
    return (lambda out: own(out, source, **given)) if own else (lambda out: copy_files(out, source))


def _check_files(name: str, folder: Path) -> None:
    """Refuse a folder without data, and name every Parquet file whose beginning, end or footer is broken."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if not sum(file.stat().st_size for file in files):
        raise DataRejected(f"{name}: the source is empty ({len(files)} files of 0 bytes)")
    faults = {file.relative_to(folder): _parquet_fault(file) for file in files if file.suffix == ".parquet"}
    if broken := {file: fault for file, fault in faults.items() if fault}:
        found = f"{name}: {len(broken)} of {len(files)} files are broken; nothing was written"
        raise DataRejected(f"{found}{_listed(broken)}\nFetch them again from where they came from.")


def _parquet_fault(file: Path) -> str | None:
    with open(file, "rb") as content:
        size, start = file.stat().st_size, content.read(4)
        content.seek(max(size - 4, 0))
        end = content.read(4)
    if start != b"PAR1":
        return f"not a Parquet file ({size:,} bytes)"
    if end != b"PAR1" or size < 12:
        return f"truncated: the end of the Parquet file is missing ({size:,} bytes)"
    try:
        pl.read_parquet_schema(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        return f"unreadable footer: {error}"
    return None


def _odd_files(folder: Path) -> dict[Path, str]:
    """Why a scan fails: Parquet files that cannot be decoded, or have other columns than those named like them."""
    odd, kinds = {}, {}
    for file in sorted(folder.rglob("*.parquet")):
        try:
            pl.scan_parquet(file).select(pl.all().max()).collect(engine="streaming")
        except pl.exceptions.PolarsError as error:
            odd[file.relative_to(folder)] = f"cannot be decoded: {error}"
        else:  # shards differ in their numbers only
            kinds.setdefault(re.sub(r"\d+", "0", str(file)), []).append((file, pl.read_parquet_schema(file)))
    for shards in kinds.values():
        counts = Counter(tuple(schema.items()) for _, schema in shards)
        usual = dict(counts.most_common(1)[0][0])
        for file, schema in shards:
            words = [f"{c} is {schema.get(c, 'missing')}" for c in {**usual, **schema} if usual.get(c) != schema.get(c)]
            if words:
                odd[file.relative_to(folder)] = f"{', '.join(words)}; otherwise in the files named like it"
    return odd


def _listed(files: dict[Path, str]) -> str:
    return "".join(f"\n  {file}: {fault}" for file, fault in sorted(files.items()))


def main(address: str, landing: str, report: str) -> None:
    """python -m tasks.fetch params.yaml:datasets.<name> landing/<name> artifacts/validation/<name>"""
    name = re.split(r"[.:]", address)[-1]
    dataset(name)  # before the settings: a name without a file is the likelier mistake
    profile = fetch(name, read(address), landing, report)
    for warning in profile["warnings"] + [f"left out {n:,} {what}" for what, n in profile["left_out"].items()]:
        print(f"warning: {name}: {warning}", file=sys.stderr)
    skipped = f", {len(profile['not_applicable'])} not applicable" if profile["not_applicable"] else ""
    kept = len(profile["rules"]) - len(profile["warnings"])
    print(f"{name}: {profile['rows']:,} rows keep {kept} rules{skipped}; raw files in {landing}")


if __name__ == "__main__":
    run(main)
