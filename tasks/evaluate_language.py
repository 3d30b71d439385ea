"""A language model beside the one it began from: what it kept, what it gained, and whether its languages meet.

    python -m tasks.evaluate_language params.yaml:language.continued.NAME.evaluation BASE MODEL artifacts/ingest OUT

Perplexity and tokens per character of held-out texts of each language; forgetting, the relative rise of the base's
perplexity per character; retrieval of translations in every layer; multiple choice by log-likelihood. Benchmark items
that are found in the training data are named and left out before anything is asked. Both models read the same texts.
"""

import math
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import polars as pl

from models.components._closest import refuse_unknown
from tasks import flavor, plots
from tasks.base import model_of
from tasks.command import run
from tasks.files import digest, new_folder, read_json, write_json, write_text
from tasks.mixed_samples import UNSPACED
from tasks.near import leaks
from tasks.page import STYLE, number, table
from tasks.progress import progress
from tasks.question_prompts import Question
from tasks.remeasure import note
from tasks.settings import SettingsError, read
from tasks.shingles import Likeness

__all__ = ["evaluate_language", "held_out"]

KEYS = {
    "texts": ("data", "characters"),
    "pairs": ("data", "sentences"),
    "questions": ("data", "form", "shots", "most"),
    "train": ("data", "near"),
    "length": (),
    "batch": (),
}
CHARACTERS, SENTENCES, MOST = 200_000, 1000, 1000  # of each language, pair of languages and benchmark that are read


@dataclass(frozen=True)
class Asked:
    """What both models are asked, the same for both."""

    texts: dict[str, list[str]]  # language -> held-out texts
    pairs: dict[tuple[str, str], tuple[list[str], list[str]]]  # languages -> sentences and their translations
    questions: dict[str, list[Question]]
    chosen: dict[str, Mapping]  # of each benchmark: form, shots
    left_out: pl.DataFrame  # benchmark items that are in training data

    @property
    def count(self) -> int:
        """Texts, pairs and questions."""
        pairs = sum(len(sentences) for sentences, _ in self.pairs.values())
        return sum(map(len, self.texts.values())) + pairs + sum(map(len, self.questions.values()))


def evaluate_language(
    settings: Mapping, base: str | Path, model: str | Path, ingested: str | Path, out: str | Path, device: str = "cpu"
) -> dict[str, float]:
    """Measure `base` and `model` on the same texts, and write the folder `out`.

    Args:
        settings: texts: {language: {data, characters}}, held-out documents or sides of pairs;
            pairs: {any name: {data, sentences}}, held-out pairs;
            questions: {name: {data, form: letter or text, shots, most}};
            train: {data: [...], near: {...}}, what the model learned from, for items that it has seen;
            length and batch of a reading. Every part may be left out.
        base: folder of the model before, or of the stage that made it.
        model: likewise the model after.
        ingested: folder of ingested data sets.
        out: takes metrics.json {"evaluation": {name: float}}, retrieval.csv, extra/retrieval.png, answers.parquet,
            left_out.parquet (columns of tasks/near.py), run.json (see tasks/remeasure.py) and page.html.

    Returns:
        The metrics; those of the base begin with `base_`. `forgetting_<language>` is the relative rise of its
        perplexity per character, `gain_<language>` the share of its bits per character that is saved, `retrieval` the
        mean of both ways in the best layer, `retrieval_gain` and `accuracy_gain_<name>` are differences.

    Raises:
        SettingsError: unknown settings, data sets without what is asked of them, a model that writes no text.
    """
    from tasks.language_measures import open_measured

    folders = {"base": model_of(base), "model": model_of(model)}
    asked = _asked(settings, Path(ingested))
    measured, layers, answers = {}, [], []
    with progress(len(folders) * asked.count, "evaluate_language", "text") as bar:
        for who, folder in folders.items():  # one after the other: two large models may not fit beside each other
            opened = open_measured(folder, settings.get("length"), settings.get("batch", 16), device)
            measured[who], more, said = _measure(opened, asked, bar.update)
            layers += [{"model": who} | row for row in more]
            answers += [{"model": who} | row for row in said]
            del opened
    metrics = _compared(measured["base"], measured["model"]) | _counted(asked)
    with new_folder(out) as fresh:
        write_json(fresh / "metrics.json", {"evaluation": metrics})
        facts = {who: {"folder": str(folder), "content": flavor.content(folder)} for who, folder in folders.items()}
        read = {"folder": str(ingested), "content": _digests(settings, Path(ingested))}
        write_json(fresh / "run.json", note("texts", facts["model"], facts["base"], settings, read, asked.count))
        asked.left_out.write_parquet(fresh / "left_out.parquet")
        _answers(answers).write_parquet(fresh / "answers.parquet")
        _layers(layers).write_csv(fresh / "retrieval.csv")
        picture = plots.by_layer(_lines(layers), "Accuracy@1") if layers else None
        (fresh / "extra").mkdir()
        if picture:
            (fresh / "extra/retrieval.png").write_bytes(picture)
        write_text(fresh / "page.html", _page(metrics, asked, picture))
    return metrics


