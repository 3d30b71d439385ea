"""Where a registered version comes from and who uses it: data, code, parameters, parents, verdict, consumers.

    python -m tasks.lineage models:/recommend-offer_make@champion
    python -m tasks.lineage models:/recommend-offer_make/3 --json

What was true when it was made is read from what is attached to the version: tags, and the dvc.lock of that moment. Of
each data set the lock has the MD5; its days and rows are looked up in the DVC cache, as long as it is there.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tasks import track
from tasks.command import run, threads
from tasks.files import read_if_there
from tasks.lock import Lock
from tasks.settings import read

__all__ = ["lineage", "marks", "stage_of", "told"]

ROLES = ("teacher", "start", "base", "text_encoder", "registered_as")  # tags that name one version each, and as what
LONGEST = 60  # characters of a parameter's value in the text


def marks(paths: str, lock: Path = Path("dvc.lock")) -> dict[str, str]:
    """Tags of a new version: the stage that made it, the MD5 of its weights, and the registered versions it began from;
    and with how many threads this process, and so the stages that run beside it, computes.

    A parent is the nearest version above it in the graph whose weights are the very ones that were read; what lies
    between, such as an extended vocabulary, has no version of its own.

    Args:
        paths: of the version's artefacts, its own last.
        lock: as it is at this moment; {} where it does not know the paths.
    """
    known = Lock.read(lock)
    stage, md5 = known.weights(paths)
    if stage is None:
        return {}
    registered = {}
    for version in track.versions():
        if version.name != track.LISTINGS and "weights_md5" in version.tags:
            registered.setdefault(version.tags["stage"], []).append(version)
    found, waiting, seen = [], known.above(stage), {stage}
    while waiting:
        here = waiting.pop(0)
        if here in seen:
            continue
        seen.add(here)
        outs = set(known.stages[here].hashes("outs").values())
        same = [one for one in registered.get(here, []) if set(one.tags["weights_md5"].split()) <= outs]
        found += [one.uri for one in same]
        waiting += [] if same else known.above(here)
    parents = " ".join(found) or "none"
    return {"stage": stage, "weights_md5": md5, "parents": parents, "threads": str(threads())}


def stage_of(version: track.Version, lock: Lock) -> str:
    """The stage that made a version, as dvc.yaml calls it."""
    return lock.weights(version.tags.get("paths", ""))[0] or version.tags.get("stage", "none")


def lineage(uri: str) -> dict:
    """The tree of a registered version of any kind.

    Returns:
        {"version", "aliases", "content", "run", "stage", "revision", "dirty", "parameters": {key: value}, "data": [
        {"name", "md5", "raw_md5", "rows", "from", "to"}], "gate": {"passed", "checks", "sha256"}, "parents": [{"as",
        and the same for each}], "consumers": {"versions": [uri], "stages": [name]}}. What nobody recorded is None.

    Raises:
        RegistryError: there is no such version.
    """
    every = track.versions()
    return _of(track.resolve(uri), {version.uri: version for version in every}, {})


def _of(version: track.Version, every: Mapping[str, track.Version], done: dict[str, dict]) -> dict:
    if version.uri in done:
        return done[version.uri]
    with TemporaryDirectory() as folder:
        try:
            lock = Lock.read(track.download(version, "rebuild", Path(folder)) / "dvc.lock")
        except track.RegistryError:  # made without DVC
            lock = Lock({})
        try:
            verdict = read_if_there(track.download(version, "verdict", Path(folder)) / "verdict.json")
        except track.RegistryError:
            verdict = {}
    stage, tags = stage_of(version, lock), version.tags
    done[version.uri] = node = {
        "version": version.uri,
        "aliases": [alias for alias in ("champion", "challenger") if _is(version, alias)],
        "content": tags.get("content_sha256"),
        "run": version.run,
        "stage": stage,
        "revision": tags.get("git_revision"),
        "dirty": {"true": True, "false": False}.get(tags.get("git_dirty", "")),
        "parameters": lock.stages[stage].parameters if stage in lock.stages else track.run_data(version.run)[0],
        "data": _data(lock, stage, tags),
        "gate": {"passed": {"passed": True, "closed": False}.get(tags.get("verdict", "")),
                 "checks": len(verdict["checks"]) if verdict else None, "sha256": tags.get("verdict_sha256")},
        "consumers": {"versions": [other.uri for other in every.values() if version.uri in _parents(other)],
                      "stages": _stages_that_name(version)},
    }  # fmt: skip
    node["parents"] = [
        {"as": role} | (_of(every[uri], every, done) if uri in every else {"version": uri})
        for uri, role in _parents(version).items()
    ]
    return node


def _is(version: track.Version, alias: str) -> bool:
    found = track.by_alias(version.name, alias)
    return found is not None and found.number == version.number


def _parents(version: track.Version) -> dict[str, str]:
    """Address of each parent -> what it is to the version; one that is not registered is a folder."""
    tags = version.tags
    found = {tags[role]: role for role in ROLES if tags.get(role, "none") != "none"}
    for word in tags.get("parents", "none").split():
        uri = word if word.startswith("models:/") else f"models:/{word}"
        if word != "none":
            found.setdefault(uri, "backbone" if uri.startswith("models:/recommend-backbone/") else "began from")
    # A folder between a version and its parent, such as an extended vocabulary, is told by the parameters.
    named = {uri: role for uri, role in found.items() if uri.startswith("models:/")}
    return named or found


def _data(lock: Lock, stage: str, tags: Mapping[str, str]) -> list[dict]:
    """The ingested data sets that it rests on; without a lock the one whose hash the version's tags have."""
    found = []
    for name in lock.whole(stage):
        if not name.startswith("ingest@"):
            continue
        key, entry = name.removeprefix("ingest@"), lock.stages[name]
        [md5] = entry.hashes("outs").values()
        found.append({"name": key, "md5": md5, "raw_md5": entry.hashes("deps").get(f"data/{key}")} | _period(md5))
    nothing = {"raw_md5": None, "rows": None, "from": None, "to": None}
    known = tags.get("data_sha256") or tags.get("rows_sha256")
    return sorted(found, key=lambda each: each["name"]) or ([{"name": None, "md5": known} | nothing] if known else [])


