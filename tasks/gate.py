"""Judge a candidate on raw rows through the code that would serve it: a verdict to keep, open or closed.

The candidate is packed as it would be registered, loaded, and fed raw test rows; the champion scores the same rows in a
fresh process. A closed gate is a result (exit 0): verdict.json for the next stage, verdict.html for a person. The unit
fails only when it cannot judge: artefacts that cannot be read, a registry that does not answer.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file

from models import metrics
from tasks import bundle, fresh, page, plots, track
from tasks.batches import load_split
from tasks.checkpoint import tensor_digest
from tasks.command import run
from tasks.files import digest, new_folder, read_json, write_json, write_text
from tasks.judge import PER_TASK, attempts, failures, judge, rules_for
from tasks.labels import read_tasks
from tasks.settings import read
from tasks.texts import text_of
from tasks.train import labels_of

__all__ = ["gate"]

MAX_ROWS = 50_000
LARGEST = 20  # values of a slice column, by rows
REPEATS = 30
DRAWS = 400
SEED = 7
TEXTS = 512  # rows whose texts are encoded one by one, or for the speed
TEXT_ALIKE = 1e-3  # of a standard deviation
ALIKE = 1e-5  # two runs of the same weights: batches of another size add in another order


def gate(
    gates: Mapping, name: str, ingest: Path, features: Path, backbone: Path, out: Path, head: Path | None = None,
    vectors: Path | None = None,
) -> dict:  # fmt: skip
    """Write `out`/verdict.json and verdict.html, and return the verdict.

    Args:
        gates: the `gates` part of params.yaml.
        name: "backbone", or the task of `head`.
        vectors: folder of tasks/vectors.py that the backbone was trained with; None is none.

    Raises:
        SettingsError: the gate's settings cannot be applied.
        RegistryUnreachable: whether there is a champion cannot be known.
        ValueError, OSError: an artefact is missing, unreadable or poisoned.
    """
    rules = rules_for(gates, name)
    model_name = track.check_name(f"recommend-{name}")
    with TemporaryDirectory() as place:
        packed = Path(place) / "packed"
        packed.mkdir()
        content = bundle.pack(backbone, head, packed)
        champion = track.by_alias(model_name, "champion")
        evidence, pictures = _gather(rules, packed, content, champion, ingest, features, backbone, head, vectors)
    checks = judge(rules, evidence)
    verdict = {
        "name": name,
        "model": model_name,
        "passed": all(check.passed is not False for check in checks),
        "checks": [asdict(check) for check in checks],
        "candidate": content,
        "champion": champion
        and {
            "version": champion.number,
            "content": champion.tags.get("content_sha256"),
            "slices": (evidence["champion"] or {}).get("slices", []),
        },
        "intervals": (evidence["champion"] or {}).get("intervals", {}),
        "reliability": evidence["reliability"],
        "metrics": evidence["tasks"],
        "model_metrics": evidence["model"],
        "slices": evidence["slices"],
        "rows": evidence["rows"],
        "rules": rules,
    }
    with new_folder(out) as folder:
        write_json(folder / "verdict.json", verdict)
        for picture, content in pictures.items():
            (folder / picture).write_bytes(content)
        write_text(folder / "verdict.html", page.page(verdict, pictures))
    return verdict


def _gather(
    rules, packed: Path, content: str, champion, ingest: Path, features: Path, backbone: Path, head: Path | None,
    vectors: Path | None,
):  # fmt: skip
    """Everything the rules are applied to; what cannot be gathered is a fault, and a fault closes the gate."""
    faults: dict[str, str] = {}

    attempt = attempts(faults, fatal=(track.RegistryUnreachable, OSError))
    about = read_json(backbone / "backbone.json")
    if head:
        tuned = read_json(head / "head.json")
        declared = {tuned["task"]: tuned["declaration"]}
    else:
        declared = {task: about["task_declarations"][task] for task in about["tasks"]}  # in the order of the outputs
    tasks = list(declared)
    manifest = read_json(features / "manifest.json")
    labels = labels_of(read_tasks(declared, ingest, manifest), "test", ingest, features).numpy()
    chosen, asked = _sample(labels, rules.get("max_rows", MAX_ROWS))
    labels, rows = labels[chosen], pl.read_parquet(features / "rows" / "test.parquet")[chosen]
    evidence = {
        "reported": _reported(head or backbone, tasks, bool(head)),
        "tasks": {task: {} for task in tasks},
        "model": {"size_mb": _size_mb(packed)},
        "head": read_json(head / "proof.json") if head else None,
        "facts": {},
        "slices": [],
        "reliability": {},
        "champion": None,
        "faults": faults,
        "rows": len(chosen),
    }
    model = attempt("the model loads", lambda: bundle.load(packed), None)
    if model is None:
        return evidence, {}
    raw = rows.select(list(model.columns))
    evidence["model"] |= attempt("latency", lambda: _latency(model, raw), {})
    evidence["facts"] |= attempt("encoding", lambda: _served_as_trained(model, raw, features, vectors, chosen), {})
    if model.text is not None:  # from here on, texts are not what is judged: their numbers are known
        attempt("numbers of texts", lambda: _remember(model, raw, features, vectors, chosen), None)
    scores = attempt("the model scores raw rows", lambda: model.score(model.frame(raw.to_pandas())).to_numpy(), None)
    if scores is not None:
        shown = {task: _asked(scores[:, i], labels[:, i]) for i, task in enumerate(tasks)}
        evidence["tasks"] = {
            task: attempt(f"{task}: metrics", lambda s=s: measure(*s), {}) for task, s in shown.items()
        }
        evidence["slices"] = attempt("slices", lambda: _slices(rules, rows, labels, scores, tasks), [])
        evidence["reliability"] = attempt("calibration", lambda: _reliability(shown), {})
        if len(chosen) == asked:
            evidence["facts"] |= attempt("reported", lambda: _as_reported(evidence), {})
    evidence["facts"] |= attempt("proof", lambda: _proof(model, backbone, head, about), {})
    drawn = lambda: _pictures(shown, evidence["reliability"])
    pictures = attempt("pictures", drawn, {}) if scores is not None else {}
    if champion and scores is not None:
        compare = lambda: _against(champion, content, rules, rows, labels, scores, tasks, raw)
        unknown = {"same": False, "version": champion.number, "intervals": {}, "tasks": tasks}
        evidence["champion"] = attempt("the champion scores the same rows", compare, unknown)
        if evidence["champion"]["intervals"]:
            wanted = rules["improvement"]
            pictures["difference.png"] = plots.difference(
                evidence["champion"]["intervals"], wanted["margin"], wanted["metric"]
            )
    return evidence, pictures


def measure(probability: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """All metrics of one task on rows where it is asked."""
    p, y = torch.from_numpy(probability), torch.from_numpy(label)
    found = {metric: float(getattr(metrics, metric)(p, y)) for metric in PER_TASK}
    return found | {"rows": len(label), "positives": int(label.sum())}


def _sample(labels: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Row numbers on which some task asks, at most so many, in order, the same in every run; and how many there are."""
    asked = np.flatnonzero((labels >= 0).any(axis=1))
    if len(asked) <= most:
        return asked, len(asked)
    return np.sort(np.random.default_rng(SEED).choice(asked, most, replace=False)), len(asked)