# ---------------------------------------------------------------- what is asked


def _asked(settings: Mapping, ingested: Path) -> Asked:
    for name in settings:
        refuse_unknown("evaluation", name, tuple(KEYS), SettingsError)
    for part in ("texts", "pairs", "questions"):
        for name, chosen in settings.get(part, {}).items():
            for key in chosen:
                refuse_unknown(f"evaluation.{part}.{name}", key, KEYS[part], SettingsError)
            if "data" not in chosen:
                raise SettingsError(f"evaluation.{part}.{name} needs `data`, the name of a data set")
    if not any(settings.get(part) for part in ("texts", "pairs", "questions")):
        raise SettingsError("nothing is evaluated; give texts, pairs or questions")
    texts = {language: held_out(language, chosen, ingested) for language, chosen in settings.get("texts", {}).items()}
    pairs: dict = {}
    for name, chosen in settings.get("pairs", {}).items():
        pairs |= _pairs(name, chosen, ingested)
    benchmarks = settings.get("questions", {})
    left_out = _left_out(benchmarks, settings.get("train") or {}, ingested)
    questions = {name: _questions(name, chosen, ingested, left_out) for name, chosen in benchmarks.items()}
    return Asked(texts, pairs, questions, dict(benchmarks), left_out)


def _rows(name: str, data: str, split: str, ingested: Path, kinds: Sequence[str]) -> tuple[str, pl.DataFrame]:
    folder = ingested / data
    if not (folder / "manifest.json").is_file():
        raise SettingsError(f"evaluation.{name}: {folder} was not ingested; a data set is a line below `datasets`")
    kind, file = read_json(folder / "manifest.json")["kind"], folder / "rows" / f"{split}.parquet"
    if kind not in kinds:
        raise SettingsError(f"evaluation.{name} wants {' or '.join(kinds)}, but {data} holds {kind}")
    if not file.is_file():
        raise SettingsError(f"evaluation.{name}: {data} has no split {split}")
    return kind, pl.read_parquet(file)


def held_out(language: str, chosen: Mapping, ingested: Path) -> list[str]:
    """Held-out texts in one language, in the order of their hashes, until there are enough characters."""
    kind, rows = _rows(f"texts.{language}", chosen["data"], "heldout", ingested, ("documents", "pairs"))
    if kind == "documents":
        between = "" if language in UNSPACED else " "
        found = [between.join(s) for s in rows.filter(pl.col("language") == language)["sentences"]]
    else:
        sides = [rows.filter(pl.col(f"{side}_language") == language)[side] for side in ("source", "target")]
        found = [text for side in sides for text in side]
    most, taken, size = chosen.get("characters", CHARACTERS), [], 0
    for text in found:
        if size < most:
            taken.append(text[: most - size])
            size += len(taken[-1])
    if not taken:
        there = ", ".join(sorted(read_json(ingested / chosen["data"] / "manifest.json")["languages"]))
        raise SettingsError(f"evaluation.texts.{language}: {chosen['data']} holds out no text in it; it has {there}")
    return taken


def _pairs(name: str, chosen: Mapping, ingested: Path) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
    """Held-out pairs by their languages; a sentence that occurs twice would have two right answers."""
    _, rows = _rows(f"pairs.{name}", chosen["data"], "heldout", ingested, ("pairs",))
    rows = rows.unique("source", keep="first", maintain_order=True).unique("target", keep="first", maintain_order=True)
    found = {}
    for languages, part in rows.partition_by("source_language", "target_language", as_dict=True).items():
        part = part.head(chosen.get("sentences", SENTENCES))
        found[languages] = part["source"].to_list(), part["target"].to_list()
    return found


def _left_out(benchmarks: Mapping, train: Mapping, ingested: Path) -> pl.DataFrame:
    """Benchmark items that stand in training data, by the name of the data set."""
    for key in train:
        refuse_unknown("evaluation.train", key, KEYS["train"], SettingsError)
    learned = [train["data"]] if isinstance(train.get("data"), str) else train.get("data", [])
    sets = {chosen["data"] for chosen in benchmarks.values()}
    for name, chosen in benchmarks.items():
        _rows(f"questions.{name}", chosen["data"], "test", ingested, ("examples",))
    folders = [{name: ingested / name for name in names} for names in (sorted(sets), learned)]
    return leaks(*folders, Likeness.read(dict(train.get("near") or {})))


