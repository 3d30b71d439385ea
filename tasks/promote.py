"""A verdict -> the registry: an open gate makes a version and, once it answers from there, the champion.

Everything can be repeated: a version is known by the SHA-256 of its content, so the same bytes never make a second,
wherever the process died before. A closed gate leaves a run with its evidence, no version, and the old champion. A
head is promoted only on a backbone that is registered, so that its parent can be named.
"""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from tasks import fresh, lineage, plots, track
from tasks.command import run
from tasks.files import digest, read_if_there, read_json, write_json
from tasks.judge import failures
from tasks.model_card import description, model_card
from tasks.settings import read

__all__ = [
    "ATTACHED", "ReplayFailed", "StaleVerdict", "candidate", "carry_out", "changes", "git_state", "promote", "replay",
    "tell",
]  # fmt: skip

EXAMPLES = 8
ALIKE = 1e-6  # the same weights on the same rows, in another process
ATTACHED = ("data.dvc", "dvc.lock", "dvc.yaml", "params.yaml")  # enough to rebuild the version at its git revision


class StaleVerdict(ValueError):
    """The verdict is about other bytes, or against another champion, than there are now."""


class ReplayFailed(ValueError):
    """A registered version does not answer, from the registry alone, as it did when it was registered."""


def promote(name: str, judged: Path, features: Path, backbone: Path, receipt: Path, head: Path | None = None) -> dict:
    """Carry out the verdict in the folder `judged`, write the receipt and return it.

    Returns:
        status "promoted", "rejected" or "rolled back" (these bytes were the champion, and a person took them back).

    Raises:
        StaleVerdict: the gate must be run again.
        ReplayFailed: registered as challenger, but not fit to serve; the champion is as it was.
        RegistryUnreachable: nothing happened.
    """
    from tasks import bundle  # which brings torch: other promotions use this file without it

    verdict = read_json(judged / "verdict.json")
    about = read_json(backbone / "backbone.json")
    with TemporaryDirectory() as place:
        packed = Path(place) / "packed"
        packed.mkdir()
        content = bundle.pack(backbone, head, packed)
        parent = track.find("recommend-backbone", "weights_sha256", about["sha256"]) if head else None
        lost = "the backbone it was tuned on is not registered; look at the gate of the backbone"
        return carry_out(
            track.check_name(f"recommend-{name}"), verdict, judged, content, receipt,
            record=lambda champion: _record(name, content, verdict, judged, about, backbone, head, parent, champion),
            register=lambda model, record: _register(model, record, packed, features, backbone),
            replayed=lambda made: _replayed(made, verdict),
            again=f"run the gate of {name} again",
            also=[lost] if head and parent is None else [],
            known=_log(features),
        )  # fmt: skip


def carry_out(
    model: str,
    verdict: Mapping,
    judged: Path,
    content: str,
    receipt: Path,
    record: Callable[[track.Version | None], dict],
    register: Callable[[str, dict], track.Version],
    replayed: Callable[[track.Version], dict],
    again: str,
    also: Sequence[str] = (),
    known: Mapping | None = None,
) -> dict:
    """What every promotion does with a verdict: reject, or register and crown.

    Args:
        model: the registered model's name.
        judged: the folder of the verdict.
        content: SHA-256 of what would be registered now.
        receipt: file that takes what is returned.
        record: of the champion, or None -> what is written to the run, whatever becomes of it.
        register: model and record -> the new version; not asked where there is one of this content.
        replayed: see `crown`.
        again: what to do when the verdict is about other bytes.
        also: reasons to reject besides the failed checks.
        known: `manifest` and `drift` of what it learned from, for its card.

    Returns:
        The receipt: status, version, run, champion, model, content, and reasons.

    Raises:
        StaleVerdict: it is about other bytes, or against another champion.
        RegistryUnreachable: nothing happened.
    """
    if content != verdict["candidate"]:
        raise StaleVerdict(f"{judged}/verdict.json judged {verdict['candidate'][:12]}, the artefacts are now "
                           f"{content[:12]}; {again}")  # fmt: skip
    champion = track.by_alias(model, "champion")
    reasons = [*failures(verdict), *also]
    written = record(champion)
    written["tags"] |= lineage.marks(written["tags"]["paths"])  # of every kind: its stage, and what it began from
    card = model_card(model, written, verdict, **known or {})
    written["files"] |= {"model_card.md": card.markdown, "model_card.html": card.html}
    if reasons:
        done = {"status": "rejected", "reasons": reasons, "run": reject(model, written)}
    else:
        refuse_stale(verdict, judged, champion, content)
        version = track.find(model, "content_sha256", content) or register(model, written)
        track.describe(version, description(model_card(model, written, verdict, version.number, **known or {})))
        done = crown(version, champion, replayed)
    done |= {"model": model, "content": content, "champion": done.get("champion", champion and champion.number)}
    write_json(receipt, done)
    return done


