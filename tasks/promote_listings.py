"""A verdict on a reader of listings -> the registry: an open gate makes a version of `listing-encoder`, the champion.

As tasks/promote_language.py does it: a version is known by the SHA-256 of its files, so whatever is repeated makes no
second one; a closed gate leaves a run with its evidence, no version, and the old champion. A backbone that reads
`models:/listing-encoder@champion` is retrained by the next `dvc repro`.
"""

from collections.abc import Mapping
from pathlib import Path

from tasks import flavor, track
from tasks.command import run
from tasks.files import digest, read_if_there, read_json, write_json
from tasks.promote import ATTACHED, StaleVerdict, changes, crown, git_state, refuse_stale, reject
from tasks.promote_language import replay

__all__ = ["promote_listings"]

SOURCES = ("distill", "language")  # beginnings of the names under which the same files may be registered already


def promote_listings(name: str, stage: str, judged: Path, made: Path, receipt: Path) -> dict:
    """Carry out the verdict in the folder `judged`, write the receipt and return it.

    Args:
        name: of the candidate.
        stage: that made it, such as "distill".
        made: folder whose `model/` was judged.

    Returns:
        status "promoted", "rejected" or "rolled back" (these files were the champion, and a person took them back).

    Raises:
        StaleVerdict: the gate must be run again.
        ReplayFailed: registered as challenger, but not fit to serve; the champion is as it was.
        RegistryUnreachable: nothing happened.
    """
    verdict, model = read_json(judged / "verdict.json"), track.LISTINGS
    flavor.check_folder(made / "model")
    content = flavor.content(made / "model")
    if content != verdict["candidate"]:
        raise StaleVerdict(f"{judged}/verdict.json judged {verdict['candidate'][:12]}, {made}/model is now "
                           f"{content[:12]}; run `dvc repro gate_listings@{name}`")  # fmt: skip
    champion = track.by_alias(model, "champion")
    reasons = [f"{check['name']}: {check['reason']}" for check in verdict["checks"] if check["passed"] is False]
    record = _record(name, stage, content, verdict, judged, made, champion)
    if reasons:
        done = {"status": "rejected", "reasons": reasons, "run": reject(model, record)}
    else:
        refuse_stale(verdict, judged, champion, content)
        version = track.find(model, "content_sha256", content) or _register(model, record, made)
        done = crown(version, champion, lambda made: {"replay_difference": f"{replay(made):.2g}"})
    done |= {"model": model, "content": content, "champion": done.get("champion", champion and champion.number)}
    write_json(receipt, done)
    return done


def _record(name, stage, content, verdict: Mapping, judged: Path, made: Path, champion) -> dict:
    """What is written to the run, whatever becomes of it."""
    about = read_if_there(made / "run.json")
    params = {"name": name, "stage": stage} | {
        key: about[key] for key in ("teacher", "method", "layers") if key in about
    }
    metrics = verdict["metrics"]["listings"] | verdict["model_metrics"]
    revision, dirty = git_state()
    known = [track.find(f"{start}-{name}", "content_sha256", content) for start in SOURCES]
    files = {"verdict": judged, "changes.md": changes(champion, params, metrics)}
    files |= {f"rebuild/{file}": Path(file) for file in ATTACHED if Path(file).is_file()}
    tags = {
        "content_sha256": content,
        "registered_as": next((version.uri for version in known if version), "none"),
        "git_revision": revision,
        "git_dirty": str(dirty).lower(),
        "stage": f"{stage}@{name}",
        "paths": str(made / "model"),
        "verdict": "passed" if verdict["passed"] else "closed",
        "verdict_sha256": digest(judged / "verdict.json"),
    }
    return {"params": params, "metrics": metrics, "files": files, "tags": tags}


def _register(model: str, record: dict, made: Path) -> track.Version:
    known = {"kind": "candidate", "content_sha256": record["tags"]["content_sha256"], "model": model}
    logged = track.find_run(**known)  # a process may have died between its run and its version
    logged = logged or track.log_run(f"{model} candidate", **record | {"tags": record["tags"] | known})
    return track.register_folder(logged, model, made / "model", record["metrics"], record["tags"])


def main(name: str, stage: str, judged: str, made: str, receipt: str) -> None:
    """python -m tasks.promote_listings NAME STAGE GATE_FOLDER MADE RECEIPT.json"""
    done = promote_listings(name, stage, Path(judged), Path(made), Path(receipt))
    version = f" version {done['version']}" if "version" in done else ""
    champion = f"champion: version {done['champion']}" if done["champion"] else "no champion yet"
    print(f"{done['model']}:{version} {done['status']}; {champion}"
          + "".join(f"\n  {reason}" for reason in done.get("reasons", [])))  # fmt: skip


if __name__ == "__main__":
    run(main)
