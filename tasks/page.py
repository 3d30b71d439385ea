"""A verdict as one HTML page that a person can read: no script, no network, pictures inside."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape

__all__ = ["STYLE", "folded", "number", "page", "start", "table"]

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --line: #8884; --soft: #8881;
  --good: #00694a; --bad: #b23a0c; --dim: #5a6068; --link: #0a58a8 }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e4e7eb;
  --good: #4cc795; --bad: #ff9468; --dim: #a2a9b2; --link: #7fb8f5 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--paper); color: var(--ink); overflow-wrap: break-word }
a { color: var(--link) }
h1 { font-size: 1.5rem; line-height: 1.25; margin-bottom: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.open, .good { color: var(--good) } .closed, .bad { color: var(--bad) } .dim { color: var(--dim) }
.scroll { overflow-x: auto } .scroll + .scroll { margin-top: .8rem } ul { padding-left: 1.2rem }
table { border-collapse: collapse; width: 100% }
td, th { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
td.n { white-space: nowrap }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top; max-width: 100% }
figure img { display: block; max-width: min(26rem, 100%); background: white }
code { font-size: .85em; overflow-wrap: anywhere } td code { overflow-wrap: normal }
"""
MARK = {True: ("good", "passed"), False: ("bad", "FAILED"), None: ("dim", "not judged")}
CAPTION = {
    "roc.png": "Ranking: how many positives are caught at each rate of false alarms",
    "reliability.png": "Calibration: on the dashed line, predictions are true rates",
    "curve.png": "Training: loss and held-out loss over the steps, and what else was measured",
    "mix.png": "How much of what it read came from each source",
    "retrieval.png": "How often a sentence's translation is its nearest neighbour, layer by layer",
    "confusion.png": "Which class was said for which",
    "recall.png": "What is found among the first places, beside the most popular items",
    "difference.png": "Against the champion, on the same rows, resampling whole users",
}


def start(title: str, also: str = "") -> str:
    """How a page begins; `also` is style of its own."""
    return (f"<!doctype html><html lang=en><meta charset=utf-8>"
            f"<meta name=viewport content='width=device-width, initial-scale=1'>"
            f"<title>{escape(title)}</title><style>{STYLE}{also}</style>")  # fmt: skip


def page(verdict: Mapping, pictures: Mapping[str, bytes]) -> str:
    """HTML of a verdict, failed checks first."""
    state = "open" if verdict["passed"] else "closed"
    champion = verdict["champion"]
    against = f"version {champion['version']}" if champion else "none yet"
    failed = sum(check["passed"] is False for check in verdict["checks"])
    order = sorted(verdict["checks"], key=lambda check: {False: 0, True: 1, None: 2}[check["passed"]])
    parts = [
        start(f"{verdict['model']}: gate {state}"),
        f"<h1>{escape(verdict['model'])}: the gate is <span class={state}>{state}</span></h1>",
        f"<p>{len(verdict['checks'])} checks, {failed} failed, on {verdict['rows']} test rows. Champion: {against}. "
        f"Candidate <code>{verdict['candidate'][:16]}</code>.</p>",
        _figures(pictures),
        "<h2>Checks</h2>" + table(["", "check", "value", "bound", "why"], [_check(check) for check in order]),
        "<h2>Metrics</h2>" + _metrics(verdict["metrics"]),
    ]
    if measured := verdict["model_metrics"]:
        named = (f"{escape(name)} {number(value)}" for name, value in sorted(measured.items()))
        parts.append(f"<p>{', '.join(named)}</p>")
    if slices := [part for part in verdict["slices"] if not part.get("absent")]:
        parts.append("<h2>Slices</h2>" + _slices(slices))
    return "\n".join(parts) + "\n"


def _figures(pictures: Mapping[str, bytes]) -> str:
    return "".join(
        f"<figure><img alt='{escape(CAPTION[name])}' src='data:image/png;base64,{b64encode(content).decode()}'>"
        f"<figcaption class=dim>{escape(CAPTION[name])}</figcaption></figure>"
        for name, content in pictures.items()
    )


def _check(check: Mapping) -> list[str]:
    colour, word = MARK[check["passed"]]
    numbers = [number(check["value"]), number(check["bound"])]
    return [f"<span class={colour}>{word}</span>", escape(check["name"]), *numbers, escape(check["reason"])]


def _metrics(tasks: Mapping[str, Mapping]) -> str:
    names = list(dict.fromkeys(name for found in tasks.values() for name in found))
    rows = [[escape(task), *(number(found.get(name)) for name in names)] for task, found in tasks.items()]
    return table(["task", *names], rows)


def _slices(slices: list[Mapping]) -> str:
    rows = [[escape(part["task"]), escape(part["column"]), escape(part["value"]),
             *(number(part.get(name)) for name in ("rows", "positives", "auc", "calibration", "logloss"))]
            for part in slices]  # fmt: skip
    return table(["task", "slice", "value", "rows", "positives", "auc", "calibration", "logloss"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """An HTML table of cells that are HTML already; columns of numbers stand to the right.

    A table that is wider than the page scrolls in its own box.
    """
    numeric = [all(row[i] in ("", "-") or row[i][:1] in "-+0123456789" for row in rows) for i in range(len(head))]
    cell = lambda tag, text, number: f"<{tag}{' class=n' if number else ''}>{text}</{tag}>"
    line = lambda tag, cells: "<tr>" + "".join(cell(tag, *both) for both in zip(cells, numeric, strict=True)) + "</tr>"
    lines = line("th", head) + "".join(line("td", row) for row in rows)
    return f"<div class=scroll><table>{lines}</table></div>"


def folded(head: list[str], rows: list[list[str]], first: int, most: int) -> str:
    """A table of the `first` rows, all up to `most` behind a line to open, and how many are left out."""
    if len(rows) <= first:
        return table(head, rows)
    left = f"<p class=dim>{len(rows) - most} more are not shown.</p>" if len(rows) > most else ""
    shown = min(len(rows), most)
    more = f"<details><summary>{shown - first} more</summary>{table(head, rows[first:shown])}{left}</details>"
    return table(head, rows[:first]) + more


def number(value: object) -> str:
    """Four digits of a number, all of a count, - for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