def tell(done: Mapping) -> None:
    """Print a receipt: what became of the candidate, who is the champion, and why."""
    version = f" version {done['version']}" if "version" in done else ""
    champion = f"champion: version {done['champion']}" if done["champion"] else "no champion yet"
    print(
        f"{done['model']}:{version} {done['status']}; {champion}"
        + "".join(f"\n  {reason}" for reason in done.get("reasons", []))
    )


def replay(version: track.Version, budget_ms: float | None = None) -> dict:
    """Load a version from the registry in a fresh process and compare its answers with those at registration.

    Returns:
        the times of tasks/score.py.

    Raises:
        ReplayFailed: other answers, or one row takes longer than `budget_ms`.
        FreshProcessFailed: it cannot be loaded.
    """
    with TemporaryDirectory() as folder:
        kept = track.download(version, "replay", Path(folder))
        rows, expected = (pl.read_parquet(kept / f"{part}.parquet") for part in ("rows", "expected"))
    found, times = fresh.score(version.uri, rows)
    if found.columns != expected.columns or len(found) != len(expected):
        raise ReplayFailed(
            f"{version.uri} answers {found.shape} {found.columns}, at registration {expected.shape} {expected.columns}"
        )
    off = np.abs(found.to_numpy() - expected.to_numpy()).max()
    if not off <= ALIKE:  # also when it is NaN
        raise ReplayFailed(f"{version.uri} answers its own example differently by {off:.2g}; the champion is as it was")
    if budget_ms is not None and times["row_ms"] > budget_ms:
        raise ReplayFailed(f"{version.uri} takes {times['row_ms']:.1f} ms a row from the registry, the gate allows "
                           f"{budget_ms:g} ms; the champion is as it was")  # fmt: skip
    return times


def refuse_stale(verdict: Mapping, judged: Path, champion, content: str) -> None:
    """Raise StaleVerdict when the verdict compares with another champion than there is."""
    now = champion and champion.tags.get("content_sha256")
    then = verdict["champion"] and verdict["champion"]["content"]
    if now not in (None, content, then):
        other = f"version {verdict['champion']['version']}" if then else "no champion"
        raise StaleVerdict(f"{judged}/verdict.json compares with {other}, but {champion.uri} is the champion now; run "
                           f"the gate of {verdict['name']} again")  # fmt: skip


