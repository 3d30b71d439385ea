"""A recommender's verdict -> the registry: an open gate makes a version that answers requests, and the champion.

As tasks/promote.py does it for backbones and heads: a version is known by the SHA-256 of its content, so whatever is
repeated makes no second one; a closed gate leaves a run with its evidence, no version, and the old champion.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from tasks import bundle, fresh, track
from tasks.command import run
from tasks.files import digest, read_json
from tasks.promote import ATTACHED, ReplayFailed, candidate, carry_out, changes, git_state, tell

__all__ = ["promote_recommender", "replay"]

ALIKE = 1e-5  # of a score: the same weights in another process, whose sums may be cut otherwise
EVIDENCE = ("metrics.json", "run.json", "requests.parquet")


def promote_recommender(name: str, judged: Path, made: Path, receipt: Path) -> dict:
    """Carry out the verdict in the folder `judged`, write the receipt and return it.

    Returns:
        status "promoted", "rejected" or "rolled back" (these bytes were the champion, and a person took them back).

    Raises:
        StaleVerdict: the gate must be run again.
        ReplayFailed: registered as challenger, but not fit to serve; the champion is as it was.
        RegistryUnreachable: nothing happened.
    """
    verdict = read_json(judged / "verdict.json")
    content = bundle.sha256(made / "packed/bundle/manifest.json")
    return carry_out(
        track.check_name(f"recommender-{name}"), verdict, judged, content, receipt,
        record=lambda champion: _record(name, content, verdict, judged, made, champion),
        register=lambda model, record: _register(model, record, made),
        replayed=lambda version: {"replay_row_ms": f"{replay(version)['row_ms']:.2f}"},
        again=f"run the gate of {name} again",
    )  # fmt: skip


def replay(version: track.Version) -> dict:
    """Load a version in a fresh process: it answers its own example as it did when it was registered.

    Returns:
        the times of tasks/score.py.

    Raises:
        ReplayFailed: it answers otherwise.
        FreshProcessFailed: it cannot be loaded.
    """
    with TemporaryDirectory() as folder:
        kept = track.download(version, "replay", Path(folder))
        rows, expected = (pl.read_parquet(kept / f"{part}.parquet") for part in ("rows", "expected"))
    found, times = fresh.score(version.uri, rows)
    off = _apart(found, expected)
    if off is None or not off <= ALIKE:
        how = "other items" if off is None else f"scores that differ by {off:.2g}"
        raise ReplayFailed(f"{version.uri} answers its own example with {how}; the champion is as it was")
    return times


def _apart(found: pl.DataFrame, expected: pl.DataFrame) -> float | None:
    """Largest difference of the scores, over their size; None where an item differs that is not tied with another."""
    if found.columns != expected.columns or len(found) != len(expected):
        return None
    mine, theirs = (frame["scores"].explode().to_numpy() for frame in (found, expected))
    if mine.shape != theirs.shape or found["known"].to_list() != expected["known"].to_list():
        return None
    off = float(np.abs(mine - theirs).max(initial=0) / max(1.0, np.abs(theirs).max(initial=0)))
    here, there = (frame["items"].explode().to_list() for frame in (found, expected))
    # Items may change places only where their scores are equal but for a rounding.
    moved = [place for place, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1]]
    return off if all(_tied(theirs, place) for place in moved) else None


def _tied(scores: np.ndarray, place: int) -> bool:
    near = scores[max(0, place - 1) : place + 2]
    return bool((np.abs(near - scores[place]) <= ALIKE * max(1.0, abs(scores[place]))).sum() > 1)


def _record(name: str, content: str, verdict: Mapping, judged: Path, made: Path, champion) -> dict:
    """What is written to the run, whatever becomes of it."""
    about = read_json(made / "run.json")
    params = {key: about[key] for key in ("name", "kind", "method", "settings", "training", "parameters")}
    metrics = {
        f"{part}.{metric}": value for part, found in verdict["metrics"].items() for metric, value in found.items()
    }
    metrics = {_spelled(key): value for key, value in metrics.items()} | verdict["model_metrics"]
    metrics |= {"system/seconds": about["seconds"]}
    files = {"verdict": judged, "changes.md": changes(champion, params, metrics)}
    files |= {f"evidence/{file}": made / file for file in EVIDENCE if (made / file).is_file()}
    files |= {f"plots/{picture.name}": picture for picture in sorted((made / "extra").glob("*.png"))}
    files |= {f"rebuild/{file}": Path(file) for file in ATTACHED if Path(file).is_file()}
    revision, dirty = git_state()
    tags = {
        "content_sha256": content,
        "rows_sha256": about["requests_sha256"],
        "data_sha256": about["fingerprint"].split()[0],
        "git_revision": revision,
        "git_dirty": str(dirty).lower(),
        "stage": f"recommender@{name}",
        "paths": str(made / "packed"),
        "verdict": "passed" if verdict["passed"] else "closed",
        "verdict_sha256": digest(judged / "verdict.json"),
    }
    curve = pl.read_csv(made / "curve.csv").to_dicts()
    curve = [{_spelled(key): value for key, value in row.items()} for row in curve]
    return {"params": params, "metrics": metrics, "curve": curve, "files": files, "tags": tags,
            "data": ("recommender", about["requests_sha256"])}  # fmt: skip


def _spelled(metric: str) -> str:
    """MLflow takes no @ in a metric's name: recall@20 is recall_at_20 there."""
    return metric.replace("@", "_at_")


def _register(model: str, record: dict, made: Path) -> track.Version:
    from tasks.recommender import load

    requests = pl.read_parquet(made / "packed/example.parquet")
    expected = load(made / "packed").predict(None, requests.to_pandas())
    logged = candidate(model, record, requests, pl.from_pandas(expected))
    inputs = {"user": ("any", True), "history": ("any", True)}
    return track.register(logged, model, made / "packed", inputs, requests.to_pandas(), expected, record["metrics"],
                          record["tags"])  # fmt: skip


def main(name: str, judged: str, made: str, receipt: str) -> None:
    """python -m tasks.promote_recommender NAME GATE_FOLDER MADE RECEIPT.json"""
    tell(promote_recommender(name, Path(judged), Path(made), Path(receipt)))


if __name__ == "__main__":
    run(main)
