"""Pairs of a query and an item, and a teacher that writes -> the same pairs with its reasoning, and with its labels.

    python -m tasks.generate_reasons params.yaml:distill.reasons.NAME DATA OUT WRITTEN

First stage of distilling reasoning into relevance (arXiv:2510.11056). The sentence that states the verdict is cut, or
the student would read the answer off the reasoning. What is dropped is counted in OUT/report.json.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from models.components._closest import refuse_unknown
from models.distill.texts.relevance import without_verdict
from tasks.command import run
from tasks.files import new_folder, read_if_there, write_json
from tasks.finetune import rows_of
from tasks.kinds._kind import Rejected
from tasks.settings import SettingsError, read
from tasks.writers._writer import Prompt, filtered, open_writer, prompt_hash, write_all

__all__ = ["VERSION", "generate_reasons"]

KEYS = ("data", "writer", "question", "says", "gold", "rows")
VERSION = "reasons-1"
QUESTION = "Does the second text fit what the first one asks for?"
SHORTEST = 10  # letters of a reason


def generate_reasons(chosen: Mapping, data: str | Path, out: str | Path, written: str | Path) -> dict:
    """Ask for reasoning and verdict, filter, cut the verdict; write the folder `out` whole or not at all.

    Args:
        chosen: {writer: {name of tasks/writers: settings}, says: {label: word that the teacher answers with}, by
            default the labels themselves; question: what is asked of a pair; gold (true): keep the labels that the rows
            have and drop reasoning for another one, false: take the teacher's; rows: the first so many of train, by
            default all; data: a name, for the graph}.
        data: ingested rows with text, second and label.
        out: takes rows/, as those of `data`, where train has `reason` (null where the filter dropped it), `teacher` and
            `version` besides; manifest.json and report.json.
        written: JSON lines of what the teacher wrote.

    Returns:
        The report: {"asked", "kept", "dropped", "teacher", "version", "licence", "agree": share of verdicts that are
        the gold label}.

    Raises:
        SettingsError, Rejected: what cannot work.
    """
    for key in chosen:
        refuse_unknown("distill.reasons", key, KEYS)
    rows, writer = rows_of(data), open_writer(chosen.get("writer"))
    train = rows["train"].head(chosen.get("rows", len(rows["train"])))
    if "second" not in train.columns or train["second"].null_count():
        raise Rejected(f"{data} has rows without second; reasoning is about pairs of texts")
    labels = sorted(set(rows["train"]["label"]))
    says = {str(label): word for label, word in (chosen.get("says") or dict(zip(labels, labels, strict=True))).items()}
    if sorted(says) != labels or len({word.lower() for word in says.values()}) != len(says):
        raise SettingsError(f"says needs a word of its own for each label, {', '.join(labels)}; got {says}")
    question = chosen.get("question", QUESTION)
    prompts = [_prompt(number, row, question, says) for number, row in enumerate(train.to_dicts())]
    texts = write_all(writer, prompts, VERSION, written)["text"].to_list()
    found = [_read(text, says) for text in texts]
    gold, keep = train["label"].to_list(), chosen.get("gold", True)
    faults = [_fault(verdict, reason, label, keep) for (verdict, reason), label in zip(found, gold, strict=True)]
    reasons = [reason if fault is None else None for (_, reason), fault in zip(found, faults, strict=True)]
    said = [label for (verdict, _), label in zip(found, gold, strict=True) if verdict is not None]
    agree = [verdict for verdict, _ in found if verdict is not None]
    report = filtered(faults) | {
        "agree": sum(a == b for a, b in zip(agree, said, strict=True)) / max(len(said), 1),
        "teacher": writer.teacher, "version": VERSION, "licence": writer.licence,
    }  # fmt: skip
    told = train.with_columns(
        pl.Series("reason", reasons, dtype=pl.String), pl.lit(writer.teacher).alias("teacher"),
        pl.lit(VERSION).alias("version"), pl.lit(writer.licence).alias("teacher_licence"),
    )  # fmt: skip
    if not keep:
        told = told.with_columns(pl.Series("label", [verdict for verdict, _ in found], dtype=pl.String))
        told = told.filter(pl.col("label").is_not_null())
    if not len(told):
        raise Rejected(f"of {len(train)} pairs none is left: {report['dropped']}; see {written}")
    with new_folder(out) as folder:
        (folder / "rows").mkdir()
        for split, frame in rows.items():
            (told if split == "train" else frame).write_parquet(folder / "rows" / f"{split}.parquet")
        manifest = read_if_there(Path(data) / "manifest.json")
        write_json(folder / "manifest.json", manifest | {"kind": "examples", "reasons": report["kept"]})
        write_json(folder / "report.json", report)
    print(f"{writer.teacher} reasoned about {report['asked']} pairs, {report['kept']} kept, {report['agree']:.0%} with "
          f"the gold label; dropped: {report['dropped'] or 'none'}")  # fmt: skip
    return report


def _prompt(number: int, row: Mapping, question: str, says: Mapping[str, str]) -> Prompt:
    fields = {"first": row["text"], "second": row["second"], "label": row["label"], "word": says[row["label"]]}
    text = (
        f"{question}\nFirst: {row['text']}\nSecond: {row['second']}\nReason in one or two sentences about what they "
        f"share and where they differ. Then, on a line of its own, write Verdict: and {' or '.join(says.values())}."
    )
    return Prompt(f"{number}/{prompt_hash(text)[:16]}", text, fields)


def _read(text: str, says: Mapping[str, str]) -> tuple[str | None, str]:
    """The label of the last verdict, or None, and the reasoning without it."""
    word = "|".join(re.escape(each) for each in sorted(says.values(), key=len, reverse=True))
    found = re.findall(rf"verdict\W*({word})\b", text, re.IGNORECASE)
    label = {each.lower(): label for label, each in says.items()}[found[-1].lower()] if found else None
    before = re.split(r"[*_#\s]*\bverdict[*_\s]*:", text, maxsplit=1, flags=re.IGNORECASE)[0]
    return label, without_verdict(re.sub(r"^\s*reason(ing)?\s*:\s*", "", before, flags=re.IGNORECASE), [*says.values()])


def _fault(verdict: str | None, reason: str, gold: str, keep: bool) -> str | None:
    if verdict is None:
        return "no verdict"
    if keep and verdict != gold:
        return "argues for another label"
    return "no reason beside the verdict" if len(reason) < SHORTEST else None


def main(address: str, data: str, out: str, written: str) -> None:
    """python -m tasks.generate_reasons params.yaml:distill.reasons.NAME DATA OUT WRITTEN"""
    generate_reasons(read(address), data, out, written)


if __name__ == "__main__":
    run(main)
