"""Refuse broken data before they cost GPU time: Polars counts, Great Expectations judges, nothing passes unseen.

The log is scanned as a stream: once for all rules over rows, and once per bucket of groups for a rule over groups, so
that tens of millions of rows need less than 1 GiB. Great Expectations then judges one row, the profile made of these
numbers, because it takes no Polars frame and would need several times the memory for the rows themselves.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import polars as pl

from tasks.datasets._rules import Rule, at_least_rows, share
from tasks.files import new_folder, write_json

__all__ = ["DataRejected", "Unreadable", "validate"]

SEEN = "Great Expectations judged a profile: one row with the numbers that Polars counted over all rows of the log."
EXAMPLES = 3  # rows or groups shown for a broken rule
GROUPS_AT_ONCE = 1_000_000  # groups in memory at a time: 100 to 200 MB with MerRec's string ids
MOST_PASSES = 8  # for a rate: from 8 million groups it is known to a few parts in ten thousand of itself
RARE = 0.005  # an event's share below this is too noisy to judge its change relatively
MIX = ("event_id", "language", "source_language")  # the first that is there: a new version must resemble the last one
IDENTITY = ("user_id", "item_id", "stime", "event_id")  # shown beside the columns that a broken rule reads


class DataRejected(ValueError):
    """A log broke its rules; later stages see nothing of it."""


class Unreadable(DataRejected):
    """Polars cannot read the files as events."""


@dataclass(frozen=True)
class Finding:
    """One rule on one log."""

    rule: Rule
    applies: bool = True  # the log has the columns that the rule reads
    value: float | None = None  # the counted number
    examples: tuple[dict, ...] = ()
    broken: bool = False
    seen: float = 1.0  # share of the groups that a rate was estimated from

    def line(self) -> str:
        """What was found, for a message."""
        rule, number = self.rule, "nothing" if self.value is None else f"{self.value:,.6g}"
        if isinstance(self.value, int):
            number = f"{self.value:,}"
        low, high = ("" if bound is None else f"{bound:,.6g}" for bound in (rule.low, rule.high))
        found = f"{number} broken" if rule.counts_violations else f"found {number}, allowed {low}..{high}"
        if self.seen < 1:
            found += f" (estimated from {self.seen:.0%} of the groups)"
        shown = "; ".join(" ".join(f"{key}={value}" for key, value in row.items()) for row in self.examples)
        return f"{rule.text}: {found}" + (f", e.g. {shown}" if shown else "")

    def record(self) -> dict:
        """What was found, for report.json."""
        return {
            "name": self.rule.name,
            "text": self.rule.text,
            "applies": self.applies,
            "value": self.value,
            "low": self.rule.low,
            "high": self.rule.high,
            "broken": self.broken,
            "warning": self.rule.warning,
            "examples": list(self.examples),
            "seen": self.seen,
        }


def validate(
    frame: pl.LazyFrame,
    rules: Iterable[Rule],
    report: str | Path | None = None,
    name: str = "log",
    reference: dict | None = None,
    drift: float = 0.25,
) -> dict:
    """Judge a log by its rules.

    Args:
        frame: events in the schema of `tasks.datasets._schema`, or the rows of a dataset of texts.
        rules: see `tasks.datasets._rules`; those whose columns the log lacks are listed as not applicable.
        report: folder that gets report.json (equal data, equal bytes) and docs/ (Data Docs), for a refused log too.
        name: the dataset, for messages.
        reference: profile of an accepted log, whose mix of events (of texts: of languages) the new one must resemble.
        drift: by how much of itself an event's share may differ from `reference`: 0.25 lets 8 % become 6 to 10 %, and a
            share that was below 0.5 % stay below. One version is compared with one other: small steps may add up.

    Returns:
        the profile: {"rows": n, "nulls": {column: share}, "events": {event_id: share}, "rules": {rule: number},
        "not_applicable": [rule], "warnings": [line]}; shares are fractions of 1.

    Raises:
        DataRejected: names every broken rule with its number and a few rows, and all at once.
        Unreadable: a file is broken, or has other columns than the rest.
    """
    rules = [replace(at_least_rows(1), name="not empty", text="the log has rows"), *rules]
    try:
        events = _events(frame)
        rules += _drift(_mixed(frame), events, reference["events"], drift) if reference else []
        _check_names(rules)
        rows, nulls, findings = _count(frame, rules)
        broken = _judged(name, [f for f in findings if f.applies], Path(report) / "docs" if report else None)
        findings = [_shown(frame, replace(f, broken=f.rule.name in broken)) for f in findings]
    except pl.exceptions.PolarsError as error:
        raise Unreadable(str(error).split("\n\n")[0]) from None  # what follows is the query plan
    profile = {
        "rows": rows,
        "nulls": nulls,
        "events": events,
        "rules": {f.rule.name: f.value for f in findings if f.applies},
        "not_applicable": [f.rule.name for f in findings if not f.applies],
        "warnings": [f.line() for f in findings if f.broken and f.rule.warning],
    }
    refused = [f for f in findings if f.broken and not f.rule.warning]
    if report:
        written = {"dataset": name, "accepted": not refused, "seen": SEEN, "findings": [f.record() for f in findings]}
        write_json(Path(report) / "report.json", {**written, "profile": profile})
    if refused:
        raise DataRejected(_refusal(name, rows, refused, len(findings), report))
    return profile


def _refusal(name: str, rows: int, refused: list[Finding], total: int, report: str | Path | None) -> str:
    lines = [f"{name}: {len(refused)} of {total} rules broken on {rows:,} rows; nothing was written"]
    lines += [f"  {finding.line()}" for finding in refused]
    lines += [f"Mend the source, or the rules in tasks/datasets/{name}.py."]
    if any(f.rule.name.startswith("drift of ") for f in refused):
        lines += [
            "If the new mix of events is right, raise the dataset's `drift`, or delete the profile accepted before."
        ]
    return "\n".join(lines + ([f"All numbers: {Path(report) / 'report.json'}"] if report else []))


def _check_names(rules: list[Rule]) -> None:
    names = [rule.name for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two rules are called {', '.join(map(repr, twice))}; the profile has one number per name")


def _mixed(frame: pl.LazyFrame) -> str | None:
    """The column whose mix is compared between versions."""
    return next((column for column in MIX if column in frame.collect_schema()), None)


def _events(frame: pl.LazyFrame) -> dict[str, float]:
    """Share of each event name, of texts of each language; null counts as "null"."""
    column = _mixed(frame)
    if column is None:
        return {}
    counts = (
        frame.group_by(pl.col(column).cast(pl.String).fill_null("null").alias("name")).len().collect(engine="streaming")
    )
    total = counts["len"].sum()
    return {event: count / total for event, count in sorted(counts.iter_rows())}


def _drift(column: str | None, events: dict[str, float], accepted: dict[str, float], drift: float) -> list[Rule]:
    """One rule per event or language: its share resembles the accepted one."""
    rules = []
    for event in sorted({*events, *accepted}):
        was = accepted.get(event, 0.0)
        low, high = (0.0, RARE) if was < RARE else (was * (1 - drift), was * (1 + drift))
        text = f"the share of {event} is near that of the log accepted before, {was:.6g}"
        rules.append(replace(share(column, event, was, drift), name=f"drift of {event}", text=text, low=low, high=high))
    return rules


def _count(frame: pl.LazyFrame, rules: list[Rule]) -> tuple[int, dict[str, float], list[Finding]]:
    """All numbers: the row count, each column's share of nulls, and one finding per rule."""
    columns = frame.collect_schema().names()
    lacking = {rule.name: [c for c in rule.columns if c not in columns] for rule in rules}
    there = [rule for rule in rules if not lacking[rule.name]]
    counts = [pl.len().alias("rows")] + [pl.col(c).is_null().sum().alias(f"nulls {c}") for c in columns]
    counts += [rule.measure.alias(f"rule {rule.name}") for rule in there if rule.measure is not None]
    counts += [_hash(rule.groups.keys).approx_n_unique().alias(f"groups {rule.name}") for rule in there if rule.groups]
    counted = frame.select(counts).collect(engine="streaming").row(0, named=True)
    rows = counted["rows"]
    findings = []
    for rule in rules if rows else rules[:1]:  # an empty log breaks the first rule; the others would say nothing
        if lacking[rule.name]:
            findings.append(Finding(rule, applies=rule.required, value=len(lacking[rule.name])))
        elif rule.groups:
            findings.append(_count_groups(frame, rule, counted[f"groups {rule.name}"]))
        else:
            findings.append(Finding(rule, value=counted[f"rule {rule.name}"]))
    return rows, {c: counted[f"nulls {c}"] / max(rows, 1) for c in columns}, findings


