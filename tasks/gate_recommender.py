"""Judge a recommender of items on the lists that it serves: bounds, popularity, and the champion on the same requests.

The packed candidate is loaded and asked again; popularity answered the same requests when it was trained; the champion
answers them in a fresh process. Differences are judged by the low end of a paired bootstrap over users. A closed gate
is a result (exit 0): verdict.json for the promotion, verdict.html for a person.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import torch

from models.recommend._summary import compare
from tasks import bundle, fresh, page, plots, track
from tasks.command import run
from tasks.files import new_folder, read_json, write_json, write_text
from tasks.judge import Check, attempts, failures, finite, merged, number, rule_faults
from tasks.judge import compare as bounded
from tasks.judge_lists import judge_lists
from tasks.recommender import kind_of, load, rows_digest
from tasks.settings import SettingsError, read

__all__ = ["gate_recommender", "judge_recommender", "rules_for"]

KEYS = ("floors", "ceilings", "above", "improvement")
COMPARED = ("metric", "margin", "confidence")
OF_MODEL = ("latency_ms", "size_mb", "lists_per_second")
SAMPLES, TIMED = 1000, 30


def rules_for(gates: Mapping, name: str) -> dict:
    """`gates.default` with `gates.<name>` merged over it, key by key; a null takes a rule away.

    Raises:
        SettingsError: a key that does not exist, or a bound that is not a number; names all of them.
    """
    rules = merged(gates.get("default") or {}, gates.get(name) or {})
    faults = rule_faults(rules, KEYS)
    compared = {f"above.{floor}": wanted for floor, wanted in (rules.get("above") or {}).items()}
    faults += [f"{place}: nothing is measured beside a recommender but popularity" for place in compared
               if place != "above.popularity"]  # fmt: skip
    if rules.get("improvement"):
        compared["improvement"] = rules["improvement"]
    for place, wanted in compared.items():
        fits = isinstance(wanted, Mapping) and isinstance(wanted.get("metric"), str) and set(wanted) == set(COMPARED)
        if not fits or number(wanted["margin"]) is None or not 0 < (number(wanted["confidence"]) or 0) < 1:
            faults.append(f"{place} needs {', '.join(COMPARED)} (a number in 0 to 1), got {wanted!r}")
    if faults:
        raise SettingsError(f"recommenders.gates for {name}: {'; '.join(faults)}")
    return rules


def gate_recommender(gates: Mapping, entries: Mapping, name: str, ingest: Path, made: Path, out: Path) -> dict:
    """Write `out`/verdict.json and verdict.html, and return the verdict.

    Args:
        gates: the `recommenders.gates` part of params.yaml.
        entries: the `recommenders.models` part.
        name: of the entry.
        ingest: its ingested data set.
        made: folder of tasks/recommender.py.

    Raises:
        SettingsError: the gate's settings cannot be applied.
        RegistryUnreachable: whether there is a champion cannot be known.
        ValueError, OSError: a file is missing, unreadable or poisoned.
    """
    rules, model = rules_for(gates or {}, name), track.check_name(f"recommender-{name}")
    about, found = read_json(made / "run.json"), read_json(made / "metrics.json")
    content = bundle.sha256(made / "packed/bundle/manifest.json")
    champion = track.by_alias(model, "champion")
    kind, method = kind_of(entries[name]["method"], name)
    family = import_module(f"tasks.recommenders.{kind}").Family(name, method, entries[name], ingest)
    requests, log, at = family.rows("test"), family.log(), tuple(about["at"])
    evidence = {"metrics": found["test"], "faults": {}, "facts": {}, "model": {}, "intervals": {}, "champion": None}
    attempt = attempts(evidence["faults"], fatal=(track.RegistryUnreachable, OSError))
    same = rows_digest(requests) == about["requests_sha256"]
    evidence["facts"]["measured on these requests"] = same, "the same" if same else "the data changed: train it again"
    served = attempt("the model loads", lambda: load(made / "packed"), None)
    mine = None
    if served is not None:
        evidence["model"] = attempt("latency", lambda: _speed(served, requests, made), {})
        mine = attempt(
            "the model answers", lambda: judge_lists(served.lists(requests, max(at)), requests, log, at), None
        )
    if mine is not None:
        off = max(abs(mine[1][key] - value) for key, value in found["test"].items() if value is not None)
        told = f"its metrics differ by at most {off:.2g}"
        evidence["facts"]["metrics are as training reported them"] = off <= 1e-9, told
        evidence["intervals"] |= attempt("above", lambda: _above(rules, requests, mine[0], made), {})
        if champion:
            known = lambda: _against(champion, content, rules, requests, log, at, mine[0])
            unknown = {"version": champion.number, "same": False, "interval": None}
            evidence["champion"] = attempt("the champion answers the same requests", known, unknown)
    checks = judge_recommender(rules, evidence)
    intervals = dict(evidence["intervals"])
    if evidence["champion"] and evidence["champion"]["interval"]:
        intervals[f"version {champion.number}"] = evidence["champion"]["interval"]
    verdict = {
        "name": name,
        "model": model,
        "passed": all(check.passed is not False for check in checks),
        "checks": [asdict(check) for check in checks],
        "candidate": content,
        "champion": champion and {"version": champion.number, "content": champion.tags.get("content_sha256")},
        "intervals": intervals,
        "metrics": found,
        "model_metrics": evidence["model"],
        "slices": [],
        "rows": about["requests"],
        "rules": rules,
    }
    pictures = {picture.name: picture.read_bytes() for picture in sorted((made / "extra").glob("*.png"))}
    if intervals:
        wanted = rules.get("improvement") or rules["above"]["popularity"]
        pictures["difference.png"] = plots.difference(intervals, wanted["margin"], wanted["metric"])
    with new_folder(out) as folder:
        write_json(folder / "verdict.json", verdict)
        write_text(folder / "verdict.html", page.page(verdict, pictures))
    return verdict


def judge_recommender(rules: Mapping, evidence: Mapping) -> list[Check]:
    """Every check of a gate; it is open when none of them failed.

    Args:
        rules: from `rules_for`.
        evidence: what `gate_recommender` gathered: `metrics` and `model` {name: value}, `facts` {what must be true:
            (whether, reason)}, `intervals` {floor: (low, middle, high)}, `champion`, `faults` {what: why}.
    """
    known = evidence["metrics"] | evidence["model"]
    checks = [Check(name, False, reason=reason) for name, reason in sorted(evidence["faults"].items())]
    # Of slices without any true item there is no number: only what all requests have must be one.
    whole = {name: value for name, value in evidence["metrics"].items() if "_" not in name}
    checks += [finite(name, value) for name, value in sorted(whole.items())]
    for side in ("floors", "ceilings"):
        for metric, bound in sorted((rules.get(side) or {}).items()):
            checks.append(bounded(metric, known.get(metric), number(bound), side))
    checks += [Check(name, bool(holds), reason=reason) for name, (holds, reason) in sorted(evidence["facts"].items())]
    for floor, wanted in sorted((rules.get("above") or {}).items()):
        checks.append(_difference(f"{wanted['metric']} above {floor}", wanted, evidence["intervals"].get(floor)))
    return [*checks, _improvement(rules.get("improvement"), evidence["champion"])]


def _improvement(wanted: Mapping | None, champion: Mapping | None) -> Check:
    if not wanted:
        return Check("improvement", None, reason="the settings ask for no comparison with the champion")
    if champion is None:
        return Check("improvement", True, reason="there is no champion yet: nothing to compare with")
    if champion["same"]:
        return Check("improvement", True, reason=f"these bytes are already the champion, version {champion['version']}")
    return _difference(f"{wanted['metric']} against version {champion['version']}", wanted, champion["interval"])


def _difference(name: str, wanted: Mapping, interval: tuple[float, float, float] | None) -> Check:
    margin = number(wanted["margin"])
    if interval is None or None in (numbers := [number(value) for value in interval]):
        return Check(name, False, None, margin, "the comparison gave no finite interval")
    low, middle, high = numbers
    passed = low >= margin
    text = f"{middle:+.4f}, {float(wanted['confidence']):.0%} interval {low:+.4f} to {high:+.4f}"
    return Check(name, passed, low, margin, f"{text}; its low end {'is not' if passed else 'is'} below {margin:+.4f}")


def _speed(served, requests: pl.DataFrame, made: Path) -> dict[str, float]:
    """Milliseconds of one request, lists per second of all of them, and the size of what is served."""
    times = []
    for index in range(TIMED + 1):
        started = time.perf_counter()
        served.lists(requests[index % len(requests)])
        times.append(1000 * (time.perf_counter() - started))
    started = time.perf_counter()
    served.lists(requests)
    size = sum(path.stat().st_size for path in (made / "packed/bundle").rglob("*") if path.is_file()) / 2**20
    rate = len(requests) / (time.perf_counter() - started)
    return {"latency_ms": median(times[1:]), "lists_per_second": rate, "size_mb": size}


def _above(rules: Mapping, requests: pl.DataFrame, mine: pl.DataFrame, made: Path) -> dict[str, tuple]:
    rows = pl.read_parquet(made / "requests.parquet")
    return {floor: _interval(wanted, requests, mine[wanted["metric"]], rows[f"{floor} {wanted['metric']}"])
            for floor, wanted in (rules.get("above") or {}).items()}  # fmt: skip


def _against(champion, content: str, rules: Mapping, requests: pl.DataFrame, log, at, mine: pl.DataFrame) -> dict:
    """Candidate minus champion on the same requests, unless they are the same bytes."""
    known = {"version": champion.number, "same": champion.tags.get("content_sha256") == content, "interval": None}
    if known["same"] or not (wanted := rules.get("improvement")):
        return known
    lists, _ = fresh.score(champion.uri, requests.select("user", "history"))
    theirs, _ = judge_lists(lists, requests, log, at)
    return known | {"interval": _interval(wanted, requests, mine[wanted["metric"]], theirs[wanted["metric"]])}


def _interval(wanted: Mapping, requests: pl.DataFrame, mine: pl.Series, theirs: pl.Series) -> tuple:
    """(low, difference, high); the requests of one user are one draw."""
    both = pl.DataFrame({"user": requests["user"], "mine": mine, "theirs": theirs})
    users = both.group_by("user", maintain_order=True).mean()
    sides = (torch.from_numpy(users[side].to_numpy().astype(np.float64)) for side in ("mine", "theirs"))
    found = compare(*sides, samples=SAMPLES, level=float(wanted["confidence"]))
    return found.low, found.difference, found.high


def main(address: str, name: str, ingest: str, made: str, out: str) -> None:
    """python -m tasks.gate_recommender params.yaml:recommenders NAME INGEST MADE OUT"""
    chosen = read(address)
    verdict = gate_recommender(chosen.get("gates"), chosen["models"], name, Path(ingest), Path(made), Path(out))
    state = "open" if verdict["passed"] else "CLOSED"
    print(f"gate of {verdict['model']}: {state}, {len(verdict['checks'])} checks; see {out}/verdict.html")
    for line in failures(verdict):
        print(f"  {line}")


if __name__ == "__main__":
    run(main)