def _questions(name: str, chosen: Mapping, ingested: Path, left_out: pl.DataFrame) -> list[Question]:
    """The questions of the split test with those of the same subject and language in dev as their examples."""
    if chosen.get("form", "letter") not in ("letter", "text"):
        raise SettingsError(f"evaluation.questions.{name}.form is {chosen['form']!r}; it is letter or text")
    data = chosen["data"]
    _, rows = _rows(f"questions.{name}", data, "test", ingested, ("examples",))
    if "subject" not in rows.columns:
        raise SettingsError(f"evaluation.questions.{name}: {data} has no subjects; read it with tasks/datasets/"
                            "questions.py")  # fmt: skip
    gone = left_out.filter((pl.col("of") == data) & (pl.col("of_split") == "test"))["of_row"].unique()
    rows = rows.filter(~pl.int_range(pl.len()).is_in(gone.implode())).head(chosen.get("most", MOST))
    if not len(rows):
        raise SettingsError(
            f"evaluation.questions.{name}: all items of {data} stand in training data; none is left to ask"
        )
    shown: dict[tuple, list[Question]] = {}
    if (ingested / data / "rows/dev.parquet").is_file():
        dev = pl.read_parquet(ingested / data / "rows/dev.parquet").sort("number", maintain_order=True)
        for row in dev.iter_rows(named=True):
            shown.setdefault((row["subject"], row["language"]), []).append(_question(row, ()))
    return [_question(row, shown.get((row["subject"], row["language"]), ())) for row in rows.iter_rows(named=True)]


def _question(row: Mapping, examples: Sequence[Question]) -> Question:
    return Question(row["text"], row["second"], row["choices"], int(row["label"]), row["subject"], row["language"],
                    examples)  # fmt: skip


# ---------------------------------------------------------------- what is found


def _measure(model, asked: Asked, read: Callable[[int], object]) -> tuple[dict[str, float], list[dict], list[dict]]:
    """Metrics by name, retrieval by layer, answers by question; `read` is told how much of `asked` is done."""
    metrics, layers, answers = {}, [], []
    for language, texts in asked.texts.items():
        metrics |= {f"{name}_{language}": value for name, value in model.perplexity(texts).items()}
        read(len(texts))
    best: dict[str, list[float]] = {"retrieval": [], "centred_retrieval": []}
    for (first, second), sentences in asked.pairs.items():
        for kind, found in zip(best, model.retrieval(*sentences), strict=True):
            top = max(range(len(found)), key=lambda layer: sum(found[layer]))
            best[kind].append(sum(found[top]) / 2)
            metrics |= {f"{kind}_{first}_{second}": found[top][0], f"{kind}_{second}_{first}": found[top][1]}
            metrics[f"{kind}_layer_{first}_{second}"] = top
            for layer, (there, back) in enumerate(found):
                row = {"measure": kind, "layer": layer}
                layers += [row | {"from": first, "to": second, "accuracy": there},
                           row | {"from": second, "to": first, "accuracy": back}]  # fmt: skip
        read(len(sentences[0]))
    metrics |= {kind: sum(found) / len(found) for kind, found in best.items() if found}
    for name, questions in asked.questions.items():
        form, shots = asked.chosen[name].get("form", "letter"), asked.chosen[name].get("shots", 0)
        said, fewer = model.answers(questions, form, shots)
        read(len(questions))
        right = [place == question.right for place, question in zip(said, questions, strict=True)]
        share = sum(right) / len(right)
        metrics |= {f"accuracy_{name}": share, f"fewer_shots_{name}": fewer}
        metrics[f"accuracy_error_{name}"] = math.sqrt(share * (1 - share) / len(right))
        answers += [
            {"benchmark": name, "subject": one.subject, "text": one.text, "label": one.right, "predicted": place}
            for one, place in zip(questions, said, strict=True)
        ]
    return metrics, layers, answers


