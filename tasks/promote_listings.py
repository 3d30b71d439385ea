"""A verdict on a reader of listings -> the registry: an open gate makes a version of `listing-encoder`, the champion.

As tasks/promote_language.py does it: a version is known by the SHA-256 of its files, so whatever is repeated makes no
second one; a closed gate leaves a run with its evidence, no version, and the old champion. A backbone that reads
`models:/listing-encoder@champion` is retrained by the next `dvc repro`.
"""

from collections.abc import Mapping
from pathlib import Path

from tasks import flavor, track
from tasks.command import run
from tasks.files import digest, read_if_there, read_json
from tasks.promote import ATTACHED, carry_out, changes, git_state, tell
from tasks.promote_language import register, replayed

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
    verdict = read_json(judged / "verdict.json")
    flavor.check_folder(made / "model")
    content = flavor.content(made / "model")
    return carry_out(
        track.LISTINGS, verdict, judged, content, receipt,
        record=lambda champion: _record(name, stage, content, verdict, judged, made, champion),
        register=lambda model, record: register(model, record, made),
        replayed=replayed,
        again=f"run `dvc repro gate_listings@{name}`",
    )  # fmt: skip


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


def main(name: str, stage: str, judged: str, made: str, receipt: str) -> None:
    """python -m tasks.promote_listings NAME STAGE GATE_FOLDER MADE RECEIPT.json"""
    tell(promote_listings(name, stage, Path(judged), Path(made), Path(receipt)))


if __name__ == "__main__":
    run(main)
