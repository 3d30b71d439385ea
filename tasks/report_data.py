"""What a report says of the data: how much there is, and how far every feature has drifted."""

from collections.abc import Collection
from html import escape
from pathlib import Path

from tasks.files import read_if_there
from tasks.notice import DRIFTED, drift
from tasks.page import folded, number, table

__all__ = ["drifted", "sizes"]

SEEN, ROWS = 15, 200  # lines of the table that are seen at once, and in all


def sizes(names: Collection[str], ingest: Path) -> str:
    """A line for each data set that was ingested: rows, first and last event of each split."""
    rows = []
    for name in names:
        manifest = read_if_there(ingest / name / "manifest.json")
        if not manifest:
            continue
        size = manifest.get("rows")
        splits = manifest.get("splits") or dict.fromkeys(size if isinstance(size, dict) else (), {})
        begins = lambda split, splits=splits: str(splits[split].get("first", ""))
        total = sum(size.values()) if isinstance(size, dict) else size
        first = min((part["first"] for part in splits.values() if part.get("first")), default="-")
        last = max((part["last"] for part in splits.values() if part.get("last")), default="-")
        named = ", ".join(sorted(splits, key=begins)) or "-"
        rows.append([escape(name), f"{total:,}", named, str(first)[:10], str(last)[:10],
                     f"<code>{escape(str(manifest.get('digest', '-'))[:12])}</code>"])  # fmt: skip
    head = ["data set", "rows", "splits", "first event", "last event", "SHA-256"]
    return table(head, rows) if rows else "<p class=dim>No data set was ingested here.</p>"


def drifted(names: Collection[str], artifacts: Path) -> str:
    """Each feature's drift, and that of champions' answers: as the monitor measured it, else of the mix of events.

    What is over a threshold comes first, then the furthest.
    """
    rows, alone = [], []
    for name in names:
        told = read_if_there(artifacts / "monitor" / f"{name}.json")
        splits = read_if_there(artifacts / "ingest" / name / "manifest.json").get("splits")
        if not told and splits:
            mixes = [splits[split].get("events") for split in ("train", "test")]
            shift = drift(*mixes) if all(mixes) else None
            told = {"features": {"mix of events": {"psi": shift, "over": shift >= DRIFTED}}} if all(mixes) else {}
            alone += [name] * bool(told)
        rows += [(name, feature, facts) for feature, facts in told.get("features", {}).items()]
        rows += [(name, f"answers of {model}", facts) for model, facts in told.get("predictions", {}).items()]
    if not rows:
        return "<p class=dim>No drift was measured: nothing ingested here has times.</p>"
    rows.sort(key=lambda row: (not row[2]["over"], -(row[2].get("psi") or 0), row[0], row[1]))
    most = max(DRIFTED, *(row[2].get("psi") or 0 for row in rows))
    cells = [[escape(name), escape(feature), "<span class=bad>over</span>" if facts["over"] else "",
              number(facts.get("psi")), f"<i class=bar style='width:{100 * (facts.get('psi') or 0) / most:.0f}%'></i>",
              number(facts.get("ks")), number(facts.get("auc_reference")), number(facts.get("auc"))]
             for name, feature, facts in rows]  # fmt: skip
    note = f"""<p class=dim>Newest rows against older ones: population stability index (PSI), by rule of thumb large
from {DRIFTED} on, and Kolmogorov-Smirnov distance (KS); of answers also the AUC at promotion and now.
What is computed along the log, such as counts so far, drifts by itself and is held to a threshold only where
params.yaml says so."""
    note += f" Of {escape(', '.join(alone))} only the mix of events was compared." if alone else ""
    head = ["data set", "feature", "threshold", "PSI", "", "KS", "AUC then", "AUC now"]
    return note + "</p>" + folded(head, cells, SEEN, ROWS)
