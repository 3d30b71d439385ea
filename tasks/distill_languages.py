"""A translation model, a new language, and nothing left of the old data -> a model of old and new languages.

    python -m tasks.distill_languages params.yaml:distill.languages NAME OLD DATA OUT CHECKPOINTS [HELDOUT]

OLD is a folder of tasks/finetune.py (kind generation); DATA has rows of text and label in the new language. Before any
training the old model writes what the student is to remember. HELDOUT holds the data sets that the entry names as
`heldout`, rows of old languages that nothing is learned from: the kept weights are those of the best mean loss over all
languages, and what is forgotten is measured. See models/distill/texts/lifelong.py (arXiv:2212.02800).
"""

import csv
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn

from models import build, parallel
from models.components._closest import refuse_unknown
from models.components._loss import IGNORED
from models.components._model import Model, assemble
from models.distill._maths import kl
from models.distill.texts.lifelong import Remembering, pseudo
from tasks.command import run as run_command
from tasks.curve import write_curve
from tasks.engine import run
from tasks.files import digest, new_folder, write_json
from tasks.finetune import (
    Evaluation,
    Start,
    fingerprint_of,
    kind_of,
    load_start,
    retarget,
    rows_of,
    save_model,
    tagged,
    training_of,
)
from tasks.kinds._kind import Example, Examples, Kind, Rejected
from tasks.settings import SettingsError, read
from tasks.slots import slot
from tasks.teachers import TeacherChanged
from tasks.training import use_threads

__all__ = ["distill_languages"]

KEYS = ("data", "from", "method", "inputs", "new", "old", "dictionary", "reverse", "heldout", "length", "settings",
        "training")  # fmt: skip
INPUTS = ("new", "pseudo", "reverse")
LENGTH = 128
PLAIN = "plain"  # the name of rows without a tag


@dataclass(frozen=True)
class _Old:
    """Held-out rows of a language that the old model knows."""

    kind: Kind
    rows: pl.DataFrame  # tagged
    examples: list[Example]


class _WithOld:
    """Collates new rows and those of the old model's making, and says which are which."""

    def __init__(self, kind: Kind):
        self.kind = kind

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return self.kind.collate(examples) | {"old": torch.tensor([row["old"] for row in examples])}


