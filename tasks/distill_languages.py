"""A translation model, a new language, and nothing left of the old data -> a model of old and new languages.

    python -m tasks.distill_languages params.yaml:distill.languages NAME OLD DATA OUT CHECKPOINTS [HELDOUT]

OLD is a folder of tasks/finetune.py (kind generation); DATA has rows of text and label in the new language. Before any
training the old model writes what the student is to remember; HELDOUT/<tag> are rows of old languages, only to measure
what is forgotten. See models/distill/texts/lifelong.py (arXiv:2212.02800).
"""

import csv
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

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
from tasks.training import use_threads

__all__ = ["distill_languages"]

KEYS = ("data", "from", "method", "inputs", "new", "old", "dictionary", "reverse", "length", "settings", "training")
INPUTS = ("new", "pseudo", "reverse")
LENGTH = 128


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
            tasks/finetune.py), method: settings of Lifelong, length, settings: of the kind generation, training: as of
            tasks/finetune.py, data and from: names, for the graph}. A tag may be empty.
        before: the old model.
        data: ingested rows with text and label.
        out: takes model/, recipe.json, run.json, metrics.json {"dev", "old": {tag: {"kl", "before", "after"}},
            "export"}, remembered.parquet and curve.csv.
        checkpoints: of the run; emptied when it is done, None keeps none.
        heldout: folders of old rows by tag; a folder without a tag is called "plain". None measures nothing.

    Returns:
        The metrics; {} if SIGTERM ended the run early.

    Raises:
        SettingsError, Rejected: what cannot work, before any training.
    """
    began = time.monotonic()
    chosen = _checked(name, chosen)
    rows, start = rows_of(data), load_start(before)
    if "lm" not in start.recipe["target"]:
        raise Rejected(f"{before} writes nothing: it has {', '.join(start.recipe['target'])}; give a model of language")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError("the old model writes on one process; start one")
    told = {"kind": "generation", "length": chosen.get("length", LENGTH), "settings": chosen.get("settings")}
    method = build("distill.texts", "lifelong", **(chosen.get("method") or {}))
    new = {split: tagged(frame, chosen["new"]) for split, frame in rows.items()}
    kind = kind_of(told, start, new)
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
        fingerprint = hashlib.sha256(repr(known).encode()).hexdigest()
        dev = kind.encode(new["dev"], "dev")
        judged = Evaluation(kind, new["dev"], dev, settings, device)
        kept = checkpoints and Path(checkpoints) / hashlib.sha256(repr([fingerprint, settings.decisive]).encode()
                                                                  ).hexdigest()[:16]  # fmt: skip
        done = run(model, Examples(_WithOld(kind), examples, settings.seed, fingerprint), settings,
                   lambda model: judged(parallel.inner(model).student), kept, f"languages {name}", device)  # fmt: skip
        student.cpu().eval()
        old.cpu()
    if done.stopped:
        return {}
    recipe = retarget(start.recipe, "lm", kind.head())
    with new_folder(out) as folder:
        export, loaded = save_model(student, recipe, start, kind, dev, folder / "model")
        found = Evaluation(kind, new["dev"], dev, settings, "cpu").answers(student)[0]
        if loaded is not None:
            found |= kind.judged(new["dev"], kind.write(loaded, dev))[0]
        forgotten = _forgotten(kind, student, old, heldout, settings.batch)
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
            "teacher_content": digest(start.tokenizer),
            "length": told["length"],
            "settings": told["settings"] or {},
            "tag": chosen["new"],
            "evaluated_rows": len(rows["dev"]),
            "fingerprint": hashlib.sha256(rows["dev"].write_ndjson().encode()).hexdigest(),  # without a tag
            "inputs": chosen["inputs"],
            "new": len(new["train"]),
            "remembered": len(remembered),
            "dropped": dropped,
            "parameters": sum(p.numel() for p in student.parameters()),
            "trained_on": fingerprint,
            **done.told(),
            "wall_seconds": time.monotonic() - began,
            "seed": settings.seed,
            "training": settings.decisive,
            "tokenizer": start.vocabulary.sha256,
        })  # fmt: skip
        remembered.write_parquet(folder / "remembered.parquet")
        write_curve(folder, done.curve, "kept", picture="extra/curve.png")
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


def _forgotten(kind: Kind, student: Model, old: Model, heldout: str | Path | None, batch: int) -> dict:
    """For each old language: mean KL(old || student) per token of its own rows, and the loss of both."""
    if heldout is None:
        return {}
    found = {}
    for folder in sorted(path for path in Path(heldout).iterdir() if (path / "rows").is_dir()):
        tag = "" if folder.name == "plain" else folder.name
        frame = tagged(pl.read_parquet(folder / "rows/dev.parquet"), tag)
        found[folder.name] = _moved(kind, kind.encode(frame, "dev"), student, old, batch)
    return found


@torch.no_grad()
def _moved(kind: Kind, examples: Sequence[Example], student: Model, old: Model, batch: int) -> dict:
    total = {"kl": 0.0, "before": 0.0, "after": 0.0}
    count = 0
    for first in range(0, len(examples), batch):
        given = kind.collate(examples[first : first + batch])
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


def _checked(name: str, chosen: Mapping) -> dict:
    for key in chosen:
        refuse_unknown(f"distill.languages.{name}", key, KEYS)
    told = {"inputs": "new", "new": "", **chosen}
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
    return told


def main(address: str, name: str, before: str, data: str, out: str, checkpoints: str, heldout: str = "") -> None:
    """python -m tasks.distill_languages params.yaml:distill.languages NAME OLD DATA OUT CHECKPOINTS [HELDOUT]"""
    use_threads()
    if not distill_languages(name, read(f"{address}.{name}"), before, data, out, checkpoints, heldout or None):
        sys.exit(os.EX_TEMPFAIL)  # stopped early: the flows try again, and it continues


if __name__ == "__main__":
    run_command(main)