def _record(name, content, verdict, judged, about, backbone, head, parent, champion) -> dict:
    """What is written to the run, whatever becomes of it."""
    own = read_json(head / "head.json") if head else about
    proof = read_json(head / "proof.json") if head else {}
    params = {"name": name, "method": about["method"], "settings": own.get("settings"), "training": own.get("training")}
    params |= {"tasks": own["declaration"] if head else about["task_declarations"], "parameters": about["parameters"]}
    metrics = {
        f"{task}.{metric}": value for task, found in verdict["metrics"].items() for metric, value in found.items()
    }
    metrics |= verdict["model_metrics"]
    metrics |= {
        key: proof[key]
        for key in ("trained_parameters", "trained_share", "tuning_share", "memory_share")
        if key in proof
    }
    source = proof | {"seconds": (proof.get("seconds") or {}).get("all")} if head else about
    metrics |= {f"system/{key}": source[key] for key in ("seconds", "peak_memory_mb") if source.get(key) is not None}
    folder = head or backbone
    curve = pl.read_csv(folder / "curve.csv").to_dicts()
    files = {
        "verdict": judged,
        "plots/curve.png": plots.curves(curve),
        "changes.md": changes(champion, params, metrics),
    }
    files |= {f"evidence/{file}": folder / file for file in ("metrics.json", "proof.json") if (folder / file).is_file()}
    files |= {f"rebuild/{file}": Path(file) for file in ATTACHED if Path(file).is_file()}
    revision, dirty = git_state()
    tags = {
        "content_sha256": content,
        "weights_sha256": own["sha256"],
        "data_sha256": about["data"],
        "features_sha256": about["features"],
        **_listing_encoder(backbone),
        "git_revision": revision,
        "git_dirty": str(dirty).lower(),
        "stage": f"prompt@{name}" if head else "backbone" if name == "backbone" else f"click@{name}",
        "paths": " ".join(map(str, filter(None, (backbone, head)))),
        "backbone_sha256": about["sha256"],
        "backbone_version": parent.number if parent else "none",
        "parents": f"recommend-backbone/{parent.number}" if parent else "none",
        "verdict": "passed" if verdict["passed"] else "closed",
        "verdict_sha256": digest(judged / "verdict.json"),
    }
    return {
        "params": params,
        "metrics": metrics,
        "curve": curve + _system(folder),
        "files": files,
        "tags": tags,
        "data": ("features", about["data"]),
    }


def _log(features: Path) -> dict:
    """What the log's ingestion wrote down, and each feature's drift where it is watched, for the version's card."""
    if not Path("params.yaml").is_file():
        return {}
    name = read("params.yaml:recommend.data")
    return {
        "manifest": read_if_there(features.parent / "ingest" / name / "manifest.json"),
        "drift": read_if_there(features.parent / "monitor" / f"{name}.json").get("features"),
    }


def _listing_encoder(backbone: Path) -> dict[str, str]:
    """Tags that name what reads the listings' words: its content, and the registered version if it came from one."""
    content = read_if_there(backbone / "text/text.json").get("content")
    version = track.find(track.LISTINGS, "content_sha256", content) if content else None
    return {"text_sha256": content or "none", "text_encoder": version.uri if version else "none"}


def _system(folder: Path) -> list[dict]:
    """What training took of the machine, at the steps of its curve, under the names that MLflow's pages group."""
    rows = pl.read_csv(folder / "system.csv").to_dicts() if (folder / "system.csv").is_file() else []
    return [{key if key == "step" else f"system/{key}": value for key, value in row.items()} for row in rows]


def reject(model: str, record: dict) -> str:
    """Keep the evidence of a closed gate as a run, once for each verdict; returns the run's id."""
    known = {"kind": "rejected", "verdict_sha256": record["tags"]["verdict_sha256"]}
    return track.find_run(**known) or track.log_run(f"{model} rejected", **record | {"tags": record["tags"] | known})


def _register(model: str, record: dict, packed: Path, features: Path, backbone: Path) -> track.Version:
    from tasks import bundle

    columns = bundle.columns_of(features, backbone)
    rows = pl.read_parquet(features / "rows" / "test.parquet", columns=list(columns))
    chosen = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(int)
    example = rows[chosen].cast({name: kind for name, (kind, _) in columns.items()})
    expected = bundle.load(packed).predict(None, example.to_pandas())
    logged = candidate(model, record, example, pl.from_pandas(expected))
    inputs = {name: (str(kind), nullable) for name, (kind, nullable) in columns.items()}
    return track.register(
        logged, model, packed, inputs, example.to_pandas(), expected, record["metrics"], record["tags"]
    )


