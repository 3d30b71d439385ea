"""The rules of a gate: evidence and bounds in, checks out. What is missing, not a number or infinite closes it.

Comparisons with NaN are false and infinity passes every floor, so each value is first turned into a finite number, and
one that cannot be is a failed check with its reason. A rule that nobody can apply (a metric that does not exist) is a
mistake in the settings, not in the model, and is raised.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tasks.settings import SettingsError

__all__ = [
    "PER_TASK", "Check", "attempts", "compare", "failures", "finite", "judge", "merged", "number", "rule_faults",
    "rules_for",
]  # fmt: skip

PER_TASK = ("auc", "logloss", "calibration", "calibration_error")
OF_MODEL = ("latency_ms", "rows_per_second", "size_mb")
OF_HEAD = ("trained_share", "trained_share_with_embeddings", "tuning_share")
LOWER_IS_BETTER = ("logloss", "calibration_error")
KEYS = ("floors", "ceilings", "improvement", "slices", "least_positives", "max_rows")


@dataclass(frozen=True)
class Check:
    """One line of a verdict; `passed` None: not judged, and why not."""

    name: str
    passed: bool | None
    value: float | None = None
    bound: float | None = None
    reason: str = ""


def rules_for(gates: Mapping, name: str) -> dict:
    """`gates.default` with `gates.<name>` merged over it, key by key; a null takes a rule away.

    Raises:
        SettingsError: a key or a metric that does not exist, or a bound that is not a number; names all of them.
    """
    rules = merged(gates.get("default") or {}, gates.get(name) or {})
    faults = [f"there is no rule {key!r}; the rules are {', '.join(KEYS)}" for key in rules if key not in KEYS]
    known = (*PER_TASK, *OF_MODEL, *OF_HEAD)
    bounds = {f"{side}.{metric}": (metric.rpartition(".")[2], bound, known)
              for side in ("floors", "ceilings") for metric, bound in (rules.get(side) or {}).items()}  # fmt: skip
    for column, limits in (rules.get("slices") or {}).items():
        bounds |= {f"slices.{column}.{metric}": (metric, bound, PER_TASK) for metric, bound in limits.items()}
    for place, (metric, bound, allowed) in bounds.items():
        if metric not in allowed:
            faults.append(f"{place}: there is no metric {metric!r}; there are {', '.join(allowed)}")
        if number(bound) is None:
            faults.append(f"{place}: {bound!r} is no number")
    if wanted := rules.get("improvement"):
        if wanted.get("metric") not in ("auc", "logloss"):
            faults.append(f"improvement.metric must be auc or logloss, got {wanted.get('metric')!r}")
        if number(wanted.get("margin")) is None or not 0 < (number(wanted.get("confidence")) or 0) < 1:
            faults.append(f"improvement needs a margin and a confidence between 0 and 1, got {wanted!r}")
    if faults:
        raise SettingsError(f"gates for {name}: {'; '.join(faults)}")
    return rules


def judge(rules: Mapping, evidence: Mapping) -> list[Check]:
    """Every check of a gate; the gate is open when none of them failed.

    Args:
        rules: from `rules_for`.
        evidence: what tasks/gate.py gathered: `tasks` and `reported` {task: metrics}, `model` {metric: value}, `head`
            {metric: value} or None, `facts` {what must be true: (whether, reason)}, `slices`, `champion`, `faults`.
    """
    checks = [Check(name, False, reason=reason) for name, reason in sorted(evidence["faults"].items())]
    for task, found in evidence["reported"].items():
        for metric in ("auc", "logloss", "calibration"):
            checks.append(finite(f"{task}: reported {metric}", found.get(metric)))
    for task, found in evidence["tasks"].items():
        checks += [finite(f"{task}: {metric}", found.get(metric)) for metric in PER_TASK]
    for side in ("floors", "ceilings"):
        for rule, bound in sorted((rules.get(side) or {}).items()):
            checks += _bounded(rule, number(bound), side, rules[side], evidence)
    checks += [Check(name, bool(holds), reason=reason) for name, (holds, reason) in sorted(evidence["facts"].items())]
    checks += _slices(rules, evidence["slices"])
    checks += _improvement(rules.get("improvement"), evidence["champion"], evidence["tasks"])
    return checks


def _bounded(rule: str, bound: float, side: str, all_rules: Mapping, evidence: Mapping) -> list[Check]:
    task, _, metric = rule.rpartition(".")
    if metric in PER_TASK:
        asked = [task] if task else [name for name in evidence["tasks"] if f"{name}.{metric}" not in all_rules]
        return [
            compare(f"{name}: {metric}", evidence["tasks"].get(name, {}).get(metric), bound, side) for name in asked
        ]
    if metric in OF_MODEL:
        return [compare(metric, evidence["model"].get(metric), bound, side)]
    if evidence["head"] is None:
        return []  # what was trained on top of a backbone is asked of heads only
    return [compare(metric, evidence["head"].get(metric), bound, side)]


def compare(name: str, value: object, bound: float, side: str) -> Check:
    """One value against one bound; `side` "floors" or "ceilings"."""
    known = number(value)
    if known is None:
        return Check(name, False, None, bound, f"{_what(value)}, so it passes no bound")
    passed = known >= bound if side == "floors" else known <= bound
    sign = (">=" if passed else "<") if side == "floors" else ("<=" if passed else ">")
    return Check(name, passed, known, bound, f"{known:.6g} {sign} {bound:.6g}")


def failures(verdict: Mapping) -> list[str]:
    """Why a gate is closed, a line for each failed check of its verdict.json."""
    return [f"{check['name']}: {check['reason']}" for check in verdict["checks"] if check["passed"] is False]


def attempts(faults: dict[str, str], fatal: tuple[type[Exception], ...]) -> Callable:
    """`attempt(what, gather, otherwise)`: what cannot be gathered is a fault, and a fault closes the gate.

    Args:
        faults: takes what failed, and why.
        fatal: errors that say nothing about the candidate; they are raised.
    """

    def attempt(what: str, gather: Callable, otherwise):
        try:
            return gather()
        except fatal:
            raise
        except Exception as error:  # whatever the candidate does, it does not crash the gate: it closes it
            faults[what] = f"{type(error).__name__}: {str(error)[:400] or 'no message'}"
            return otherwise

    return attempt


def rule_faults(rules: Mapping, keys: Sequence[str]) -> list[str]:
    """What is wrong with a gate's rules whatever they are about: unknown keys, and bounds that are no numbers."""
    faults = [f"there is no rule {key!r}; the rules are {', '.join(keys)}" for key in rules if key not in keys]
    return faults + [f"{side}.{metric}: {bound!r} is no number" for side in ("floors", "ceilings")
                     for metric, bound in (rules.get(side) or {}).items() if number(bound) is None]  # fmt: skip