def _count_groups(frame: pl.LazyFrame, rule: Rule, groups: int) -> Finding:
    """In as many passes over the rule's own columns as keep each near GROUPS_AT_ONCE groups.

    A count is exact. A rate of a very long log is that of the first MOST_PASSES buckets: groups are spread by a hash.
    """
    keys, buckets = list(rule.groups.keys), math.ceil(groups / GROUPS_AT_ONCE) or 1
    passes = min(buckets, MOST_PASSES) if rule.groups.per_row else buckets
    rows, faults, worst = 0, 0, []
    for bucket in range(passes):
        part = frame.select(rule.columns)
        if not rule.groups.null_keys:
            part = part.drop_nulls(keys)
        if buckets > 1:
            part = part.filter(_hash(keys) % buckets == bucket)
        grouped = part.group_by(keys).agg(rule.groups.broken.cast(pl.Int64).alias("faults"), pl.len().alias("rows"))
        faulty = grouped.filter(pl.col("faults") > 0)
        shown = faulty.sort("faults", "rows", *keys, descending=[True, True, *(False for _ in keys)]).head(EXAMPLES)
        sums = grouped.select(pl.col("rows").cast(pl.Int64).sum(), pl.col("faults").sum())
        counted, examples = pl.collect_all([sums, shown], engine="streaming")  # one pass: the group-by is shared
        rows, faults, worst = rows + counted["rows"][0], faults + counted["faults"][0], worst + examples.to_dicts()
    worst.sort(key=lambda group: (-group["faults"], -group["rows"], str(group)))
    worst = tuple({k: _plain(v) for k, v in group.items() if k != "faults"} for group in worst[:EXAMPLES])
    value = faults / max(rows, 1) if rule.groups.per_row else faults
    return Finding(rule, value=value, examples=worst, seen=passes / buckets)


