"""A pre-trained model and pairs with reasoning -> a classifier of pairs that needs none.

    python -m tasks.distill_relevance params.yaml:distill.relevance NAME START DATA OUT CHECKPOINTS

Second stage of distilling reasoning into relevance (arXiv:2510.11056): see models/distill/texts/relevance.py. DATA is
what tasks/generate_reasons.py wrote; OUT is a folder as that of tasks/finetune.py.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from models import build, parallel
from models.components._closest import refuse_unknown
from models.distill._student import new_student, student_recipe
from models.distill.texts.relevance import TwoPasses
from tasks.command import run as run_command
from tasks.curve import write_curve
from tasks.engine import launched, run
from tasks.files import new_folder, write_json
from tasks.finetune import (
    Evaluation,
    begin,
    fingerprint_of,
    kind_of,
    load_start,
    retarget,
    rows_of,
    save_model,
    training_of,
)
from tasks.kinds._kind import Example, Examples, Kind, Rejected, pad
from tasks.settings import SettingsError, read
from tasks.slots import slot
from tasks.training import use_threads

__all__ = ["Reasoned", "distill_relevance"]

KEYS = ("data", "from", "student", "method", "length", "reasons", "training")
STUDENT = ("layers", "width", "heads", "inner", "start")
LENGTH, REASONS = 128, 64  # tokens of a pair, and of what is said about it


class Reasoned:
    """Collates pairs: rows with reasoning first, each read without and with it.

    Args:
        kind: of pairs.
        reasons: tokens of reasoning at most; a pair is never cut for it.
    """

    def __init__(self, kind: Kind, reasons: int):
        self.kind, self.reasons = kind, reasons
        self.cut = 0  # reasons that were too long

    def encode(self, frame: pl.DataFrame) -> list[Example]:
        """The examples of train, with `query`, equal for equal texts, and `rich` (None without a reason)."""
        numbers: dict[str, int] = {}
        query = [numbers.setdefault(text, len(numbers)) for text in frame["text"]]
        said = iter(self._tokens(frame["reason"].drop_nulls().to_list()))
        rich = [None if reason is None else next(said) for reason in frame["reason"]]
        return [row | {"query": number, "rich": tokens} for row, number, tokens in
                zip(self.kind.encode(frame, "train"), query, rich, strict=True)]  # fmt: skip

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        examples = sorted(examples, key=lambda row: row["rich"] is None)  # stable: those with reasoning in front
        batch = self.kind.collate(examples) | {"query": torch.tensor([row["query"] for row in examples])}
        told = [self._with(row) for row in examples if row["rich"] is not None]
        rich = pad(told, self.kind.texts.padding) if told else {}
        return batch | {f"rich_{name}": value for name, value in rich.items()}

    def _with(self, row: Example) -> Example:
        """x, then the reasoning in the segment of the item, closed as x is."""
        made = {"ids": [*row["ids"], *row["rich"], row["ids"][-1]]}
        if "segments" in row:
            made["segments"] = [*row["segments"], *[row["segments"][-1]] * (len(row["rich"]) + 1)]
        return made

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        found = self.kind.texts.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        self.cut += sum(len(ids) > self.reasons for ids in found)
        return [ids[: self.reasons] for ids in found]


def distill_relevance(
    name: str,
    chosen: Mapping,
    source: str | Path,
    data: str | Path,
    out: str | Path,
    checkpoints: str | Path | None,
) -> dict:
    """Train both passes, and write the folder `out` whole or not at all.

    Args:
        name: of the entry.
        chosen: {method: settings of Relevance, length (128): tokens of a pair, reasons (64): of reasoning, student:
            {layers, ...} as in distill.student, none for the whole of `source`, training: as of tasks/finetune.py, data
            and from: names, for the graph}.
        source: a pre-trained folder.
        data: rows/train.parquet with `reason`; dev and test as they are.
        out: takes model/, recipe.json, run.json, metrics.json {"dev", "test", "export"}, predictions.parquet, curve.csv
            and extra/curve.png.
        checkpoints: of the run; emptied when it is done, None keeps none.

    Returns:
        The metrics; {} if SIGTERM ended the run early, and on all ranks but the first.

    Raises:
        SettingsError, Rejected: what cannot work.
    """
    began = time.monotonic()
    for key in chosen:
        refuse_unknown(f"distill.relevance.{name}", key, KEYS)
    for key in chosen.get("student") or {}:
        refuse_unknown(f"distill.relevance.{name}.student", key, STUDENT)
    rows, start = rows_of(data), load_start(source)
    if "reason" not in rows["train"].columns or rows["train"]["reason"].null_count() == len(rows["train"]):
        raise Rejected(f"{data} has no row with a reason; run tasks/generate_reasons.py first")
    length, reasons = chosen.get("length", LENGTH), chosen.get("reasons", REASONS)
    _refuse_longer(start.recipe, length + reasons + 1)
    told = {"kind": "pairs", "length": length}
    kind = kind_of(told, start, rows)
    settings = training_of(chosen.get("training") or {}, len(rows["train"]))
    torch.manual_seed(settings.seed)
    sizes = dict(chosen.get("student") or {})
    begins = sizes.pop("start", "cut")
    small = student_recipe(start.recipe, **sizes) if sizes else start.recipe
    recipe = retarget(small, "cls", kind.head())
    state = new_student(small, begins, start.state).state_dict() if sizes else start.state
    student = begin(recipe, state, "cls")
    reasoned = Reasoned(kind, reasons)
    examples = {"train": reasoned.encode(rows["train"])}
    examples |= {split: kind.encode(frame, split) for split, frame in rows.items() if split != "train"}
    known = [fingerprint_of(told, data, start), sizes, begins, reasons, dict(chosen.get("method") or {})]
    fingerprint = hashlib.sha256(repr(known).encode()).hexdigest()
    method = build("distill.texts", "relevance", **(chosen.get("method") or {}))
    train = Examples(reasoned, examples["train"], settings.seed, fingerprint)
    with launched() as own, nullcontext(own) if own else slot() as device:
        model = TwoPasses(student, method).to(device)
        judged = Evaluation(kind, rows["dev"], examples["dev"], settings, device)
        kept = checkpoints and Path(checkpoints) / hashlib.sha256(repr([fingerprint, settings.decisive]).encode()
                                                                  ).hexdigest()[:16]  # fmt: skip
        judge = lambda model: judged(parallel.inner(model).student)
        done = run(model, train, settings, judge, kept, f"relevance {name}", device)
        student.cpu().eval()
    if done.stopped or parallel.rank():
        return {}
    with new_folder(out) as folder:
        (folder / "extra").mkdir()
        export, _ = save_model(student, recipe, start, kind, examples["dev"], folder / "model")
        answers = {split: Evaluation(kind, rows[split], examples[split], settings, "cpu").answers(student)
                   for split in ("dev", "test") if split in rows}  # fmt: skip
        metrics = {split: found for split, (found, _) in answers.items()} | {"export": export}
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "recipe.json", {"model": recipe, "transformers": start.family})
        write_json(folder / "run.json", {
            "name": name,
            "kind": "pairs",
            "from": str(chosen.get("from", source)),
            "family": start.family,
            "labels": kind.names(),
            "length": length,
            "settings": {},
            "method": dict(chosen.get("method") or {}),
            "reasons": sum(row["rich"] is not None for row in examples["train"]),
            "reasons_cut": reasoned.cut,
            "rows": {split: len(frame) for split, frame in rows.items()},
            "truncated": {split: kind.texts.cut[split] for split in rows},
            "parameters": sum(p.numel() for p in student.parameters()),
            "evaluated_rows": len(rows["dev"]),
            "fingerprint": hashlib.sha256(rows["dev"].write_ndjson().encode()).hexdigest(),
            "trained_on": fingerprint,
            **done.told(),
            "wall_seconds": time.monotonic() - began,
            "seed": settings.seed,
            "training": settings.decisive,
            "tokenizer": start.vocabulary.sha256,
        })  # fmt: skip
        pl.concat([told for _, told in answers.values()], how="diagonal").write_parquet(folder / "predictions.parquet")
        write_curve(folder, done.curve, "heldout_accuracy", picture="extra/curve.png")
    if checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)
    shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics["dev"].items())
    print(f"relevance {name}: dev {shown}; best of {done.step} steps is {done.best_step}; {reasoned.cut} reasons cut")
    return metrics


def _refuse_longer(recipe: Mapping, length: int) -> None:
    position = recipe["embedding"].get("position") or {}
    room = position.get("length", length) - (position.get("start") or 0) if position else length
    if length > room:
        raise SettingsError(f"length and reasons make {length} tokens, but the model has positions for {room}; lower "
                            f"reasons: pairs are not cut for them")  # fmt: skip


def main(address: str, name: str, source: str, data: str, out: str, checkpoints: str) -> None:
    """python -m tasks.distill_relevance params.yaml:distill.relevance NAME START DATA OUT CHECKPOINTS"""
    use_threads()
    if not distill_relevance(name, read(f"{address}.{name}"), source, data, out, checkpoints) and not parallel.rank():
        sys.exit(os.EX_TEMPFAIL)  # stopped early: the flows try again, and it continues


if __name__ == "__main__":
    run_command(main)