def candidate(
    model: str, record: dict, example: pl.DataFrame | None = None, expected: pl.DataFrame | None = None
) -> str:
    """The run of a candidate of this model and content, made unless a process died between it and its version.

    Args:
        example, expected: what a replay asks, and what must be answered.
    """
    known = {"kind": "candidate", "content_sha256": record["tags"]["content_sha256"], "model": model}
    if logged := track.find_run(**known):
        return logged
    with TemporaryDirectory() as folder:
        files = dict(record["files"])
        if example is not None:
            example.write_parquet(Path(folder) / "rows.parquet")
            expected.write_parquet(Path(folder) / "expected.parquet")
            files["replay"] = Path(folder)
        return track.log_run(f"{model} candidate", **record | {"tags": record["tags"] | known, "files": files})


def crown(version: track.Version, champion, replayed: Callable[[track.Version], dict]) -> dict:
    """Challenger, replay, champion; every step may be repeated.

    Args:
        champion: the version that is it now, or None.
        replayed: loads a version and raises when it does not answer as it should; gives tags that say how it went.

    Returns:
        The receipt's status, version, run and champion.
    """
    done = {"version": version.number, "uri": version.uri, "run": version.run}
    if champion and champion.number == version.number:
        return done | {"status": "promoted", "champion": version.number, "previous": _number(version)}
    if version.tags.get("rolled_back") == "true":
        again = f"python -m tasks.rollback {version.name} {version.number}"
        return done | {
            "status": "rolled back",
            "reasons": [f"a person took it back; `{again}` makes it the champion again"],
        }
    track.set_alias(version, "challenger")
    tags = replayed(version)
    # The predecessor is written down before the alias moves: a death in between loses nothing.
    track.set_tags(version, previous_champion=champion.number if champion else "", champion_by="promotion", **tags)
    track.set_alias(version, "champion")
    return done | {"status": "promoted", "champion": version.number, "previous": champion and champion.number}


def _replayed(version: track.Version, verdict: Mapping) -> dict:
    times = replay(version, (verdict["rules"].get("ceilings") or {}).get("latency_ms"))
    return {"replay_row_ms": f"{times['row_ms']:.2f}"}


def _number(version: track.Version) -> int | None:
    before = version.tags.get("previous_champion")
    return int(before) if before else None


def git_state() -> tuple[str, bool]:
    """Revision, and whether files other than those attached differ from it; ("none", True) outside of git."""
    ask = lambda *words: subprocess.run(["git", *words], text=True, capture_output=True, check=False)
    head = ask("rev-parse", "HEAD")
    if head.returncode:
        return "none", True
    changed = ask("status", "--porcelain", "--", ".", *(f":(exclude){file}" for file in ATTACHED)).stdout
    return head.stdout.strip(), bool(changed.strip())


def changes(champion, params: dict, metrics: dict) -> str:
    """What changed since the champion, as Markdown."""
    if champion is None:
        return "# First champion\nThere was none before, so there is nothing to compare with.\n"
    before, measured = track.run_data(champion.run)
    now = track.flat(params)
    lines = [f"# Changes since version {champion.number}", "", "| setting | champion | candidate |", "|---|---|---|"]
    changed = [key for key in sorted(set(before) | set(now)) if before.get(key) != str(now.get(key))]
    lines += [f"| {key} | {before.get(key, '')} | {now.get(key, '')} |" for key in changed] or ["| none | | |"]
    lines += ["", "| metric | champion | candidate | difference |", "|---|---|---|---|"]
    both = [key for key in sorted(metrics) if isinstance(metrics[key], (int, float)) and key in measured]
    lines += [
        f"| {key} | {measured[key]:.5g} | {metrics[key]:.5g} | {metrics[key] - measured[key]:+.5g} |" for key in both
    ]
    return "\n".join(lines) + "\n"


def main(name: str, judged: str, features: str, backbone: str, receipt: str, head: str | None = None) -> None:
    """python -m tasks.promote NAME GATE_FOLDER FEATURES BACKBONE RECEIPT.json [HEAD]"""
    tell(promote(name, Path(judged), Path(features), Path(backbone), Path(receipt), Path(head) if head else None))


if __name__ == "__main__":
    run(main)
