"""A model card: what a version is for, what it was made of and measured on, its limits, and how to load it."""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import models
from tasks import track
from tasks.command import run
from tasks.files import read_json, write_text
from tasks.page import number, start, table

__all__ = ["Card", "auc_interval", "card_of_version", "description", "model_card"]

LONGEST = 5000  # characters of a description that MLflow keeps
ROWS = 40  # of a table
LEAST = 200  # positives below which a slice is called small
LOWER = 0.01  # than the AUC of all rows: a slice that is named among the limits
NAMED = 8  # slices in one line
FAR = 0.1  # off from 1: a calibration that is named among the limits
DIGESTS = {
    "data_sha256": "log, SHA-256", "features_sha256": "features, SHA-256", "rows_sha256": "judged rows, SHA-256",
}  # fmt: skip
PARENTS = ("parents", "backbone_version", "teacher", "start", "base", "text_encoder")
FOR = {
    "recommender": "It lists items, best first, for a user or for a history of items.",
    "pretrain": "A pre-trained model: other models of this project begin from it. It answers no task by itself.",
    "finetune": "It labels texts as the task below says.",
    "continued": "A language model that went on over further sources; it continues a text.",
    "instructed": "A language model that answers instructions of a shop's writing jobs.",
    "distill": "A smaller model that imitates a teacher on the teacher's task.",
    track.LISTINGS: "It reads listings' words for a backbone.",
}
Table = tuple[list[str], list[list[str]]]  # head and rows of plain words


@dataclass(frozen=True)
class Card:
    """Title and sections; a section is paragraphs (str) and tables, in order."""

    title: str
    sections: dict[str, list[str | Table]]

    @property
    def markdown(self) -> str:
        parts = [f"# {self.title}"]
        for name, blocks in self.sections.items():
            parts += [f"## {name}", *(block if isinstance(block, str) else _markdown(*block) for block in blocks)]
        return "\n\n".join(parts) + "\n"

    @property
    def html(self) -> str:
        parts = [start(self.title), f"<h1>{escape(self.title)}</h1><main>"]
        for name, blocks in self.sections.items():
            parts.append(f"<h2>{escape(name)}</h2>")
            parts += [_words(block) if isinstance(block, str) else _table(*block) for block in blocks]
        return "\n".join(parts) + "</main></html>\n"


def model_card(
    model: str, record: Mapping, verdict: Mapping, version: int | None = None, manifest: Mapping | None = None,
    drift: Mapping[str, Mapping] | None = None,
) -> Card:  # fmt: skip
    """The card of a candidate or a version.

    Args:
        model: the registered model's name.
        record: `params`, `metrics` and `tags`, as promotions write them to the run.
        verdict: of its gate.
        version: its number, where it has one.
        manifest: of the ingested data set that it learned from.
        drift: feature -> {"psi", "over"}, newest rows against older ones, when it was trained; see tasks/monitor.py.
    """
    params, tags = track.flat(dict(record["params"])), record["tags"]
    sections = {  # a description is cut at its end: what a reader needs first comes first
        "What it is for": _purpose(model, params, tags),
        "Limits": _limits(verdict, drift),
        "How to load it": _loading(model, version),
        "Gate": _gate(verdict),
        "Where it comes from": _provenance(model, params, tags),
        "Data": [_data(params, tags, verdict, manifest or {})],
        "Measured": _measured(verdict),
        "Training": _training(params, record["metrics"]),
    }
    return Card(f"{model}, version {version}" if version else model, sections)


def card_of_version(uri: str) -> Card:
    """The card of `models:/<name>/<version>`, from what the registry and its run hold.

    Raises:
        RegistryError: there is no such version, or its run has lost its verdict.
    """
    version = track.resolve(uri)
    params, metrics = track.run_data(version.run)
    with TemporaryDirectory() as folder:
        verdict = read_json(track.download(version, "verdict/verdict.json", Path(folder)))
    record = {"params": params, "metrics": metrics, "tags": version.tags}
    return model_card(version.name, record, verdict, version.number)


