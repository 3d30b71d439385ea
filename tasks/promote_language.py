"""A language model's verdict -> the registry: an open gate makes a version that transformers loads, and the champion.

As tasks/promote.py does it for recommenders: a version is known by the SHA-256 of its files, so whatever is repeated
makes no second one; a closed gate leaves a run with its evidence, no version, and the old champion.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from tasks import flavor, fresh, track
from tasks.command import run
from tasks.files import digest, read_json
from tasks.gate_language import MEASURED, PARTS, registered
from tasks.promote import ATTACHED, ReplayFailed, candidate, carry_out, changes, git_state, tell

__all__ = ["promote_language", "register", "replay", "replayed"]

ALIKE = 1e-5  # of the largest answer: the same weights in another process, whose sums may be cut otherwise
EVIDENCE = ("metrics.json", "run.json", "recipe.json", "predictions.parquet", "extra/predictions.parquet")


def promote_language(
    kind: str, name: str, judged: Path, made: Path, receipt: Path, measured: Path | None = None,
    pages: Path | None = None,
) -> dict:  # fmt: skip
    """Carry out the verdict in the folder `judged`, write the receipt and return it.

    Args:
        kind: of PARTS in tasks/gate_language.py.
        name: of the recipe, the task, the method or the mix.
        made: folder of tasks/pretrain.py, tasks/finetune.py or tasks/distill.py.
        measured: folder of its evaluation, of kinds in MEASURED.
        pages: folder of pages that people look at, kept with the run.

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
        registered(kind, name), verdict, judged, content, receipt,
        record=lambda champion: _record(kind, name, content, verdict, judged, made, champion, measured, pages),
        register=lambda model, record: register(model, record, made),
        replayed=replayed,
        again=f"run the gate of {name} again",
    )  # fmt: skip


def register(model: str, record: dict, made: Path) -> track.Version:
    """The folder `made`/model as the next version."""
    return track.register_folder(candidate(model, record), model, made / "model", record["metrics"], record["tags"])


def replayed(version: track.Version) -> dict[str, str]:
    """Replay a version; the tag that says how near it came."""
    return {"replay_difference": f"{replay(version):.2g}"}


def replay(version: track.Version) -> float:
    """Load a version by `mlflow.transformers.load_model` in a fresh process: it answers as its files did when judged.

    Returns:
        the largest difference of its answers from those of its files with plain transformers, over their size.

    Raises:
        ReplayFailed: its files are not the registered ones, or it answers otherwise.
        FreshProcessFailed: it cannot be loaded.
    """
    with TemporaryDirectory() as place:
        files = track.model_files(version, Path(place) / "version")
        if flavor.content(files / "model") != version.tags.get("content_sha256"):
            raise ReplayFailed(f"{version.uri}: its files are not those that were registered; nothing was loaded")
        flavor.check_version(files)
        if not flavor.check_folder(files / "model"):
            return 0.0  # the very files, and no class of transformers to ask
        (expected, _), (found, _) = fresh.recall(files / "model", files)
    if sorted(found) != sorted(expected):
        raise ReplayFailed(f"{version.uri} answers {', '.join(sorted(found))}, its files {', '.join(sorted(expected))}")
    off = {name: float((part - found[name]).abs().max() / part.abs().max().clamp(min=1)) if part.shape ==
           found[name].shape else float("inf") for name, part in expected.items()}  # fmt: skip
    name, worst = max(off.items(), key=lambda pair: pair[1])
    if not worst <= ALIKE:  # also when it is NaN
        raise ReplayFailed(f"{version.uri} differs from its files in {name} by {worst:.2g}; the champion is as it was")
    return worst


def _record(
    kind: str, name: str, content: str, verdict: Mapping, judged: Path, made: Path, champion, measured: Path | None,
    pages: Path | None,
) -> dict:  # fmt: skip
    """What is written to the run, whatever becomes of it."""
    about, part = read_json(made / "run.json"), PARTS[kind]
    if kind in MEASURED:
        about["fingerprint"] = read_json(measured / "run.json")["fingerprint"]
    params = {key: value for key, value in about.items() if key not in ("seconds", "tokens", "steps")}
    metrics = {f"{part}.{metric}": value for metric, value in verdict["metrics"][part].items()}
    # Under another name than the curve's column: MLflow refuses one metric twice at a step.
    metrics |= {"system/seconds" if key == "seconds" else key: value for key, value in verdict["model_metrics"].items()}
    files = {"verdict": judged, "changes.md": changes(champion, params, metrics)}
    files |= {f"evidence/{file}": made / file for file in EVIDENCE if (made / file).is_file()}
    drawn = [made / "curve.png", made / "mix.png", *sorted((made / "extra").glob("*.png"))]
    if kind in MEASURED:
        kept = ("metrics.json", "run.json", "page.html", "answers.parquet", "left_out.parquet", "samples.json")
        files |= {f"evaluation/{file}": measured / file for file in kept if (measured / file).is_file()}
        drawn += sorted((measured / "extra").glob("*.png"))
    if pages:
        files["pages"] = pages
    files |= {f"plots/{picture.name}": picture for picture in drawn if picture.is_file()}
    files |= {f"rebuild/{file}": Path(file) for file in ATTACHED if Path(file).is_file()}
    revision, dirty = git_state()
    tags = {
        "content_sha256": content,
        "rows_sha256": about["fingerprint"],
        "git_revision": revision,
        "git_dirty": str(dirty).lower(),
        "stage": f"{kind}@{name}",
        "paths": str(made / "model"),
        "verdict": "passed" if verdict["passed"] else "closed",
        "verdict_sha256": digest(judged / "verdict.json"),
    }
    for who in ("teacher", "base", "start"):
        if about.get(f"{who}_content"):
            tags |= {who: _version(about[who], about[f"{who}_content"]), f"{who}_sha256": about[f"{who}_content"]}
    # A student's curve names its stage, which is no number.
    curve = pl.read_csv(made / "curve.csv").select(pl.exclude("stage")).to_dicts()
    return {"params": params, "metrics": metrics, "curve": curve, "files": files, "tags": tags,
            "data": (kind, about["fingerprint"])}  # fmt: skip


def _version(origin: str, content: str) -> str:
    """The registered version whose files those are, such as models:/language-category/3, or where they lie.

    Args:
        origin: artifacts/<kind>/<name>, or <kind>/<name>.
        content: SHA-256 of the model's files.
    """
    kind, name = Path(origin).parent.name, Path(origin).name
    version = track.find(registered(kind, name), "content_sha256", content) if kind in PARTS else None
    return version.uri if version else origin


def main(kind: str, name: str, *folders: str) -> None:
    """python -m tasks.promote_language pretrain|finetune|... NAME GATE_FOLDER MADE RECEIPT.json [EVALUATED [PAGES]]"""
    tell(promote_language(kind, name, *map(Path, folders)))


if __name__ == "__main__":
    run(main)