def distill_languages(
    name: str,
    chosen: Mapping,
    before: str | Path,
    data: str | Path,
    out: str | Path,
    checkpoints: str | Path | None,
    heldout: str | Path | None = None,
) -> dict:
    """Write what is to be remembered, train on both, and write the folder `out` whole or not at all.

    Args:
        name: of the entry.
        chosen: {new: tag in front of every new input, old: the tags of what is to be remembered, inputs: "new" (one to
            many: the new inputs under each old tag), "pseudo" (many to one: word for word by `dictionary`, lines of new
            word, tab, old word) or "reverse" (many to one: from the new targets by the model `reverse`, a folder of
            tasks/finetune.py), heldout: {tag: data set of `heldout`}, "plain" for rows without a tag, method: settings
            of Lifelong, length, settings: of the kind generation, training: as of tasks/finetune.py, data and from:
            names, for the graph}. A tag may be empty.
        before: the old model.
        data: ingested rows with text and label.
        out: takes model/, recipe.json, run.json, metrics.json {"dev", "old": {tag: {"kl", "before", "after"}},
            "export"}, remembered.parquet and curve.csv.
        checkpoints: of the run; emptied when it is done, None keeps none.
        heldout: has the ingested folders that the entry names as `heldout`. An entry that names none keeps the weights
            that are best at the new language alone, and does not know what it forgot.

    Returns:
        The metrics; {} if SIGTERM ended the run early.

    Raises:
        SettingsError, Rejected, FileNotFoundError: what cannot work, before any training.
        TeacherChanged: the old model's files were written to during the run.
    """
    began = time.monotonic()
    chosen = _checked(name, chosen, heldout)
    rows, start = rows_of(data), load_start(before)
    content = digest(start.tokenizer)
    if "lm" not in start.recipe["target"]:
        raise Rejected(f"{before} writes nothing: it has {', '.join(start.recipe['target'])}; give a model of language")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError("the old model writes on one process; start one")
    told = {"kind": "generation", "length": chosen.get("length", LENGTH), "settings": chosen.get("settings")}
    method = build("distill.texts", "lifelong", **(chosen.get("method") or {}))
    new = {split: tagged(frame, chosen["new"]) for split, frame in rows.items()}
    kind = kind_of(told, start, new)
    old_rows = {tag: _old(tag, Path(heldout) / each, told, start) for tag, each in (chosen["heldout"] or {}).items()}
    with slot() as device:
        remembered, dropped = _remembered(chosen, rows["train"], start, before, told, device)
        both = pl.concat([
            new["train"].select("text", "label").with_columns(old=pl.lit(False)),
            remembered.select("text", "label").with_columns(old=pl.lit(True)),
        ])  # fmt: skip
        encoded = kind.encode(both.with_columns(second=pl.lit(None, pl.String)), "train")
        examples = [row | {"old": old} for row, old in zip(encoded, both["old"], strict=True)]
        settings = training_of(chosen.get("training") or {}, len(examples))
        torch.manual_seed(settings.seed)
        student, old = _model(start), _model(start).to(device)
        model = Remembering(student, old if method.level == "words" else None, method).to(device)
        known = [fingerprint_of(told, data, start), both.write_ndjson(), dict(chosen.get("method") or {})]
        known += [{tag: each.rows.write_ndjson() for tag, each in old_rows.items()}] if old_rows else []
        fingerprint = hashlib.sha256(repr(known).encode()).hexdigest()
        dev = kind.encode(new["dev"], "dev")
        judge = _Judge(Evaluation(kind, new["dev"], dev, settings, device),
                       {tag: Evaluation(each.kind, each.rows, each.examples, settings, device)
                        for tag, each in old_rows.items()})  # fmt: skip
        kept = checkpoints and Path(checkpoints) / hashlib.sha256(repr([fingerprint, settings.decisive]).encode()
                                                                  ).hexdigest()[:16]  # fmt: skip
        done = run(model, Examples(_WithOld(kind), examples, settings.seed, fingerprint), settings,
                   judge, kept, f"languages {name}", device)  # fmt: skip
        student.cpu().eval()
        old.cpu()
    if done.stopped:
        return {}
    if digest(start.tokenizer) != content:
        raise TeacherChanged(f"{before} was written while its student was being trained; run this again")
    recipe = retarget(start.recipe, "lm", kind.head())
    with new_folder(out) as folder:
        export, loaded = save_model(student, recipe, start, kind, dev, folder / "model")
        found = Evaluation(kind, new["dev"], dev, settings, "cpu").answers(student)[0]
        if loaded is not None:
            found |= kind.judged(new["dev"], kind.write(loaded, dev))[0]
        forgotten = {tag: _moved(each, student, old, settings.batch) for tag, each in old_rows.items()}
        metrics = {"dev": found, "old": forgotten, "export": export}
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "recipe.json", {"model": recipe, "transformers": start.family})
        write_json(folder / "run.json", {
            "name": name,
            "kind": "generation",
            "from": str(chosen.get("from", before)),
            "family": start.family,
            "labels": [],
            "teacher": str(before),
            "teacher_content": content,
            "length": told["length"],
            "settings": told["settings"] or {},
            "tag": chosen["new"],
            "evaluated_rows": len(rows["dev"]),
            "fingerprint": hashlib.sha256(rows["dev"].write_ndjson().encode()).hexdigest(),  # without a tag
            "inputs": chosen["inputs"],
            "new": len(new["train"]),
            "remembered": len(remembered),
            "dropped": dropped,
            "heldout": chosen["heldout"] or {},
            "heldout_rows": {tag: len(each.rows) for tag, each in old_rows.items()},
            "parameters": sum(p.numel() for p in student.parameters()),
            "trained_on": fingerprint,
            **done.told(),
            "wall_seconds": time.monotonic() - began,
            "seed": settings.seed,
            "training": settings.decisive,
            "tokenizer": start.vocabulary.sha256,
        })  # fmt: skip
        remembered.write_parquet(folder / "remembered.parquet")
        write_curve(folder, done.curve, "kept", *map(_column, old_rows), picture="extra/curve.png")
    if checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)
    moved = (
        ", ".join(f"{tag} moved by {told['kl']:.4f} nats a token" for tag, told in forgotten.items()) or "not measured"
    )
    print(f"languages {name}: dev loss {found['loss']:.4f}; {len(remembered)} texts remembered, {dropped} dropped; "
          f"old languages: {moved}")  # fmt: skip
    return metrics