def description(card: Card) -> str:
    """The card's Markdown as a version's description: whole sections, as many as MLflow keeps."""
    text, end = card.markdown, "\n\nThe whole card is model_card.md among the run's artifacts.\n"
    if len(text) <= LONGEST:
        return text
    cut = text[: LONGEST - len(end)]
    return cut[: max(cut.rfind("\n## "), cut.rfind("\n| ") if "\n## " not in cut else 0)].rstrip() + end


def auc_interval(auc: float, positives: int, negatives: int) -> tuple[float, float] | None:
    """95% interval of an AUC; None where one class has no row.

    Source: Hanley and McNeil, 1982, doi:10.1148/radiology.143.1.7063747, whose rows are independent: several rows of
    one user make it too narrow.

    >>> [round(bound, 3) for bound in auc_interval(0.8, 50, 200)]
    [0.723, 0.877]
    """
    if min(positives, negatives) < 1:
        return None
    both_positive, both_negative = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (both_positive - auc**2) + (negatives - 1) * (both_negative - auc**2)
    half = 1.96 * math.sqrt(max(variance, 0.0) / (positives * negatives))
    return max(auc - half, 0.0), min(auc + half, 1.0)


def _purpose(model: str, params: Mapping, tags: Mapping) -> list[str | Table]:
    kind = tags.get("stage", "").partition("@")[0]
    family = model.partition("-")[0]
    said = FOR.get(model) or FOR.get(kind) or FOR.get(family)
    tasks = {}
    for key, value in params.items():
        head, _, last = key.rpartition(".")
        if head.partition(".")[0] == "tasks" and last in ("given", "positive", "within"):
            tasks.setdefault(head.removeprefix("tasks").strip(".") or str(params.get("name", "")), {})[last] = str(
                value
            )
    blocks: list[str | Table] = [said] if said else []
    if tasks:
        blocks.append("It gives the probability that a row of the log is positive, for each task:")
        keys = ("given", "positive", "within")
        blocks.append((["task", "asked where", "positive where", "looked for within"],
                       [[name, *(f"`{told[key]}`" if key in told else "-" for key in keys)]
                        for name, told in sorted(tasks.items())]))  # fmt: skip
    blocks.append("It was judged on the rows named below; of other shops, languages or times nothing is known.")
    return blocks


def _data(params: Mapping, tags: Mapping, verdict: Mapping, manifest: Mapping) -> Table:
    splits = manifest.get("splits") or {}
    dates = [part[key] for part in splits.values() for key in ("first", "last") if part.get(key)]
    rows = [[name, f"`{tags[key]}`"] for key, name in DIGESTS.items() if tags.get(key)]
    rows += [[name, f"{manifest[key]:,}"] for key, name in (("rows", "events"), ("users", "users"), ("items", "items"))
             if isinstance(manifest.get(key), int)]  # fmt: skip
    rows += [["from", min(dates)[:10]], ["to", max(dates)[:10]]] if dates else []
    rows += [["rows it was judged on", str(verdict.get("rows", "-"))]]
    rows += [[key, str(params[key])] for key in ("data", "trained_on") if key in params]
    return ["what", "value"], rows


def _training(params: Mapping, metrics: Mapping) -> list[str | Table]:
    told = {key: value for key, value in sorted(params.items()) if not key.startswith("tasks.") and value is not None}
    rows = [[key, str(value)[:200]] for key, value in told.items()]
    took = {"seconds": metrics.get("system/seconds"), "peak memory, MB": metrics.get("system/peak_memory_mb"),
            "trained parameters": metrics.get("trained_parameters"),
            "trained, share of the backbone": metrics.get("trained_share")}  # fmt: skip
    rows += [[key, number(value)] for key, value in took.items() if value is not None]
    return [(["setting", "value"], rows[:ROWS]), *_left(rows)]