def _compared(base: Mapping[str, float], model: Mapping[str, float]) -> dict[str, float]:
    found = dict(model) | {f"base_{name}": value for name, value in base.items() if not name.startswith("characters")}
    for name in [name for name in model if name.startswith("character_perplexity_")]:
        language = name.removeprefix("character_perplexity_")
        found[f"forgetting_{language}"] = model[name] / base[name] - 1
        bits = f"bits_per_character_{language}"
        found[f"gain_{language}"] = 1 - model[bits] / base[bits]
    for kind in [kind for kind in ("retrieval", "centred_retrieval") if kind in model]:
        found[f"{kind}_gain"] = model[kind] - base[kind]
    for name in [name for name in model if name.startswith("accuracy_") and not name.startswith("accuracy_error_")]:
        found[name.replace("accuracy_", "accuracy_gain_", 1)] = model[name] - base[name]
    return {name: float(value) for name, value in sorted(found.items())}


def _counted(asked: Asked) -> dict[str, float]:
    found = {}
    for name, questions in asked.questions.items():
        gone = asked.left_out.filter((pl.col("of") == asked.chosen[name]["data"]) & (pl.col("of_split") == "test"))
        found[f"items_{name}"] = float(len(questions))
        found[f"chance_{name}"] = sum(1 / len(one.options) for one in questions) / len(questions)
        found[f"left_out_{name}"] = float(gone["of_row"].n_unique())
    for (first, second), sentences in asked.pairs.items():
        found[f"pairs_{first}_{second}"] = float(len(sentences[0]))
    return found


# ---------------------------------------------------------------- what is written


def _answers(rows: list[dict]) -> pl.DataFrame:
    names = ("model", "benchmark", "subject", "text")
    kinds = dict.fromkeys(names, pl.String) | dict.fromkeys(("label", "predicted"), pl.Int64)
    return pl.DataFrame(rows, schema=kinds)


def _layers(rows: list[dict]) -> pl.DataFrame:
    kinds = {
        "model": pl.String,
        "measure": pl.String,
        "from": pl.String,
        "to": pl.String,
        "layer": pl.Int64,
        "accuracy": pl.Float64,
    }
    return pl.DataFrame(rows, schema=kinds)


def _lines(rows: list[dict]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        centred = ", centred" if row["measure"].startswith("centred") else ""
        found.setdefault(f"{row['model']}, {row['from']} to {row['to']}{centred}", []).append(row["accuracy"])
    return found


def _digests(settings: Mapping, ingested: Path) -> dict[str, str]:
    parts = [chosen["data"] for part in ("texts", "pairs", "questions") for chosen in settings.get(part, {}).values()]
    learned = (settings.get("train") or {}).get("data", [])
    names = sorted({*parts, *([learned] if isinstance(learned, str) else learned)})
    return {name: digest(ingested / name) for name in names}


def _page(metrics: Mapping[str, float], asked: Asked, picture: bytes | None) -> str:
    own = [name for name in metrics if not name.startswith("base_")]
    rows = [[escape(name), number(metrics[name]), number(metrics.get(f"base_{name}"))] for name in own]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Evaluation</title><style>{STYLE}</style><h1>A language model beside its base</h1>",
        table(["", "model", "base"], rows),
    ]
    if picture:
        shown = f"data:image/png;base64,{b64encode(picture).decode()}"
        parts.append(f"<h2>Retrieval of translations by layer</h2><figure><img alt='by layer' src='{shown}'></figure>")
    if len(asked.left_out):
        named = asked.left_out.select("of", "of_text", "set", "how", "share").unique(maintain_order=True)
        shown = [[*map(escape, row[:4]), number(row[4])] for row in named.head(100).iter_rows()]
        parts.append(f"<h2>Benchmark items in training data ({len(named)}), left out</h2>"
                     + table(["benchmark", "item", "found in", "how", "share"], shown))  # fmt: skip
    return "\n".join(parts) + "\n"


def main(address: str, base: str, model: str, ingested: str, out: str) -> None:
    """python -m tasks.evaluate_language params.yaml:KEY BASE MODEL artifacts/ingest OUT"""
    from tasks.slots import slot

    with slot() as device:
        metrics = evaluate_language(read(address), base, model, ingested, out, device)
    shown = ("forgetting_", "gain_", "retrieval_gain", "accuracy_")
    told = [f"{name} {value:.4g}" for name, value in metrics.items()
            if name.startswith(shown) and not name.startswith(("accuracy_error_", "accuracy_gain_"))]  # fmt: skip
    for name, value in metrics.items():
        if name.startswith("left_out_") and value:
            print(f"warning: {value:.0f} items of {name.removeprefix('left_out_')} stand in training data and were not "
                  f"asked; they are named in {out}/left_out.parquet", file=sys.stderr)  # fmt: skip
    print(f"{out}: {', '.join(told)}")


if __name__ == "__main__":
    run(main)
