"""A verdict as one HTML page that a person can read: no script, no network, pictures inside."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape

__all__ = ["STYLE", "number", "page", "table"]

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #007a55; --bad: #c2410c; --dim: #808080 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.open, .good { color: var(--good) } .closed, .bad { color: var(--bad) } .dim { color: var(--dim) }
table { border-collapse: collapse; width: 100% }
td, th { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
td.n { white-space: nowrap }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top }
figure img { display: block; max-width: 26rem; background: white }
code { font-size: .85em }
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


def page(verdict: Mapping, pictures: Mapping[str, bytes]) -> str:
    """HTML of a verdict, failed checks first."""
    state = "open" if verdict["passed"] else "closed"
    champion = verdict["champion"]
    against = f"version {champion['version']}" if champion else "none yet"
    failed = sum(check["passed"] is False for check in verdict["checks"])
    order = sorted(verdict["checks"], key=lambda check: {False: 0, True: 1, None: 2}[check["passed"]])
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(verdict['model'])}: gate {state}</title><style>{STYLE}</style>",
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
    """An HTML table of cells that are HTML already; columns of numbers stand to the right."""
    numeric = [all(row[i] in ("", "-") or row[i][:1] in "-0123456789" for row in rows) for i in range(len(head))]
    cell = lambda tag, text, number: f"<{tag}{' class=n' if number else ''}>{text}</{tag}>"
    line = lambda tag, cells: "<tr>" + "".join(cell(tag, *both) for both in zip(cells, numeric, strict=True)) + "</tr>"
    return "<table>" + line("th", head) + "".join(line("td", row) for row in rows) + "</table>"


def number(value: object) -> str:
    """Four digits of a number, all of a count, - for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