def finite(name: str, value: object) -> Check:
    """Whether a reported value is a number at all."""
    known = number(value)
    return Check(name, known is not None, known, None, "finite" if known is not None else _what(value))


def _slices(rules: Mapping, slices: list[Mapping]) -> list[Check]:
    checks, least = [], rules.get("least_positives", 20)
    for part in slices:
        name = f"{part['task']}: {part['column']} = {part['value']}"
        if part.get("absent"):
            checks.append(Check(f"{part['task']}: {part['column']}", None, reason="the rows have no such column"))
            continue
        few = min(part["positives"], part["rows"] - part["positives"])
        for metric, bound in sorted(rules["slices"][part["column"]].items()):
            if few < least:
                reason = (
                    f"too few: {part['positives']} of {part['rows']} rows are positive, {least} of each class needed"
                )
                checks.append(Check(f"{name}, {metric}", None, None, bound, reason))
            else:
                side = "ceilings" if metric in LOWER_IS_BETTER else "floors"
                checks.append(compare(f"{name}, {metric}", part.get(metric), bound, side))
    return checks


def _improvement(wanted: Mapping | None, champion: Mapping | None, tasks: Mapping) -> list[Check]:
    if not wanted:
        return [Check("improvement", None, reason="the settings ask for no comparison with the champion")]
    if champion is None:
        return [Check("improvement", True, reason="there is no champion yet: nothing to compare with")]
    if champion["same"]:
        return [
            Check("improvement", True, reason=f"these bytes are already the champion, version {champion['version']}")
        ]
    checks, margin = [], number(wanted["margin"])
    for task in tasks:
        name, found = (
            f"{task}: {wanted['metric']} against version {champion['version']}",
            champion["intervals"].get(task),
        )
        if found is None and task not in champion["tasks"]:
            checks.append(Check(name, True, reason="the champion does not know this task: nothing to compare with"))
        elif found is None or (numbers := [number(value) for value in found]).count(None):
            checks.append(Check(name, False, None, margin, "the comparison gave no finite interval"))
        else:
            low, middle, high = numbers
            text = f"{middle:+.4f}, {float(wanted['confidence']):.0%} interval {low:+.4f} to {high:+.4f}"
            passed = low >= margin
            checks.append(
                Check(
                    name, passed, low, margin, f"{text}; its low end {'is not' if passed else 'is'} below {margin:+.4f}"
                )
            )
    return checks


def number(value: object) -> float | None:
    """A finite float, or None for everything else: NaN, infinity, text, a truth value, nothing."""
    if value is None or isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if math.isfinite(number) else None


def _what(value: object) -> str:
    return (
        "missing, or not a finite number when it was written" if value is None else f"{value!r} is not a finite number"
    )


def merged(base: Mapping, over: Mapping) -> dict:
    """`over` over `base`, key by key; a null takes a key away."""
    both = dict(base)
    for key, value in over.items():
        deeper = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if deeper else value
    return {key: value for key, value in both.items() if value is not None}