# ---------------------------------------------------------------- what is to be remembered


def _remembered(
    chosen: Mapping, train: pl.DataFrame, start: Start, before: str | Path, told: Mapping, device: str
) -> tuple[pl.DataFrame, int]:
    """Inputs of old languages and what the old model writes to them; and how many it wrote nothing to.

    All of it is written before the first step, without dropout.
    """
    inputs = train["text"].to_list()
    if chosen["inputs"] == "pseudo":
        inputs = _pseudo(inputs, chosen["dictionary"])
    elif chosen["inputs"] == "reverse":
        back = load_start(chosen["reverse"])
        inputs = _written(back, chosen["reverse"], train["label"].to_list(), told, device)
    made = pl.concat(
        [tagged(pl.DataFrame({"text": inputs}), tag).with_columns(tag=pl.lit(tag)) for tag in chosen["old"]]
    )
    made = made.filter(pl.col("text").str.strip_chars() != "").unique("text", keep="first", maintain_order=True)
    made = made.with_columns(
        label=pl.Series(_written(start, before, made["text"].to_list(), told, device), dtype=pl.String)
    )
    kept = made.filter(pl.col("label") != "")
    if not len(kept):
        raise Rejected(f"{before} wrote nothing to {len(made)} inputs: there is nothing to remember it by")
    return kept, len(inputs) * len(chosen["old"]) - len(kept)


def _pseudo(texts: Sequence[str], dictionary: str | Path) -> list[str]:
    with open(dictionary, encoding="utf-8", newline="") as lines:
        words = {row[0].lower(): row[1] for row in csv.reader(lines, delimiter="\t") if len(row) == 2}
    if not words:
        raise SettingsError(f"{dictionary} has no line of two words with a tab between them")
    made = [pseudo(text, words) for text in texts]
    known = sum(share for _, share in made) / max(len(made), 1)
    if not known:
        raise Rejected(f"{dictionary} has none of the words of {len(texts)} texts; is it of another language?")
    print(f"{dictionary}: {known:.0%} of the words of a text have a translation")
    return [text for text, _ in made]