def _hash(keys: Iterable[str]) -> pl.Expr:
    return pl.struct(list(keys)).hash(seed=0)


def _shown(frame: pl.LazyFrame, finding: Finding) -> Finding:
    """The finding with examples when its rule is broken, without when it holds."""
    rule = finding.rule
    if not finding.broken:
        return replace(finding, examples=())
    if rule.offending is None or (rule.required and finding.value):
        return finding
    there = frame.collect_schema().names()
    columns = list(dict.fromkeys([*rule.columns, *(c for c in IDENTITY if c in there)]))
    rows = frame.filter(rule.offending).select(columns).head(EXAMPLES).collect(engine="streaming")
    return replace(
        finding, examples=tuple({k: _plain(v) for k, v in row.items()} for row in rows.iter_rows(named=True))
    )


def _plain(value):
    """A value as JSON and a message can hold it: times as text, NaN by name, long titles cut."""
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return text if len(text := str(value)) <= 60 else f"{text[:59]}…"


def _judged(name: str, findings: list[Finding], docs: Path | None) -> set[str]:
    """The names of the rules that Great Expectations finds broken; Data Docs go to `docs`."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    import great_expectations.expectations as gxe
    import pandas as pd

    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = {"globally": False}
    suite = gx.ExpectationSuite(name=f"{name}, profiled by Polars", notes=SEEN)
    for rule in (finding.rule for finding in findings):
        common = {"column": rule.name, "severity": "warning" if rule.warning else "critical"}
        # a null passes every other expectation
        suite.add_expectation(gxe.ExpectColumnValuesToNotBeNull(**common, description=f"{rule.text}: was counted"))
        if rule.counts_violations:
            suite.add_expectation(_zero_violations()(**common, description=rule.text))
        else:
            band = {"min_value": rule.low, "max_value": rule.high}
            suite.add_expectation(gxe.ExpectColumnValuesToBeBetween(**common, **band, description=rule.text))
    asset = context.data_sources.add_pandas("polars").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("profile")
    judged = context.validation_definitions.add(
        gx.ValidationDefinition(name=name, data=batch, suite=context.suites.add(suite))
    ).run(batch_parameters={"dataframe": pd.DataFrame([{f.rule.name: f.value for f in findings}])})
    if docs:
        _write_docs(context, docs)
    # an expectation that raised is not a success either: Great Expectations reports that without raising
    return {r.expectation_config.kwargs["column"] for r in judged.results if not r.success}


@cache
def _zero_violations():
    import great_expectations.expectations as gxe

    class ExpectZeroViolations(gxe.ExpectColumnValuesToBeInSet):
        """The counted number of violations is 0."""

        value_set: list = [0]

    return ExpectZeroViolations


def _write_docs(context, docs: Path) -> None:
    with new_folder(docs) as folder:
        context.add_data_docs_site(
            site_name="report",
            site_config={
                "class_name": "SiteBuilder",
                "show_how_to_buttons": False,
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                "store_backend": {
                    "class_name": "TupleFilesystemStoreBackend",
                    "base_directory": str(folder.absolute()),
                },
            },
        )
        context.build_data_docs(site_names=["report"])
        for tutorial in folder.glob("static/images/*.gif"):  # 3 MB for the buttons that are switched off
            tutorial.unlink()
