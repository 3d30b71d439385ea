"""A language model's output layer on one page: is it W h, which keys lie together, does that spoil the middle ranks?

    python -m tasks.keys_page MODEL params.yaml:language.keys OUT

First the identity: a model whose logits are not made of its keys gets a page that says so, with the measured
difference, and nothing else. Then clusters of keys, the split of ranks of arXiv:2410.02284 on closed sets of answers,
how far a list pushes the query away from what it holds, and what navigation finds beside the most likely first tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import torch

from models.language._keys import BrokenIdentity, Clusters, check_identity, key_clusters, lift, push
from models.language.icn import ICN, Found, Task, spurious_report
from tasks.causal import Opened, open_causal
from tasks.closed_sets import ClosedSet, closed_sets, mapk
from tasks.command import run
from tasks.files import new_folder, write_json, write_text
from tasks.generate import Decoding, task_of
from tasks.page import STYLE, number, table
from tasks.settings import SettingsError, fill, read
from tasks.slots import slot

__all__ = ["Diagnosis", "keys_page"]

SHOWN = 12  # tokens of a cluster on the page
PER = 125  # keys of a cluster, as many as the paper's Llama-3 has on average


@dataclass(frozen=True)
class Diagnosis:
    """What is asked.

    Args:
        clusters: of keys; 0 for one in 125 keys.
        cosine: keys of length 1; the paper's are raw.
        top, main: ranks that are asked for, and those whose clusters are the main ones.
        tokens: of an answer, at most, besides its first one.
        form: of a list of answers, see tasks.generate.Decoding; the tokenizer must have a token that ends them.
        rounds, branch: of navigation.
        sets: names of closed sets; None for all.
        file: JSON of closed sets in place of ours.
        seed, batch, precision: as in tasks/generate.py.
    """

    clusters: int = 0
    cosine: bool = False
    top: int = 100
    main: int = 10
    tokens: int = 16
    form: str | Mapping = "list"
    rounds: int = 3
    branch: int = 10
    sets: tuple[str, ...] | None = None
    file: str | None = None
    seed: int = 0
    batch: int = 64
    precision: str = "float32"

    @classmethod
    def read(cls, chosen: Mapping) -> "Diagnosis":
        """Settings of params.yaml; SettingsError for one that is unknown or cannot be."""
        made = fill(cls, chosen, "keys")
        if not 0 < made.main < made.top or made.clusters < 0 or min(made.rounds, made.branch, made.tokens) < 1:
            raise SettingsError(f"keys: main must be in 1..{made.top - 1}, clusters >= 0, the rest >= 1; got {made}")
        return made


def keys_page(model: str | Path, chosen: Mapping, out: str | Path) -> dict:
    """Write the folder `out` whole or not at all.

    Args:
        model: a causal language model's folder with its tokenizer, or what a stage wrote it into.
        chosen: see `Diagnosis`.
        out: takes report.json, metrics.json {"keys": {flat name: finite float}} and page.html.

    Returns:
        The report: {"identity": {"holds", "form", "difference", "plain"} or {"holds": false, "reason"}, "keys",
        "clusters", "ranks", "sets"}.

    Raises:
        SettingsError: a setting that cannot be.
        PoisonedFolder, TooLong, ValueError: see `open_causal` and `ICN`.
    """
    how = Diagnosis.read(chosen)
    with slot() as device:
        opened = open_causal(model, device, how.precision)
        report, clusters = _report(opened, how)
    report |= {"model": str(model), "content": opened.content, "settings": asdict(how)}
    metrics = _metrics(report)
    with new_folder(out) as folder:
        write_json(folder / "report.json", report)
        write_json(folder / "metrics.json", {"keys": metrics})
        write_text(folder / "page.html", _page(report, opened, clusters))
    if report["identity"]["holds"]:
        print(f"{model}: logits are {report['identity']['form']}; at equal ranks tokens of other clusters are "
              f"{number(report['ranks']['matched'])} more accurate")  # fmt: skip
    else:
        print(f"{model}: refused: {report['identity']['reason']}")
    return report


def _report(opened: Opened, how: Diagnosis) -> tuple[dict, Clusters | None]:
    sets = closed_sets(how.sets, how.file)
    decoding = Decoding(tokens=how.tokens, form=how.form)
    tasks = {name: task_of(opened, each.instruction, decoding) for name, each in sets.items()}
    try:
        identity = check_identity(opened.reader, [task.prompt for task in tasks.values()])
    except BrokenIdentity as error:
        return {"identity": {"holds": False, "reason": str(error)}}, None
    keys, kept = opened.reader.head.weight.detach(), opened.kept()
    count = how.clusters or max(2, int(kept.sum()) // PER)
    clusters = key_clusters(keys, count, how.seed, kept, how.cosine)
    judge = lambda name, text: sets[name].number(text) is not None
    starts = next(iter(tasks.values())).marks(len(keys))[1]
    top = min(how.top, int(starts.sum()))
    ranks, found = spurious_report(opened.reader, tasks, judge, clusters, top, how.main, how.tokens, how.batch)
    length, sizes = keys[kept.to(keys.device)].float().norm(dim=-1), clusters.sizes()
    report = {
        "identity": {"holds": True, "form": identity.kind, "difference": identity.difference, "plain": identity.plain},
        "keys": {"rows": len(keys), "kept": int(kept.sum()), "width": keys.shape[1], "shortest": float(length.min()),
                 "mean": float(length.mean()), "longest": float(length.max())},
        "clusters": {"count": count, "smallest": int(sizes.min()), "median": int(sizes.median()),
                     "largest": sizes.sort(descending=True).values[:5].tolist(), "iterations": len(clusters.inertia)},
        "ranks": ranks,
        "sets": {name: _of_set(opened, task, sets[name], found[name], clusters, how) for name, task in tasks.items()},
    }  # fmt: skip
    return report, clusters


def _of_set(opened: Opened, task: Task, known: ClosedSet, ranked: Found, clusters: Clusters, how: Diagnosis) -> dict:
    """Precision of the first ranks; right answers that navigation and the most likely first tokens find; the push."""
    reader = opened.reader
    right = [known.number(answer.text) is not None for answer in ranked]
    told = {"precision": sum(right[: how.main]) / how.main, "mapk": mapk(right), "said": ranked[0].text}
    limits = {"rounds": how.rounds, "branch": how.branch, "tokens": how.tokens}
    for name, listed in (("icn", True), ("top_b", False)):
        found = ICN(**limits, listed=listed)(reader, task, clusters, batch=how.batch)
        told[f"found_{name}"] = len({known.number(answer.text) for answer in found} - {None})
    told["answers"] = len(set(known.names.values()))
    listed = task.listed([answer.ids for answer in ranked[: how.branch]])
    if reader.room is None or len(listed) <= reader.room:
        query = reader.read([task.prompt, listed]).query
        pushed = push(reader.head.weight.detach(), query[1], query[0]).cpu()
        firsts = torch.tensor([answer.token for answer in ranked[: how.branch]])
        told["push"] = float(pushed[firsts].mean())
        told["lift"] = float(lift(pushed, clusters.labels)[clusters.labels[firsts].unique()].mean())
    return told


def _metrics(report: Mapping) -> dict[str, float]:
    """Flat numbers of a report, those that are finite."""
    if not report["identity"]["holds"]:
        return {"identity_holds": 0.0}
    flat = {"identity_holds": 1.0, "identity_difference": report["identity"]["difference"]} | dict(report["ranks"])
    for name in ("precision", "mapk", "found_icn", "found_top_b", "push", "lift"):
        values = [told[name] for told in report["sets"].values() if name in told]
        flat[name] = sum(values) / len(values) if values else math.nan
    return {name: float(value) for name, value in flat.items() if math.isfinite(value)}


def _page(report: Mapping, opened: Opened, clusters: Clusters | None) -> str:
    identity = report["identity"]
    title = f"Keys of {opened.folder.parent.name if opened.folder.name == 'model' else opened.folder.name}"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>",
        f"<p class=dim>Files <code>{opened.content[:16]}</code></p>",
    ]
    if not identity["holds"]:
        return "\n".join([*parts, f"<p class=bad>Refused: {escape(identity['reason'])}.</p>"]) + "\n"
    keys, ranks = report["keys"], report["ranks"]
    parts += [
        f"<p><span class=good>Logits are {escape(identity['form'])}</span>, to {number(identity['difference'])} of the "
        f"largest one. {keys['kept']} of {keys['rows']} keys count; their lengths are {number(keys['shortest'])} to "
        f"{number(keys['longest'])}, {number(keys['mean'])} on average.</p>",
        "<h2>Ranks behind the first: tokens of the first ranks' clusters, and others</h2>",
        table(["group", "accuracy", "mean rank", "share"],
              [[name, *(number(ranks[f"{part}_{name}"]) for part in ("acc", "rank", "share"))]
               for name in ("main", "other")]),
        f"<p>At equal ranks the others are <b>{number(ranks['matched'])}</b> more accurate. Accuracy of the first "
        f"ranks: {number(ranks['acc_first'])}.</p>",
        "<h2>Closed sets</h2>",
        table(["set", "first answer", "precision", "mapk", "right, navigated", "right, most likely", "of", "push",
               "lift of clusters"],
              [[escape(name), escape(told["said"][:40]), *(number(told.get(key)) for key in (
                  "precision", "mapk", "found_icn", "found_top_b", "answers", "push", "lift"))]
               for name, told in report["sets"].items()]),
        "<p class=dim>A push below 0 means that a list moves the query away from what it holds.</p>",
        f"<h2>Clusters</h2><p>{report['clusters']['count']}, of {report['clusters']['smallest']} to "
        f"{report['clusters']['largest'][0]} keys, {report['clusters']['median']} in the middle.</p>",
        table(["keys", "nearest to the middle"], _clusters(opened, clusters)),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _clusters(opened: Opened, clusters: Clusters) -> list[list[str]]:
    """The five largest clusters and five of middle size, by the tokens nearest to their centers."""
    order = clusters.sizes().argsort(descending=True, stable=True).tolist()
    middle = len(order) // 2
    keys, rows = opened.reader.head.weight.detach().float().cpu(), []
    for cluster in dict.fromkeys(order[:5] + order[middle : middle + 5]):
        members = (clusters.labels == cluster).nonzero()[:, 0]
        near = (keys[members] - clusters.centers[cluster]).norm(dim=-1).argsort()[:SHOWN]
        shown = " ".join(f"<code>{escape(repr(opened.tokens.texts[token])[1:-1])}</code>" for token in members[near])
        rows.append([str(len(members)), shown])
    return rows


def main(model: str, address: str, out: str) -> None:
    """python -m tasks.keys_page MODEL params.yaml:language.keys OUT"""
    keys_page(model, read(address) or {}, out)


if __name__ == "__main__":
    run(main)
