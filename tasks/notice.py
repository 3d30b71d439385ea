"""What a flow tells people: a table and a Markdown report, on the terminal and, under Prefect, in its UI."""

import math
from pathlib import Path

from tasks.files import read_if_there

__all__ = ["drift", "notice", "standings", "tables"]

DRIFTED = 0.2  # population stability index from which a shift is called large, by the usual rule of thumb


def notice(key: str, title: str, rows: list[dict], words: str = "", link: str = "") -> str:
    """Publish one report and return its Markdown.

    Args:
        key: artifact key in Prefect: lower-case letters, digits and dashes.
        title: heading.
        rows: one table row each; all with the same columns.
        words: text below the table.
        link: where a browser opens the run's page.
    """
    from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
    from prefect.context import FlowRunContext

    text = "\n\n".join(filter(None, [f"# {title}", _table(rows), words])) + "\n"
    print(text)
    if FlowRunContext.get():
        if rows:
            create_table_artifact(key=f"{key}-table", table=rows, description=title)
        if link:
            create_link_artifact(link, link_text="The report of this run", key=f"{key}-report", description=title)
        create_markdown_artifact(key=key, markdown=text, description=title)
    return text


def standings(ran: dict[str, list[str]], artifacts: Path) -> list[dict]:
    """A row for the backbone and for each task: what ran, what the gate said, which version is registered.

    Args:
        ran: name -> the stages that ran for it.
        artifacts: folder with `gate/<name>/verdict.json` and `receipt/<name>.json`; what is absent shows as "-".
    """
    rows = []
    for name, stages in ran.items():
        verdict, receipt = (
            read_if_there(artifacts / "gate" / name / "verdict.json"),
            read_if_there(artifacts / "receipt" / f"{name}.json"),
        )
        rows.append(
            {
                "name": name,
                "ran": ", ".join(stages) or "-",
                "gate": {True: "open", False: "closed"}.get(verdict.get("passed"), "-"),
                "registered": receipt.get("status") or "-",
                "version": receipt.get("version") or "-",
                "champion": "yes" if receipt.get("champion") else "-",
            }
        )
    return rows


def tables(names: list[str], ingest: Path) -> list[dict]:
    """A row for each dataset: its size, its last event, and how far the newest days have drifted from the older ones.

    Args:
        names: datasets.
        ingest: folder with `<name>/manifest.json`; a dataset that has none yet shows as "-".
    """
    rows = []
    for name in names:
        manifest = read_if_there(ingest / name / "manifest.json")
        splits, size = manifest.get("splits"), manifest.get("rows", "-")  # texts have no time, and rows by split
        shift = drift(*(splits[split]["events"] for split in ("train", "test"))) if splits else None
        rows.append(
            {
                "dataset": name,
                "rows": sum(size.values()) if isinstance(size, dict) else size,
                "last event": splits["test"]["last"] if splits else "-",
                "drift": "-" if shift is None else f"{shift:.3f}" + (" (large)" if shift >= DRIFTED else ""),
            }
        )
    return rows


def drift(old: dict[str, dict], new: dict[str, dict]) -> float:
    """Population stability index of two event mixes: sum of (p - q) ln(p / q); 0 when equal, symmetric.

    Args:
        old, new: event name -> {"share": fraction of rows}; below 1e-4, absent events too, it counts as 1e-4.
    """
    pairs = [[max(mix.get(name, {}).get("share", 0.0), 1e-4) for mix in (old, new)] for name in old.keys() | new.keys()]
    return sum((p - q) * math.log(p / q) for p, q in sorted(pairs))


def _table(rows: list[dict]) -> str:
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
