"""Judge a model that may read listings for the recommender: what it would be `models:/listing-encoder@champion` for.

    python -m tasks.gate_listings params.yaml:recommend NAME FEATURES MADE OUT

Its one duty is that alike listings get alike vectors. So `neighbours` is the share of test listings whose nearest other
listing, by the cosine of centred vectors, is of the same kind (a column of the rows); the champion is asked about the
same listings. Width, milliseconds a title and megabytes are what the backbone and its serving then pay. A closed gate
is a result (exit 0): verdict.json for the promotion, verdict.html for a person.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from tasks import flavor, page, track
from tasks.command import run
from tasks.files import new_folder, write_json, write_text
from tasks.judge import Check, compare, failures, finite, merged, number
from tasks.listing_encoder import Asked
from tasks.settings import SettingsError, read
from tasks.texts import TextEncoder, UnreadableEncoder, text_of
from tasks.training import use_threads

__all__ = ["gate_listings", "neighbours"]

RULES = {
    "kind": "c1_id",
    "most": 2000,
    "floors": {},
    "ceilings": {"width": 1024, "latency_ms": 50, "size_mb": 200},
    "margin": -0.01,
}
METRICS = ("neighbours", "chance", "width", "latency_ms", "size_mb")
TIMED = 15


def gate_listings(settings: Mapping, name: str, features: Path, made: Path, out: Path) -> dict:
    """Write `out`/verdict.json and verdict.html, and return the verdict.

    Args:
        settings: the `recommend` part of params.yaml: `encoder_gate` and the columns of `backbone.text` are read.
        name: of the candidate, a key of `recommend.encoders`.
        features: folder of tasks/features.py, whose test rows are the listings.
        made: folder whose `model/` is the candidate.

    Raises:
        SettingsError: a rule that cannot be applied; names all of them.
        RegistryUnreachable: whether there is a champion cannot be known.
        PoisonedFolder: the candidate's folder could run code when read.
    """
    use_threads()
    rules = _rules(settings.get("encoder_gate") or {})
    text = Asked.read((settings.get("backbone") or {}).get("text"))
    texts, kinds = _listings(features, list(text.columns if text else Asked.columns), rules)
    flavor.check_folder(made / "model")
    content, champion, faults = flavor.content(made / "model"), track.by_alias(track.LISTINGS, "champion"), {}
    try:
        found, vectors = _measure(made / "model", texts, kinds)
        if not np.isfinite(vectors).all() or np.ptp(vectors, axis=0).max() == 0:
            faults["vectors tell listings apart"] = "some are not finite, or all are the same"
    except (UnreadableEncoder, RuntimeError, IndexError) as error:  # whatever the candidate does closes its gate
        found, faults["the folder loads"] = {}, str(error)[:400]
    checks = [Check(what, False, reason=why) for what, why in faults.items()]
    checks += [finite(metric, found.get(metric)) for metric in METRICS]
    for side in ("floors", "ceilings"):
        checks += [compare(metric, found.get(metric), number(bound), side) for metric, bound in rules[side].items()]
    checks.append(_against(champion, content, found, texts, kinds, number(rules["margin"])))
    verdict = {
        "name": name,
        "model": track.LISTINGS,
        "passed": all(check.passed is not False for check in checks),
        "checks": [asdict(check) for check in checks],
        "candidate": content,
        "champion": champion and {"version": champion.number, "content": champion.tags.get("content_sha256")},
        "metrics": {"listings": {key: found[key] for key in ("neighbours", "chance") if key in found}},
        "model_metrics": {key: value for key, value in found.items() if key not in ("neighbours", "chance")},
        "slices": [],
        "rows": len(texts),
        "rules": rules,
    }
    with new_folder(out) as folder:
        write_json(folder / "verdict.json", verdict)
        write_text(folder / "verdict.html", page.page(verdict, {}))
    return verdict


def _rules(told: Mapping) -> dict:
    faults = [f"there is no rule {key!r}; the rules are {', '.join(RULES)}" for key in told if key not in RULES]
    rules = merged(RULES, {key: value for key, value in told.items() if key in RULES})
    bounds = {f"{side}.{metric}": (metric, bound) for side in ("floors", "ceilings")
              for metric, bound in (rules[side] or {}).items()}  # fmt: skip
    faults += [f"{place}: there is no metric {metric!r}; there are {', '.join(METRICS)}"
               for place, (metric, _) in bounds.items() if metric not in METRICS]  # fmt: skip
    faults += [f"{place}: {bound!r} is no number" for place, (_, bound) in bounds.items() if number(bound) is None]
    if number(rules["margin"]) is None:
        faults.append(f"margin: {rules['margin']!r} is no number")
    if type(rules["most"]) is not int or rules["most"] < 2:
        faults.append(f"most: {rules['most']!r} is no number of listings, 2 or more")
    if faults:
        raise SettingsError(f"recommend.encoder_gate: {'; '.join(faults)}")
    return rules | {side: rules[side] or {} for side in ("floors", "ceilings")}


def _listings(features: Path, columns: list[str], rules: Mapping) -> tuple[list[str], np.ndarray]:
    """At most so many distinct texts of test rows, evenly spaced in their order, and the kind of each."""
    rows = pl.scan_parquet(features / "rows/test.parquet")
    schema = rows.collect_schema()
    if absent := [name for name in [*columns, rules["kind"]] if name not in schema]:
        raise SettingsError(f"recommend.encoder_gate: the rows in {features} have no {', '.join(absent)}; `kind` names "
                            f"a column that says what a listing is, such as c1_id")  # fmt: skip
    found = rows.select(text_of(columns), pl.col(rules["kind"]).alias("kind")).drop_nulls()
    found = found.group_by("text").agg(pl.col("kind").min()).sort("text").collect()
    if len(found) < 2:
        raise SettingsError(f"recommend.encoder_gate: {features} has {len(found)} test listings with words and a "
                            f"{rules['kind']}; there is nothing to compare")  # fmt: skip
    found = found[np.linspace(0, len(found) - 1, min(rules["most"], len(found))).astype(int)]
    return found["text"].to_list(), found["kind"].rank("dense").to_numpy()


def _measure(folder: Path, texts: list[str], kinds: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    encode = TextEncoder(folder)
    vectors, times = encode(texts), []
    for place in range(TIMED + 1):
        started = time.perf_counter()
        encode([texts[place % len(texts)]])
        times.append((time.perf_counter() - started) * 1000)
    share = np.bincount(kinds) / len(kinds)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    return {
        "neighbours": neighbours(vectors, kinds),
        "chance": float((share**2).sum()),
        "width": vectors.shape[1],
        "latency_ms": median(times[1:]),
        "size_mb": size,
    }, vectors


def neighbours(vectors: np.ndarray, kinds: np.ndarray) -> float:
    """Share of listings whose nearest other listing, by the cosine of centred vectors, is of the same kind.

    Args:
        vectors: (N, D), N of 2 or more.
        kinds: (N,) integer.

    >>> neighbours(np.float32([[0, 1], [0, 2], [1, 0], [5, 0.1]]), np.array([1, 1, 2, 3]))
    0.5
    """
    centred = vectors - vectors.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    same = 0
    for start in range(0, len(unit), 1024):  # a block of rows: N x N cosines are never held
        cosine = unit[start : start + 1024] @ unit.T
        cosine[np.arange(len(cosine)), np.arange(start, start + len(cosine))] = -np.inf
        same += int((kinds[cosine.argmax(1)] == kinds[start : start + 1024]).sum())
    return same / len(unit)


def _against(champion, content: str, found: Mapping, texts: list[str], kinds: np.ndarray, margin: float) -> Check:
    if champion is None:
        return Check("improvement", True, reason="there is no champion yet: the first that passes becomes it")
    if champion.tags.get("content_sha256") == content:
        return Check("improvement", True, reason=f"these files are the champion, version {champion.number}")
    name = f"neighbours against version {champion.number}"
    with TemporaryDirectory() as place:
        theirs = _measure(track.model_files(champion, Path(place) / "version") / "model", texts, kinds)[0]["neighbours"]
    ours = number(found.get("neighbours"))
    if ours is None:
        return Check(name, False, None, margin, "the candidate has none")
    better = ours - theirs
    return Check(name, better >= margin, better, margin, f"{ours:.4f}, the champion has {theirs:.4f}")


def main(address: str, name: str, features: str, made: str, out: str) -> None:
    """python -m tasks.gate_listings params.yaml:recommend NAME FEATURES MADE OUT"""
    verdict = gate_listings(read(address), name, Path(features), Path(made), Path(out))
    state = "open" if verdict["passed"] else "CLOSED"
    told = ", ".join(
        f"{key} {value:.4g}" for key, value in (verdict["metrics"]["listings"] | verdict["model_metrics"]).items()
    )
    print(f"gate of {name} as {track.LISTINGS}: {state}; {told}; see {out}/verdict.html")
    for line in failures(verdict):
        print(f"  {line}")


if __name__ == "__main__":
    run(main)