def _period(md5: str) -> dict:
    """Rows and days of an ingested data set; None where the cache has lost it, or texts have no time."""
    manifest = {}
    if listed := read_if_there(_cached(md5)):
        [place] = [entry["md5"] for entry in listed if entry["relpath"] == "manifest.json"] or [""]
        manifest = read_if_there(_cached(place))
    rows, splits = manifest.get("rows"), manifest.get("splits")
    return {
        "rows": sum(rows.values()) if isinstance(rows, dict) else rows,
        "from": min(part["first"] for part in splits.values()) if splits else None,
        "to": max(part["last"] for part in splits.values()) if splits else None,
    }


def _cached(md5: str) -> Path:
    return _cache() / "files/md5" / md5[:2] / md5[2:]


@cache
def _cache() -> Path:
    done = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], text=True, capture_output=True, check=False)
    return Path(done.stdout.strip() if done.returncode == 0 else ".dvc/cache")


def _stages_that_name(version: track.Version) -> list[str]:
    """The stages of this checkout's dvc.yaml whose settings hold the version's address, by number or by an alias."""
    if not (Path("params.yaml").is_file() and Path("dvc.yaml").is_file()):
        return []
    names = [version.uri, *(f"models:/{version.name}@{a}" for a in ("champion", "challenger") if _is(version, a))]
    keys = [key for key, value in track.flat(read("params.yaml")).items() if value in names]
    found = []
    for name, stage in read("dvc.yaml:stages").items():
        inner = stage.get("do", stage)
        told = [key for entry in inner.get("params", []) if isinstance(entry, dict) for part in entry.values()
                for key in part]  # fmt: skip
        told += [word.removeprefix("params.yaml:") for word in str(inner.get("cmd", "")).split()
                 if word.startswith("params.yaml:")]  # fmt: skip
        reads = [key.partition("${")[0].rstrip(".") for key in told]
        if any(key == part or key.startswith(f"{part}.") for key in keys for part in reads):
            found.append(name)
    return found


def told(node: Mapping, indent: str = "") -> str:
    """The tree as text, a version a block, parents further in."""
    short = lambda value, size=12: "unknown" if value is None else str(value).removesuffix(".dir")[:size]
    dirty = {True: "with uncommitted changes", False: "clean", None: "not recorded"}
    role = f"{node['as']}: " if "as" in node else ""
    lines = [f"{role}{node['version']}" + "".join(f"  {alias}" for alias in node.get("aliases", []))]
    if "stage" not in node:
        return f"{indent}{lines[0]}  (not registered)"
    lines.append(f"  made by     {node['stage']}, revision {short(node['revision'])} ({dirty[node['dirty']]})")
    lines.append(f"  content     {short(node['content'], 16)}, run {node['run']}")
    for data in node["data"]:
        days = f", {data['from'][:10]} to {data['to'][:10]}" if data["from"] else ""
        rows = f", {data['rows']:,} rows" if data["rows"] is not None else ""
        raw = f", raw {short(data['raw_md5'])}" if data["raw_md5"] else ""
        lines.append(f"  data        {data['name'] or 'rows'} {short(data['md5'])}{raw}{rows}{days}")
    for key, value in track.flat(node["parameters"]).items():
        lines.append(f"  parameter   {key} = {str(value)[:LONGEST]}{'...' if len(str(value)) > LONGEST else ''}")
    gate = node["gate"]
    state = {True: "open", False: "closed", None: "unknown"}[gate["passed"]]
    checks = f", {gate['checks']} checks" if gate["checks"] is not None else ""
    lines.append(f"  gate        {state}{checks}, verdict {short(gate['sha256'])}")
    users = [*node["consumers"]["versions"], *(f"stage {name}" for name in node["consumers"]["stages"])]
    lines.append(f"  used by     {', '.join(users) or 'nobody'}")
    lines = [f"{indent}{line}" for line in lines]
    return "\n".join(lines + [told(parent, indent + "    ") for parent in node["parents"]])


def main(uri: str, form: str | None = None) -> None:
    """python -m tasks.lineage models:/NAME/VERSION [--json]"""
    if form not in (None, "--json"):
        raise ValueError(f"the second word can only be --json, got {form!r}")
    found = lineage(uri)
    print(json.dumps(found, indent=1) if form else told(found))


if __name__ == "__main__":
    run(main)
