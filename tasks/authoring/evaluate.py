"""What a tuned model's texts are worth: invented facts first, then each job's own measures, beside simple baselines.

    python -m tasks.authoring.evaluate params.yaml:language.evaluations.NAME BASE MODEL AUTHORED OUT

Asked are the test products, whole categories that were never trained, and a task that was not. Beside the model:

    base      the model before tuning, with the same prompts      shots   the same with up to five exchanges before it
    template  what templates write, where they have a pattern     as_is   the title as it is

A rewritten title is judged by a query that it was not given. Numbers of a set that templates wrote say how well their
patterns are learned: they compare with nothing that is published. metrics.json {"evaluation": {name: number}}: what has
no prefix is the model on test, `base_`, `shots_`, `template_` and `as_is_` are the baselines there, `zero_category_`
and `zero_task_` the model on what it never saw.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import polars as pl

from tasks.authoring._author import Author
from tasks.authoring._catalogue import place
from tasks.authoring._page import page
from tasks.authoring._score import Known, score
from tasks.authoring.grounding import Lexicon, invented
from tasks.authoring.measures import BM25, classified
from tasks.base import model_of
from tasks.command import run as command
from tasks.files import digest, new_folder, read_json, write_json, write_text
from tasks.flavor import content
from tasks.remeasure import note
from tasks.settings import SettingsError, fill
from tasks.settings import read as read_settings
from tasks.slots import slot
from tasks.training import use_threads

__all__ = ["Evaluation", "evaluate"]

SYSTEMS = ("tuned", "base", "shots", "template", "as_is")
COLUMNS = ("", "base_", "shots_", "template_", "as_is_", "zero_category_", "zero_task_")  # of the page
SPLITS = ("test", "zero_category", "zero_task")
RATED = 20  # advertisements of each system on the form for people
QUESTIONS = ("true to the facts (1-5)", "clear (1-5)", "makes me want it (1-5)")


@dataclass(frozen=True)
class Evaluation:
    """Settings.

    Args:
        rows: of each task and split, at most.
        new_tokens: of a text, at most.
        beams: of the search for a category; as many as there are categories make it exact.
        shots: exchanges before a prompt of the baseline with examples; 0 leaves that baseline out.
        batch: texts at once; changes the speed alone.
        judge: folder of another language model, whose perplexity of the advertisements is told; never the teacher, the
            model or its base.
    """

    rows: int = 64
    new_tokens: int = 96
    beams: int = 4
    shots: int = 5
    batch: int = 16
    judge: str | None = None

    def __post_init__(self):
        wrong = [f"{name} must be a whole number >= {low}, got {value!r}" for name, low in
                 (("rows", 1), ("new_tokens", 1), ("beams", 1), ("shots", 0), ("batch", 1))
                 if not isinstance(value := getattr(self, name), int) or value < low]  # fmt: skip
        if wrong:
            raise SettingsError("evaluation: " + "; ".join(wrong))

    @classmethod
    def read(cls, chosen: Mapping) -> "Evaluation":
        """Build from params.yaml."""
        return fill(cls, chosen, "evaluation")


def evaluate(
    settings: Mapping, base: str | Path, model: str | Path, data: str | Path, out: str | Path
) -> dict[str, float]:
    """Ask, measure, and write the folder `out` whole or not at all.

    Args:
        settings: see Evaluation.
        base: what the model was tuned from.
        model: what tasks/authoring/instruct.py wrote, or its model/.
        data: what tasks/authoring/records.py wrote.
        out: takes metrics.json, run.json (see tasks/remeasure.py), samples.json, page.html, rating.csv (advertisements
            in a drawn order, without their writers, for people to rate) and rating_key.json.

    Returns:
        The numbers of metrics.json.

    Raises:
        SettingsError: the judge is not independent, or there is no test row.
    """
    use_threads()
    data, chosen = Path(data), Evaluation.read(settings or {})
    manifest = read_json(data / "manifest.json")
    rows = {split: _some(data, split, chosen.rows) for split in SPLITS}
    if not rows["test"]:
        raise SettingsError(f"{data} has no test row; author more records, or give test a larger share")
    titles = read_json(data / "titles.json")["titles"]
    known = Known(Lexicon.of(manifest["lexicon"]), frozenset(manifest["taxonomy"]), BM25(titles),
                  {title: number for number, title in enumerate(titles)})  # fmt: skip
    with slot() as device:
        _refuse_judge(chosen.judge, model, base, manifest)
        own = {"device": device, "batch": chosen.batch, "new_tokens": chosen.new_tokens}
        texts, metrics = _tuned(Author(model, **own), rows, manifest["taxonomy"], chosen)
        examples = pl.read_parquet(data / "rows" / "train.parquet").to_dicts()
        texts |= _untuned(Author(base, template=model, **own), rows["test"], examples, chosen)
        texts |= {("template", "test"): [one["template"] for one in rows["test"]],
                  ("as_is", "test"): [_as_is(one) for one in rows["test"]]}  # fmt: skip
        found = {}
        for (system, split), written in texts.items():
            before = "" if system == "tuned" and split == "test" else f"{split if system == 'tuned' else system}_"
            found |= {f"{before}{key}": value for key, value in score(rows[split], written, known).items()}
        found |= metrics
        if chosen.judge:
            ads = [text for one, text in zip(rows["test"], texts["tuned", "test"], strict=True)
                   if one["requires"] == "ad"]  # fmt: skip
            perplexity = Author(chosen.judge, **own).perplexity(ads)
            found |= {} if perplexity is None else {"ads_perplexity": perplexity}
    found |= {f"share_{kind}": share for kind, share in manifest["provenance"].items()}
    found = {key: round(float(value), 6) for key, value in found.items()}
    name, asked = Path(model).name, sum(map(len, rows.values()))
    told = {who: {"folder": str(folder), "content": content(model_of(folder))} for who, folder in
            (("model", model), ("base", base))}  # fmt: skip
    read = {"folder": str(data), "content": {data.name: digest(data)}}
    about = note("authoring", told["model"], told["base"], settings or {}, read, asked)
    with new_folder(out) as folder:
        write_json(folder / "metrics.json", {"evaluation": found})
        write_json(folder / "run.json", about)
        told = {"name": name, "teacher": manifest["teacher"], "teacher_kind": manifest["teacher_kind"],
                "samples": _samples(rows, texts, known.lexicon)}  # fmt: skip
        write_json(folder / "samples.json", told)
        write_text(folder / "page.html", page(name, found, told, COLUMNS))
        _rating(folder, rows["test"], texts)
    print(_told(name, found, asked))
    return found


def _some(data: Path, split: str, most: int) -> list[dict]:
    """Rows of a split by a hash, of each task as many of each feature that is asked for, as far as there are."""
    found: dict[str, list[tuple[int, int, dict]]] = {}
    turn: Counter = Counter()
    mark = lambda one: place(1 << 60, one["instruction"], one["input"], one["output"])
    for one in sorted(pl.read_parquet(data / "rows" / f"{split}.parquet").to_dicts(), key=mark):
        key = one["task"], one["requires"]
        turn[key] += 1
        found.setdefault(one["task"], []).append((turn[key], mark(one), one))
    return [one for task in sorted(found) for _, _, one in sorted(found[task], key=lambda row: row[:2])[:most]]


def _as_is(one: Mapping) -> str | None:
    """The title, where a title or an advertisement is asked for and it is shown."""
    return one["title"] if one["requires"] in ("ad", "title") and "title" in json.loads(one["presented"]) else None


def _tuned(author: Author, rows: Mapping, taxonomy: Sequence[str], chosen: Evaluation) -> tuple[dict, dict]:
    """Texts of the model by split, and its constrained categories and losses as numbers."""
    texts, found, trie = {}, {}, author.trie(taxonomy)
    for split, some in rows.items():
        if not some:
            continue
        before = "" if split == "test" else f"{split}_"
        prompts = [author.prompt(one["instruction"], one["input"]) for one in some]
        texts["tuned", split] = author.write(prompts)
        found[f"{before}too_long"] = sum(not author.fits(one) for one in prompts) / len(prompts)
        asked = [number for number, one in enumerate(some) if one["requires"] == "category"]
        if asked:
            said = author.classify([prompts[number] for number in asked], trie, chosen.beams)
            right = [some[number]["output"] for number in asked]
            found |= {f"{before}classification_{key}": value for key, value in classified(said, right).items()}
            found[f"{before}classification_illegal"] = sum(one not in trie.labels for one in said) / len(said)
        for task in dict.fromkeys(one["task"] for one in some):
            own = [number for number, one in enumerate(some) if one["task"] == task]
            nats = author.loss([prompts[number] for number in own], [some[number]["output"] for number in own])
            found |= {} if nats is None else {f"{before}{task}_nats": nats}
    return texts, found


def _untuned(author: Author, rows: Sequence[Mapping], examples: Sequence[Mapping], chosen: Evaluation) -> dict:
    """Texts of the base, alone and with as many exchanges of the same job before a prompt as fit."""
    plain = [author.prompt(one["instruction"], one["input"]) for one in rows]
    # What was not tuned does not stop: what follows its answer is a next exchange, of its own making.
    answers = lambda prompts: [text.split("###")[0].strip() for text in author.write(prompts)]
    texts = {("base", "test"): answers(plain)}
    if not chosen.shots:
        return texts
    prompts = []
    for one in rows:
        like = [other for other in examples if other["job"] == one["job"]]
        like = sorted(like, key=lambda other: place(1 << 60, one["input"], other["input"], other["output"]))
        shots = like[: chosen.shots]
        prompt = author.prompt(one["instruction"], one["input"], shots)
        while shots and not author.fits(prompt):
            shots = shots[1:]
            prompt = author.prompt(one["instruction"], one["input"], shots)
        prompts.append(prompt)
    return texts | {("shots", "test"): answers(prompts)}


def _refuse_judge(judge: str | None, model: str | Path, base: str | Path, manifest: Mapping) -> None:
    """A judge that wrote, or learned, what it judges says nothing."""
    if judge is None:
        return
    if not Path(judge).is_dir():
        raise SettingsError(f"the judge {judge} is no folder; give another language model's, or leave it out")
    whole = lambda path: digest(model_of(path))
    own = whole(judge)
    if own in (whole(model), whole(base), manifest.get("teacher_content")):
        raise SettingsError(f"{judge} is the model, its base or the teacher; the judge must be another one")


def _samples(rows: Mapping, texts: Mapping, lexicon: Lexicon) -> list[dict]:
    """Everything that was asked, with what each system said and invented."""
    found = []
    for split, some in rows.items():
        for number, one in enumerate(some):
            said = {system: texts[system, split][number] for system in SYSTEMS if (system, split) in texts}
            said = {system: text for system, text in said.items() if text is not None}
            source = f"{one['instruction']}\n{one['input']}"
            wrong = {system: [vars(each) for each in invented(text, source, lexicon)] for system, text in said.items()
                     if one["task"] != "qa" and one["requires"] != "category"}  # fmt: skip
            found.append({
                "split": split, "task": one["task"], "job": one["job"], "language": one["language"],
                "instruction": one["instruction"], "input": one["input"], "reference": one["output"],
                "teacher_kind": one["provenance"]["teacher_kind"], "texts": said,
                "invented": {system: each for system, each in wrong.items() if each},
            })  # fmt: skip
    return found


def _rating(folder: Path, rows: Sequence[Mapping], texts: Mapping) -> None:
    """A form for people: who wrote a text is told by another file."""
    lines = []
    ads = [number for number, one in enumerate(rows) if one["requires"] == "ad"][:RATED]
    for system in ("tuned", "base", "template"):
        for number in ads:
            if text := texts[system, "test"][number]:
                lines.append((place(1 << 60, "rating", system, number), system, rows[number], text))
    lines.sort(key=lambda line: line[0])
    table = StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["text", "instruction", "input", "advertisement", *QUESTIONS])
    for number, (_, _, one, text) in enumerate(lines, 1):
        writer.writerow([number, one["instruction"], one["input"], text, *[""] * len(QUESTIONS)])
    write_text(folder / "rating.csv", table.getvalue())
    write_json(folder / "rating_key.json", {str(number): line[1] for number, line in enumerate(lines, 1)})


def _told(name: str, found: Mapping[str, float], asked: int) -> str:
    shown = [("invented facts in", "invented"), ("base", "base_invented"), ("category", "classification_accuracy_1"),
             ("query terms kept", "title_query_recall"), ("retrieval gain", "retrieval_gain")]  # fmt: skip
    return f"{name}: {asked} asked; " + ", ".join(f"{word} {found[key]:.3f}" for word, key in shown if key in found)


def main(address: str, base: str, model: str, data: str, out: str) -> None:
    """python -m tasks.authoring.evaluate params.yaml:language.evaluations.NAME BASE MODEL AUTHORED OUT"""
    evaluate(read_settings(address), base, model, data, out)


if __name__ == "__main__":
    command(main)