def _measured(verdict: Mapping) -> list[str | Table]:
    """Metrics of every task or part, then of every slice, with intervals of what is an AUC."""
    blocks: list[str | Table] = []
    for part, found in verdict["metrics"].items():
        if "auc" in found:
            continue
        own = sorted(found, key=lambda name: (name.startswith("base_"), name))  # its base's numbers after its own
        rows = [[name, number(found[name])] for name in own]
        blocks += [f"On {part}:", (["metric", "value"], rows[:ROWS]), *_left(rows)]
    tasks = {task: found for task, found in verdict["metrics"].items() if "auc" in found}
    slices = [part for part in verdict.get("slices") or () if "auc" in part]
    lines = [[task, "all", *_numbers(found)] for task, found in tasks.items()]
    lines += [[part["task"], f"{part['column']} = {part['value']}", *_numbers(part)] for part in slices]
    if lines:
        head = ["task", "slice", "rows", "positives", "AUC", "95% interval", "calibration", "logloss"]
        blocks += [(head, lines[:ROWS]), *_left(lines), "The intervals take rows as independent (Hanley and McNeil, "
                   "1982). Calibration is predicted over observed positives: 1 is right."]  # fmt: skip
    return blocks or ["Nothing was measured."]


def _numbers(found: Mapping) -> list[str]:
    positives, rows = found.get("positives") or 0, found.get("rows") or 0
    interval = auc_interval(found["auc"], positives, rows - positives) if found.get("auc") is not None else None
    bounds = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "-"
    return [str(rows), str(positives), number(found["auc"]), bounds, number(found.get("calibration")),
            number(found.get("logloss"))]  # fmt: skip


def _gate(verdict: Mapping) -> list[str | Table]:
    checks, champion = verdict["checks"], verdict.get("champion")
    failed = [check for check in checks if check["passed"] is False]
    open_ = sum(check["passed"] is None for check in checks)
    against = f"version {champion['version']}, the champion then" if champion else "no champion: it was the first"
    blocks: list[str | Table] = [f"The gate is {'open' if verdict['passed'] else 'closed'}: {len(checks)} checks, "
                                 f"{len(failed)} failed, {open_} not judged. Compared with {against}."]  # fmt: skip
    if failed:
        blocks.append((["failed check", "why"], [[check["name"], check["reason"]] for check in failed[:ROWS]]))
    rules = verdict.get("rules") or {}
    if known := {name: part for name, part in (verdict.get("intervals") or {}).items() if None not in part}:
        metric = (rules.get("improvement") or {}).get("metric", "difference")
        blocks.append((["beside", f"{metric}: low", "difference", "high"],
                       [[name, *(f"{value:+.4f}" for value in part)] for name, part in known.items()]))  # fmt: skip
    return blocks


