"""Judge a language model of any kind: bounds, the champion, the folder that would be served.

What training reported on rows it never saw is held against floors, ceilings and the champion's on the same rows: where
those have changed since the champion was registered, it is measured anew on today's. What went on pre-training, or was
tuned to instructions, has been measured by a stage of its own, beside the model it began from. The folder is loaded
with plain transformers in a process that has nothing of this repository. A closed gate is a result (exit 0):
verdict.json for the promotion, verdict.html for a person.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from tasks import flavor, fresh, page, track
from tasks.command import run
from tasks.comparable import NotComparable, OtherRows, Rescored, paired
from tasks.files import new_folder, read_json, write_json, write_text
from tasks.judge import Check, compare, failures, finite, merged, number, rule_faults
from tasks.remeasure import remeasure
from tasks.settings import SettingsError, read

__all__ = ["MEASURED", "PARTS", "evaluated", "gate_language", "judge_language", "registered", "rules_for"]

PARTS = {
    "pretrain": "heldout",
    "finetune": "dev",
    "distill": "dev",
    "mix": "dev",
    "chain": "dev",
    "several": "dev",
    "specific": "dev",
    "tasks": "dev",
    "relevance": "dev",
    "languages": "dev",
    "continued": "evaluation",
    "instructed": "evaluation",
}  # kind -> what counts in metrics.json
# Kinds: by one method, by a mix, of a chain, of several teachers, of a trained student that goes on with a task; one
# task of a student of several tasks, by reasons, of a language more.
STUDENTS = ("distill", "mix", "chain", "several", "specific", "tasks", "relevance", "languages")
MEASURED = ("continued", "instructed")  # kinds that a stage of their own has measured; their `data` is its folder
ANSWERS = ("predictions.parquet", "extra/predictions.parquet")  # of a fine-tuned model, of a student
KEYS = ("floors", "ceilings", "improvement")
LOWER_IS_BETTER = ("loss", "perplexity", "error", "lm", "sp", "cls", "clr")  # ends of names: targets name their loss


def registered(kind: str, name: str) -> str:
    """The registered model of a name: students are apart from what they learn from."""
    return track.check_name(f"{'distill' if kind in STUDENTS else 'language'}-{name}")


def rules_for(gates: Mapping, kind: str, name: str) -> dict:
    """`gates.<kind>` with `gates.<name>` merged over it, key by key; a null takes a rule away.

    Raises:
        SettingsError: a key that does not exist, or a bound that is not a number; names all of them.
    """
    if kind not in PARTS:
        raise SettingsError(f"there is no kind {kind!r} of language model; there are {', '.join(PARTS)}")
    if name in PARTS:
        raise SettingsError(f"a language model cannot be called {name!r}: below `gates` that is a kind of them")
    rules = merged(gates.get(kind) or {}, gates.get(name) or {})
    faults = rule_faults(rules, KEYS)
    wanted = rules.get("improvement")
    if wanted and (not isinstance(wanted.get("metric"), str) or number(wanted.get("margin")) is None):
        faults.append(f"improvement needs a metric and a margin that is a number, got {wanted!r}")
    if faults:
        raise SettingsError(f"gates for {name}: {'; '.join(faults)}")
    return rules


def gate_language(gates: Mapping, kind: str, name: str, made: Path, data: Path, out: Path) -> dict:
    """Write `out`/verdict.json and verdict.html, and return the verdict.

    Args:
        gates: the `language.gates` or `distill.gates` part of params.yaml.
        kind: a key of PARTS.
        name: of the recipe, the task, the method or the mix.
        made: folder that tasks/pretrain.py, tasks/finetune.py or a unit of distillation wrote.
        data: the tokens or the ingested set that it was made of; read only where the champion's rows were others. Of
            kinds in MEASURED the folder of their evaluation.

    Raises:
        SettingsError: the gate's settings cannot be applied.
        OtherRows: `data` changed since the candidate was measured, or measured another model.
        RegistryUnreachable: whether there is a champion cannot be known.
        PoisonedFolder: the model's folder could run code when read.
        ValueError, OSError: a file is missing or unreadable.
    """
    rules = rules_for(gates, kind, name)
    model = registered(kind, name)
    found, about = read_json(made / "metrics.json"), read_json(made / "run.json")
    config = flavor.check_folder(made / "model")
    candidate = flavor.content(made / "model")
    if kind in MEASURED:
        told = evaluated(data, candidate)
        found |= read_json(data / "metrics.json")
        about |= {"fingerprint": told["fingerprint"], "evaluated_rows": told["rows"]}
    faults: dict[str, str] = {}
    try:
        [(_, seen)] = fresh.recall(made / "model") if config else [({}, {})]
    except fresh.FreshProcessFailed as error:
        faults["the folder loads"], seen = str(error), {}
    against = None
    if champion := track.by_alias(model, "champion"):
        try:
            anew = partial(remeasure, evaluated=data) if kind in MEASURED else partial(rescore, made=made, data=data)
            against = _champion(champion, candidate, about["fingerprint"], PARTS[kind], made, anew)
        except (OtherRows, track.RegistryUnreachable):
            raise  # nothing can be said about the candidate
        except (ValueError, LookupError, RuntimeError) as error:
            faults["the champion reads the same rows"] = f"{type(error).__name__}: {str(error)[:400]}"
            against = {"version": champion.number, "same": False, "rows": "none", "reason": "it cannot be read"}
    size = sum(file.stat().st_size for file in (made / "model").rglob("*") if file.is_file()) / 2**20
    evidence = {
        "part": PARTS[kind],
        "metrics": found.get(PARTS[kind]) or {},
        "model": {
            "size_mb": size,
            **{key: about[key] for key in ("parameters", "seconds", "ratio") if key in about},
            **_beside_teacher(found),
            **_beside_old(found),
        },
        "export": found.get("export") or {},
        "seen": seen,
        "faults": faults,
        "champion": against,
    }
    checks = judge_language(rules, evidence)
    verdict = {
        "name": name,
        "kind": kind,
        "model": model,
        "passed": all(check.passed is not False for check in checks),
        "checks": [asdict(check) for check in checks],
        "candidate": candidate,
        "champion": champion and {"content": champion.tags.get("content_sha256")} | _told(against),
        "metrics": {PARTS[kind]: evidence["metrics"]},
        "model_metrics": evidence["model"],
        "slices": [],
        "rows": about["evaluated_rows"],
        "rules": rules,
    }
    drawn = [made / "curve.png", made / "mix.png", *sorted((made / "extra").glob("*.png"))]
    drawn += sorted((data / "extra").glob("*.png")) if kind in MEASURED else []
    pictures = {picture.name: picture.read_bytes() for picture in drawn if picture.is_file()}
    with new_folder(out) as folder:
        write_json(folder / "verdict.json", verdict)
        write_text(folder / "verdict.html", page.page(verdict, pictures))
    return verdict


def rescore(champion: Path, made: Path, data: Path) -> Rescored:
    """See tasks/rescore.py, which reads models: seconds that a gate without an older champion does not need."""
    from tasks import rescore as unit

    return unit.rescore(champion, made, data)


def evaluated(folder: Path, candidate: str) -> dict:
    """The run.json of an evaluation.

    Raises:
        OtherRows: it is of another model.
    """
    about = read_json(folder / "run.json")
    if about["model"]["content"] != candidate:
        raise OtherRows(f"{folder} measured {about['model']['content'][:12]}, the model is {candidate[:12]} now; run "
                        f"its evaluation again before its gate")  # fmt: skip
    return about


def _beside_teacher(found: Mapping) -> dict:
    """Of a student: the share of its teacher that it keeps, and its milliseconds a row."""
    times = found.get("latency_ms")
    return {} if times is None else {"kept": found["kept"], "latency_ms": times["student"]}


def _beside_old(found: Mapping) -> dict:
    """Of a model that learned a language more: what the worst of its old ones lost, in nats a token."""
    old = (found.get("old") or {}).values()
    return {"forgotten": max(told["after"] - told["before"] for told in old)} if old else {}


def judge_language(rules: Mapping, evidence: Mapping) -> list[Check]:
    """Every check of a gate; it is open when none of them failed.

    Args:
        rules: from `rules_for`.
        evidence: what `gate_language` gathered: `part` and its `metrics` {name: value}, `model` {name: value}, `export`
            of metrics.json, `seen` by tasks/recall.py, `champion`, `faults` {what: why}.
    """
    part, known = evidence["part"], evidence["metrics"] | evidence["model"]
    checks = [Check(name, False, reason=reason) for name, reason in sorted(evidence["faults"].items())]
    if not evidence["metrics"]:
        checks.append(Check(f"{part}: metrics", False, reason=f"metrics.json has nothing below {part!r}"))
    checks += [finite(f"{part}: {metric}", value) for metric, value in sorted(evidence["metrics"].items())]
    for side in ("floors", "ceilings"):
        for metric, bound in sorted((rules.get(side) or {}).items()):
            checks.append(compare(metric, known.get(metric), number(bound), side))
    checks += _facts(evidence["export"], evidence["seen"])
    checks += _improvement(rules.get("improvement"), evidence)
    return checks


def _facts(export: Mapping, seen: Mapping) -> list[Check]:
    """The exported folder is the trained model, and plain transformers reads all of it."""
    off = number(export.get("max_difference"))
    reason = f"largest difference {off:.2g}" if off is not None else "metrics.json does not say how far it is off"
    checks = [Check("export equals the trained model", export.get("equal") is True, off, None, reason)]
    if not seen:  # a model that transformers has no class for, or one that could not be asked, which is a fault above
        return checks
    faults = [f"{what} {', '.join(seen[what])}" for what in ("missing", "unexpected", "mismatched") if seen[what]]
    told = "; ".join(faults) or "every tensor has its place"
    checks.append(Check(f"loads as {seen['class']}", not faults, reason=told))
    # A class without the pooler of its body is common; anything else that AutoModel has to make up is a fault.
    lacking = [name for name in seen["plain_missing"] if not name.startswith("pooler.")]
    other = (("lacks", lacking), ("changed", seen["plain_other"]))
    faults = [f"{what} {', '.join(names)}" for what, names in other if names]
    told = "; ".join(faults) or "the same tensors"
    checks.append(Check(f"loads with AutoModel, as {seen['plain_class']}", not faults, reason=told))
    return checks


def _improvement(wanted: Mapping | None, evidence: Mapping) -> list[Check]:
    champion, part = evidence["champion"], evidence["part"]
    if not wanted:
        return [Check("improvement", None, reason="the settings ask for no comparison with the champion")]
    if champion is None:
        return [Check("improvement", True, reason="there is no champion yet: nothing to compare with")]
    if champion["same"]:
        told = f"these bytes are already the champion, version {champion['version']}"
        return [Check("improvement", True, reason=told)]
    metric, margin = wanted["metric"], number(wanted["margin"])
    name = f"{part}: {metric} against version {champion['version']}"
    if champion["rows"] == "none":
        return [Check(name, None, reason=f"cannot be compared: {champion['reason']}")]
    ours, theirs = number(evidence["metrics"].get(metric)), number(champion["metrics"].get(metric))
    if ours is None or theirs is None:
        return [Check(name, False, None, margin, f"candidate {ours}, champion {theirs}: there is nothing to compare")]
    better = theirs - ours if metric.endswith(LOWER_IS_BETTER) else ours - theirs
    passed = better >= margin
    text = f"{ours:.6g}, the champion has {theirs:.6g}: better by {better:+.4g}"
    text += f", which {'is not' if passed else 'is'} below {margin:+.4g}"
    if champion["rows"] == "anew":
        text += "; the champion was measured anew, as the rows changed since it was registered"
    if pairs := champion.get("paired"):
        text += (f"; of {pairs['rows']} rows {pairs['only_candidate']} are right in the candidate only, "
                 f"{pairs['only_champion']} in the champion only (p = {pairs['p']:.2g})")  # fmt: skip
    return [Check(name, passed, better, margin, text)]


def _champion(champion, candidate: str, rows: str, part: str, made: Path, anew: Callable[[Path], Rescored]) -> dict:
    """What the champion does on the candidate's rows.

    Args:
        anew: measures a model's folder on them.

    Returns:
        version, same (the same bytes as the candidate), metrics, and `rows`: "registered" (measured on these rows when
        it was registered), "anew" (now, with `paired` where every row has an answer) or "none" (`reason`: why not).
    """
    known = {"version": champion.number, "same": champion.tags.get("content_sha256") == candidate}
    if known["same"] or champion.tags.get("rows_sha256") == rows:
        measured = track.run_data(champion.run)[1]
        found = {name.removeprefix(f"{part}."): value for name, value in measured.items() if name.startswith(part)}
        return known | {"rows": "registered", "metrics": found}
    with TemporaryDirectory() as place:
        files = track.model_files(champion, Path(place) / "version") / "model"
        flavor.check_folder(files)
        if flavor.content(files) != champion.tags.get("content_sha256"):
            return known | {"rows": "none", "reason": f"the files of {champion.uri} are not those that were registered"}
        try:
            found = anew(files)
        except NotComparable as error:
            return known | {"rows": "none", "reason": str(error)}
    told = known | {"rows": "anew", "metrics": found.metrics}
    answers = next((made / file for file in ANSWERS if (made / file).is_file()), None)
    if found.answers is not None and answers:
        told["paired"] = paired(pl.read_parquet(answers), found.answers)
    return told


def _told(champion: Mapping) -> dict:
    """What the verdict says of the champion."""
    return {key: value for key, value in champion.items() if key != "same"}


def main(address: str, kind: str, name: str, made: str, data: str, out: str) -> None:
    """python -m tasks.gate_language params.yaml:language.gates pretrain|finetune|distill|mix|... NAME MADE DATA OUT"""
    verdict = gate_language(read(address), kind, name, Path(made), Path(data), Path(out))
    state = "open" if verdict["passed"] else "CLOSED"
    print(f"gate of {verdict['model']}: {state}, {len(verdict['checks'])} checks; see {out}/verdict.html")
    for line in failures(verdict):
        print(f"  {line}")


if __name__ == "__main__":
    run(main)