def _written(start: Start, folder: str | Path, texts: Sequence[str], told: Mapping, device: str) -> list[str]:
    """What a model writes to these texts, most likely word by word."""
    import transformers

    place = Path(folder) / "model" if (Path(folder) / "model").is_dir() else Path(folder)
    if not (place / "config.json").is_file():
        raise Rejected(f"{folder} is no model of transformers, whose `generate` writes the texts")
    frame = pl.DataFrame({"text": texts, "label": ["."] * len(texts), "second": [None] * len(texts)},
                         schema_overrides={"second": pl.String})  # fmt: skip
    kind = kind_of(told, start, {"train": frame, "dev": frame})
    model = (
        getattr(transformers, kind.loader)
        .from_pretrained(
            place, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        .eval()
    )
    with torch.no_grad():
        return kind.write(model, kind.encode(frame, "train"))


# ---------------------------------------------------------------- what was forgotten


class _Judge:
    """Metrics of the new language and, where rows of old ones are held out, the loss of each.

    Then the mean loss over all languages is minimised: the best at the new one may have forgotten the others.
    """

    def __init__(self, new: Evaluation, old: Mapping[str, Evaluation]):
        self.new, self.old = new, old

    def __call__(self, model: nn.Module) -> dict[str, float]:
        student = parallel.inner(model).student
        found = self.new(student)
        if not self.old:
            return found
        losses = {_old_loss(tag): each.answers(student)[0]["loss"] for tag, each in self.old.items()}
        mean = (found["loss"] + sum(losses.values())) / (1 + len(losses))
        return found | losses | {"mean_loss": mean, "score": -mean}


def _old_loss(tag: str) -> str:
    return f"old_{tag}"


def _column(tag: str) -> str:
    """Of the curve."""
    return f"heldout_{_old_loss(tag)}"


def _old(tag: str, folder: Path, told: Mapping, start: Start) -> _Old:
    """The dev rows of a folder, each with the tag in front."""
    if not (file := folder / "rows/dev.parquet").is_file():
        raise FileNotFoundError(f"{folder}, held out as {tag!r}, has no rows/dev.parquet; run its ingest stage, or "
                                f"name a data set with dev rows")  # fmt: skip
    rows = tagged(pl.read_parquet(file), "" if tag == PLAIN else tag)
    kind = kind_of(told, start, {"train": rows, "dev": rows})
    return _Old(kind, rows, kind.encode(rows, "dev"))


@torch.no_grad()
def _moved(held: _Old, student: Model, old: Model, batch: int) -> dict:
    """Mean KL(old || student) per token of an old language's rows, and the loss of both."""
    total = {"kl": 0.0, "before": 0.0, "after": 0.0}
    count = 0
    for first in range(0, len(held.examples), batch):
        given = held.kind.collate(held.examples[first : first + batch])
        labels = given["labels_lm"]
        asked = labels != IGNORED
        theirs, ours = (model.predict("lm", **given)[asked].float() for model in (old.eval(), student))
        total["kl"] += kl(ours, theirs).sum().item()
        for name, said in (("before", theirs), ("after", ours)):
            total[name] += torch.nn.functional.cross_entropy(said, labels[asked], reduction="sum").item()
        count += int(asked.sum())
    return {name: value / max(count, 1) for name, value in total.items()}


# ---------------------------------------------------------------- settings


def _model(start: Start) -> Model:
    model = assemble(start.recipe)
    model.load_state_dict(start.state)
    return model


def _checked(name: str, chosen: Mapping, heldout: str | Path | None) -> dict:
    for key in chosen:
        refuse_unknown(f"distill.languages.{name}", key, KEYS)
    told = {"inputs": "new", "new": "", "heldout": None, **chosen}
    if told["inputs"] not in INPUTS:
        raise SettingsError(f"distill.languages.{name}: inputs is one of {', '.join(INPUTS)}; got {told['inputs']!r}")
    if not isinstance(told.get("old"), Sequence) or isinstance(told["old"], str) or not told["old"]:
        raise SettingsError(f"distill.languages.{name} needs old, the tags of what is to be remembered; got "
                            f"{told.get('old')!r}")  # fmt: skip
    if told["inputs"] == "new" and told["new"] in told["old"]:
        raise SettingsError(f"distill.languages.{name}: the tag {told['new']!r} is both new and old; the old model has "
                            f"not learned the new language")  # fmt: skip
    for inputs, key in (("pseudo", "dictionary"), ("reverse", "reverse")):
        if told["inputs"] == inputs and not Path(str(told.get(key))).exists():
            raise SettingsError(f"distill.languages.{name}: inputs {inputs} needs {key}, a path; got {told.get(key)!r}")
    _refuse_heldout(f"distill.languages.{name}", told["heldout"], told["old"], heldout)
    return told


def _refuse_heldout(at: str, named: Mapping | None, tags: Sequence[str], folder: str | Path | None) -> None:
    if named is None:
        return
    if not isinstance(named, Mapping) or not all(isinstance(value, str) for value in named.values()):
        raise SettingsError(f"{at}: heldout is {{tag: data set}}, such as {{{tags[0] or PLAIN}: pairs}}; got {named!r}")
    for tag in named:
        refuse_unknown(f"{at}.heldout", tag, [one or PLAIN for one in tags])
    if folder is None:
        raise SettingsError(f"{at} names held-out data, but no folder was given that has them; give HELDOUT")


def main(address: str, name: str, before: str, data: str, out: str, checkpoints: str, heldout: str = "") -> None:
    """python -m tasks.distill_languages params.yaml:distill.languages NAME OLD DATA OUT CHECKPOINTS [HELDOUT]"""
    use_threads()
    if not distill_languages(name, read(f"{address}.{name}"), before, data, out, checkpoints, heldout or None):
        sys.exit(os.EX_TEMPFAIL)  # stopped early: the flows try again, and it continues


if __name__ == "__main__":
    run_command(main)