def _limits(verdict: Mapping, drift: Mapping[str, Mapping] | None) -> list[str | Table]:
    """What the measurements themselves warn of, a line each."""
    lines, few, below = [], [], []
    for part in verdict.get("slices") or ():
        name = f"{part['task']}, {part['column']} = {part['value']}"
        whole = (verdict["metrics"].get(part["task"]) or {}).get("auc")
        if part.get("absent"):
            lines.append(f"{part['task']}: the rows have no {part['column']}, so that slice was never judged.")
        elif (part.get("positives") or 0) < LEAST:
            few.append(f"{name} ({part.get('positives', 0)})")
        if part.get("auc") is not None and whole is not None and part["auc"] < whole - LOWER:
            below.append((part["auc"] - whole, f"{name} ({part['auc']:.4f} against {whole:.4f})"))
    if below:
        lines.append(f"AUC is lower on: {_some([said for _, said in sorted(below)])}.")
    if few:
        lines.append(f"Fewer than {LEAST} positives, so numbers are uncertain, on: {_some(few)}.")
    for task, found in verdict["metrics"].items():
        ratio = found.get("calibration")
        if ratio is not None and abs(ratio - 1) > FAR:
            lines.append(f"{task}: it predicts {ratio:.2f} times as many positives as there were.")
    far = {name: told.get("psi") or 0 for name, told in (drift or {}).items() if told["over"]}
    if far:
        named = ", ".join(f"{name} {psi:.2f}" for name, psi in sorted(far.items(), key=lambda pair: -pair[1]))
        lines.append(f"Over the threshold of drift already when it was trained (PSI): {named}.")
    elif drift:
        lines.append(f"No feature was over its threshold of drift when it was trained; {len(drift)} were watched.")
    else:
        lines.append("Drift was not measured when it was trained.")
    return ["\n".join(f"- {line}" for line in lines[:ROWS]), *_left(lines)]


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:NAMED]) + (f"; and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _provenance(model: str, params: Mapping, tags: Mapping) -> list[str | Table]:
    rows = [[f"`{path}`", said, source] for path, said, source in _methods(model, params, tags)]
    blocks: list[str | Table] = [(["file", "what it does", "source"], rows)] if rows else []
    clean = {"true": " with changes that were not committed", "false": ""}.get(tags.get("git_dirty"), "")
    known = [["code", f"`{tags.get('git_revision', 'unknown')}`{clean}"], ["DVC stage", tags.get("stage", "-")],
             ["content, SHA-256", f"`{tags.get('content_sha256', '-')}`"]]  # fmt: skip
    known += [[key.replace("_", " "), tags[key]] for key in PARENTS if tags.get(key) not in (None, "none")]
    return [*blocks, (["what", "value"], [[str(cell) for cell in row] for row in known])]


def _methods(model: str, params: Mapping, tags: Mapping) -> list[tuple[str, str, str]]:
    """(file, first line, source) of the methods' files that the settings name."""
    family, method = model.partition("-")[0], str(params.get("method", ""))
    name = tags.get("stage", "").partition("@")[2]
    wanted = {
        "recommend": [f"recommend/{method}.py"],
        "recommender": [f"recommend/{params.get('kind')}/{method}.py"],
        "distill": [f"distill/{name}.py", *(f"distill/{part}.py" for key in params for part in key.split("."))],
        "language": [f"components/recipes/{params.get('recipe') or params.get('family')}.yaml"],
    }
    folder = Path(models.__file__).parent
    found = [folder / place for place in dict.fromkeys(wanted.get(family, ())) if (folder / place).is_file()]
    return [(path.relative_to(folder.parent).as_posix(), *_told(path)) for path in found if path.stem[0] != "_"]


def _told(path: Path) -> tuple[str, str]:
    """What a method's file says of itself in its first line, and of its source."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        text = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith("Source:")), None)
    if begin is None:
        return (lines or ["-"])[0], "-"
    paragraph = lines[begin:]
    end = next((i for i, line in enumerate(paragraph) if not line.strip()), len(paragraph))
    return lines[0], " ".join(line.strip() for line in paragraph[:end]).removeprefix("Source:").strip()


def _loading(model: str, version: int | None) -> list[str | Table]:
    address = f"models:/{model}/{version or 'VERSION'}"
    texts = model.startswith(("language-", "distill-")) or model == track.LISTINGS
    flavor = "transformers" if texts else "pyfunc"
    first = f"`mlflow.{flavor}.load_model('{address}')` in Python, with MLFLOW_TRACKING_URI as in this project."
    rows = [] if texts else [f"`python -m tasks.score {address} ROWS.parquet OUT.parquet` scores a file."]
    return [first, *rows, f"`make rebuild VERSION={address}` makes the same bytes again."]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
                     for line in lines)  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(list(head), [[_coded(cell) for cell in row] for row in rows])


def _words(block: str) -> str:
    """A paragraph, or a list whose lines begin with a dash."""
    if not block.startswith("- "):
        return f"<p>{_coded(block)}</p>"
    return "<ul>" + "".join(f"<li>{_coded(line.removeprefix('- '))}</li>" for line in block.splitlines()) + "</ul>"


def _coded(text: str) -> str:
    """Plain words as HTML, with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _left(rows: Sequence) -> list[str]:
    return [f"{len(rows) - ROWS} more are in the verdict."] if len(rows) > ROWS else []


def main(uri: str, out: str) -> None:
    """python -m tasks.model_card models:/NAME/VERSION OUT_FOLDER"""
    card = card_of_version(uri)
    write_text(Path(out) / "model_card.md", card.markdown)
    write_text(Path(out) / "model_card.html", card.html)
    print(f"{card.title}: {out}/model_card.html")


if __name__ == "__main__":
    run(main)