def _asked(probability: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    here = label >= 0  # false for NaN as well
    return np.ascontiguousarray(probability[here]), np.ascontiguousarray(label[here])


def _reported(folder: Path, tasks: list[str], of_head: bool) -> dict[str, dict]:
    found = read_json(folder / "metrics.json")
    return {task: (found if of_head else found.get(task)) or {} for task in tasks}


def _size_mb(packed: Path) -> float:
    return sum(path.stat().st_size for path in (packed / "bundle").rglob("*") if path.is_file()) / 2**20


def _latency(model, raw: pl.DataFrame) -> dict[str, float]:
    """Milliseconds of one raw row, and rows per second of a batch, through the served `predict`."""
    many = raw.head(raw.height if model.text is None else TEXTS).to_pandas()
    times = []
    for index in range(REPEATS + 1):
        place = index % len(many)
        started = time.perf_counter()
        model.predict(None, many.iloc[place : place + 1])
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    model.predict(None, many)
    return {"latency_ms": median(times[1:]) * 1000, "rows_per_second": len(many) / (time.perf_counter() - started)}


def _served_as_trained(
    model, raw: pl.DataFrame, features: Path, vectors: Path | None, chosen: np.ndarray
) -> dict[str, tuple[bool, str]]:
    """The served encoder gives the very numbers that the model was trained and tested on.

    Of texts, of which so many rows are looked at, numbers that are equal but for the order of sums: a batch of another
    length adds in another order.
    """
    facts = {}
    if model.text is not None:
        some = np.linspace(0, len(raw) - 1, min(TEXTS, len(raw))).astype(int)
        numbers = load_split(features, "test", vectors)[1][chosen[some]][:, len(model.encoder.numerical) :]
        far = float(np.abs(model.text(model.frame(raw[some].to_pandas())) - numbers).max())
        facts["texts served as trained"] = far <= TEXT_ALIKE, f"{len(some)} rows' numbers differ by at most {far:.2g}"
    here = model.encoder.transform(model.frame(raw.to_pandas()))
    then = [array[chosen] for array in load_split(features, "test")]
    off = sum(int((a != b).any(axis=1).sum()) for a, b in zip(here, then, strict=True))
    reason = (
        "raw rows are encoded as in training"
        if not off
        else f"{off} of {len(chosen)} raw rows are encoded unlike in training"
    )
    return facts | {"served as trained": (off == 0, reason)}


def _remember(model, raw: pl.DataFrame, features: Path, vectors: Path, chosen: np.ndarray) -> None:
    """Give the served model the numbers of the texts of these rows, as training read them."""
    joined = load_split(features, "test", vectors)[1]
    for columns, places in zip(model.text.texts, joined.index[chosen].T, strict=True):
        texts = raw.select(text_of(columns)).to_series()
        model.text.known |= {text: joined.table[place] for text, place in zip(texts, places, strict=True) if place}


def _as_reported(evidence: dict) -> dict[str, tuple[bool, str]]:
    """The test metrics that training wrote are those of the served model on the same rows."""
    # Not the AUC: where predictions almost tie, it jumps with the last digit.
    off = max(
        abs(evidence["tasks"][task]["logloss"] - found["logloss"]) for task, found in evidence["reported"].items()
    )
    return {"metrics are as training reported them": (off <= ALIKE, f"logloss differs by at most {off:.2g}")}


def _proof(model, backbone: Path, head: Path | None, about: dict) -> dict[str, tuple[bool, str]]:
    """What must be true of the artefacts, whatever the metrics are."""
    facts = {}
    weights = load_file(backbone / "model.safetensors")
    sha = digest(backbone / "model.safetensors")
    tensors = weights | (
        {f"head.{key}": value for key, value in load_file(head / "head.safetensors").items()} if head else {}
    )
    broken = sorted(name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all())
    facts["weights are finite"] = not broken, ", ".join(broken) or f"{len(tensors)} tensors"
    facts["backbone is the recorded one"] = sha == about["sha256"], f"{sha[:12]}, recorded {str(about['sha256'])[:12]}"
    probe = load_file(backbone / "probe.safetensors")
    with torch.inference_mode():
        off = float((model.model.score(probe["categorical"], probe["numerical"]) - probe["prediction"]).abs().max())
    facts["probe rows are answered as recorded"] = (
        off <= ALIKE,
        f"largest difference {off:.2g} on {len(probe['prediction'])} rows",
    )
    if head is None:
        return facts
    tuned, proof = read_json(head / "head.json"), read_json(head / "proof.json")
    facts["head was tuned on this backbone"] = (
        tuned["backbone"] == sha,
        "the same weights"
        if tuned["backbone"] == sha
        else f"tuned on {tuned['backbone'][:12]}, the backbone is now {sha[:12]}; "
        f"run `dvc repro prompt@{tuned['task']}`",
    )
    facts["head was tuned on these features"] = (
        tuned["features"] == (now := digest(backbone / "encoder.json")),
        f"encoder {tuned['features'][:12]}, now {now[:12]}",
    )
    prints = {name: tensor_digest(value) for name, value in weights.items()}
    moved = sorted(
        name for name, value in proof["backbone_after"].items() if value != proof["backbone_before"].get(name)
    )
    moved += sorted(name for name, value in prints.items() if value != proof["backbone_before"].get(name))
    facts["tuning left every backbone tensor as it was"] = (
        bool(proof["backbone_unchanged"]) and not moved and proof["backbone_gradients"] == 0,
        ", ".join(moved) or f"{len(prints)} tensors, {proof['backbone_gradients']} gradients",
    )
    facts["old predictions are bit-equal"] = (
        bool(proof["old_predictions_equal"]) and proof["old_predictions_before"] == proof["old_predictions_after"],
        f"{proof['probe_rows']} probe rows before and after tuning",
    )
    own = load_file(head / "head.safetensors")
    foreign = sorted(name for name, count in proof["trained"].items() if name not in own or own[name].numel() != count)
    facts["only the head's own parameters were trained"] = (
        not foreign and sum(proof["trained"].values()) == proof["trained_parameters"],
        ", ".join(foreign) or f"{proof['trained_parameters']} parameters",
    )
    return facts


def _slices(rules: Mapping, rows: pl.DataFrame, labels: np.ndarray, scores: np.ndarray, tasks: list[str]) -> list[dict]:
    """Metrics of each value of each slice column; `price_band` is the quarter of the price, cheapest first."""
    found = []
    for column in sorted(rules.get("slices") or {}):
        if column == "price_band" and "price_band" not in rows.columns and "price" in rows.columns:
            rows = rows.with_columns(price_band=_quarter(rows["price"]))
        for index, task in enumerate(tasks):
            if column not in rows.columns:
                found.append({"task": task, "column": column, "value": None, "absent": True})
                continue
            asked = labels[:, index] >= 0
            counts = (
                rows[column].filter(asked).value_counts(sort=True).sort(["count", column], descending=[True, False])
            )
            for value in counts[column].head(LARGEST).to_list():
                here = asked & _equal(rows[column], value)
                part = _asked(scores[here, index], labels[here, index])
                both = 0 < part[1].sum() < len(part[1])
                found.append({"task": task, "column": column, "value": "missing" if value is None else str(value),
                              "of": len(counts), "rows": len(part[1]), "positives": int(part[1].sum())}
                             | ({metric: measure(*part)[metric] for metric in PER_TASK} if both else {}))  # fmt: skip
    return found


def _equal(column: pl.Series, value: object) -> np.ndarray:
    return (column.is_null() if value is None else (column == value).fill_null(False)).to_numpy()


def _quarter(price: pl.Series) -> pl.Series:
    borders = [price.quantile(q, "nearest") for q in (0.25, 0.5, 0.75)]
    band = pl.Series(np.searchsorted(borders, price.fill_null(0).to_numpy()))
    names = {place: f"{place + 1} of 4" for place in range(4)}
    return pl.DataFrame({"price": price, "band": band}).select(
        pl.when(pl.col("price").is_null()).then(None).otherwise(pl.col("band").replace_strict(names))
    ).to_series()  # fmt: skip


def _against(champion, content: str, rules: Mapping, rows: pl.DataFrame, labels, scores, tasks: list[str], raw) -> dict:
    """Candidate minus champion on the same rows: per task (low, estimate, high), resampling whole users."""
    known = {
        "version": champion.number,
        "same": champion.tags.get("content_sha256") == content,
        "intervals": {},
        "tasks": tasks,
        "slices": [],
    }
    wanted = rules.get("improvement")
    if known["same"] or not wanted:
        return known
    before, _ = fresh.score(champion.uri, rows)
    known["tasks"] = tasks if before.columns == ["probability"] else before.columns
    for index, task in enumerate(tasks):
        if task not in known["tasks"]:
            continue
        theirs = before["probability" if "probability" in before.columns else task].to_numpy()
        known["slices"] += _slices(rules, rows, labels[:, [index]], theirs[:, None], [task])
        here = labels[:, index] >= 0
        sides = [
            torch.from_numpy(np.ascontiguousarray(side[here])) for side in (scores[:, index], theirs, labels[:, index])
        ]
        users = torch.from_numpy(rows["user"].to_numpy()[here].astype(np.int64))
        found = metrics.paired_bootstrap(*sides, wanted["metric"], users, DRAWS, wanted["confidence"], SEED)
        better = (found.low, found.difference, found.high)
        # A logloss is better when lower: champion minus candidate, so that positive always means better.
        known["intervals"][task] = better if wanted["metric"] == "auc" else tuple(-value for value in reversed(better))
    return known


def _reliability(shown: dict) -> dict[str, dict[str, list[float]]]:
    """Task -> predicted, observed, rows of each bin: what a diagram of calibration is drawn from."""
    found = {task: metrics.reliability(*map(torch.from_numpy, sides)) for task, sides in shown.items()}
    return {task: {name: part.tolist() for name, part in bins.items()} for task, bins in found.items()}


def _pictures(shown: dict, reliability: dict) -> dict[str, bytes]:
    tensors = {task: tuple(torch.from_numpy(part) for part in sides) for task, sides in shown.items()}
    return {
        "roc.png": plots.roc(
            {task: (*metrics.roc_curve(*sides), float(metrics.auc(*sides))) for task, sides in tensors.items()}
        ),
        "reliability.png": plots.reliability({task: tuple(bins.values()) for task, bins in reliability.items()}),
    }


def main(
    address: str, name: str, ingest: str, features: str, vectors: str, backbone: str, out: str, head: str | None = None
) -> None:
    """python -m tasks.gate params.yaml:gates NAME INGEST FEATURES VECTORS BACKBONE OUT [HEAD]"""
    folders = map(Path, (ingest, features, backbone, out))
    verdict = gate(read(address), name, *folders, Path(head) if head else None, Path(vectors))
    state = "open" if verdict["passed"] else "CLOSED"
    print(f"gate of {name}: {state}, {len(verdict['checks'])} checks on {verdict['rows']} rows; see {out}/verdict.html")
    for line in failures(verdict):
        print(f"  {line}")


if __name__ == "__main__":
    run(main)
