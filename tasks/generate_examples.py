"""A few labelled texts, a classifier and a teacher that writes -> many texts with the classifier's labels.

    python -m tasks.generate_examples params.yaml:distill.examples.NAME DATA CLASSIFIER OUT WRITTEN

OUT is like an ingested set of labelled rows, so that tasks/distill_tasks.py trains a small student on it by the method
`generation`. Source: Melas-Kyriazi et al., 2020, arXiv:2002.00733; there the writer is tuned on the texts of a class,
here it is shown some of them in its prompt (ours). What is dropped is counted in OUT/report.json.
"""

import random
import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from models.components._closest import refuse_unknown
from tasks.command import run
from tasks.files import new_folder, read_if_there, write_json
from tasks.finetune import rows_of
from tasks.kinds._kind import Rejected
from tasks.settings import SettingsError, read
from tasks.slots import slot
from tasks.teaching import Teacher
from tasks.training import use_threads
from tasks.writers._writer import Prompt, filtered, open_writer, write_all

__all__ = ["VERSION", "generate_examples"]

KEYS = ("data", "classifier", "writer", "each", "shown", "longest", "sure", "length", "seed")
VERSION = "examples-1"
NUMBERS = {"each": 100, "shown": 3, "longest": 600}


def generate_examples(
    chosen: Mapping, data: str | Path, classifier: str | Path, out: str | Path, written: str | Path
) -> dict:
    """Ask for texts of every class, filter them, label them; write the folder `out` whole or not at all.

    Args:
        chosen: {writer: {name of tasks/writers: settings}, each (100): texts asked for per class, shown (3): examples
            in a prompt, longest (600): letters of a text, sure (0): least probability of the label, length: tokens
            that the classifier reads, seed, data and classifier: names, for the graph}.
        data: ingested labelled rows of one text each.
        classifier: folder of tasks/finetune.py, tuned on the same labels.
        out: takes rows/ with the written texts behind those of train, manifest.json and report.json. Columns beside
            those of `data`: origin ("gold" or the teacher), asked (the class that was asked for), probability,
            version, and the writer's licence.
        written: JSON lines of what the teacher wrote.

    Returns:
        The report: {"asked", "kept", "dropped", "agree": share of the kept whose label is the class asked for, ...}.

    Raises:
        SettingsError, Rejected: what cannot work.
    """
    for key in chosen:
        refuse_unknown("distill.examples", key, KEYS)
    told = NUMBERS | {key: value for key, value in chosen.items() if key in NUMBERS}
    if wrong := [f"{key} {value!r}" for key, value in told.items() if not isinstance(value, int) or value < 1]:
        raise SettingsError(f"distill.examples: whole numbers >= 1 are needed, got {', '.join(wrong)}")
    rows, writer = rows_of(data), open_writer(chosen.get("writer"))
    teacher = Teacher(classifier, "classification", chosen.get("length"))
    prompts = _prompts(rows["train"], told["each"], told["shown"], chosen.get("seed", 7))
    texts = [_first(text) for text in write_all(writer, prompts, VERSION, written)["text"]]
    faults = _faults(texts, rows, told["longest"])
    asked = [prompt.fields["label"] for prompt in prompts]
    new = pl.DataFrame({"text": texts, "asked": asked}).filter(pl.Series([fault is None for fault in faults]))
    if not len(new):
        raise Rejected(f"of {len(texts)} texts none is left: {filtered(faults)['dropped']}; see {written}")
    names = sorted(set(rows["train"]["label"]))
    with slot() as device:
        # the classes are those of train; what is asked here only fills the column
        given = rows | {"train": pl.concat([rows["train"], new.select("text", label="asked")], how="diagonal")}
        share = teacher.told(given, "train", None, device).answers[len(rows["train"]) :].softmax(-1)
    new = new.with_columns(
        pl.Series("label", [names[place] for place in share.argmax(-1).tolist()]),
        pl.Series("probability", share.max(-1).values.tolist()),
        *(pl.lit(value).alias(name) for name, value in
          (("origin", writer.teacher), ("version", VERSION), ("licence", writer.licence), ("split", "train"))),
    )  # fmt: skip
    unsure = new["probability"] < chosen.get("sure", 0.0)
    report = filtered(faults)
    if unsure.any():
        report["kept"] -= int(unsure.sum())
        report["dropped"]["the classifier is unsure"] = int(unsure.sum())
        new = new.filter(~unsure)
    report |= {"agree": float((new["label"] == new["asked"]).mean() or 0.0), "teacher": writer.teacher,
               "version": VERSION, "licence": writer.licence, "classifier": teacher.identity,
               "gold": len(rows["train"])}  # fmt: skip
    with new_folder(out) as folder:
        (folder / "rows").mkdir()
        for split, frame in rows.items():
            whole = frame.with_columns(pl.lit("gold").alias("origin"))
            whole = pl.concat([whole, new], how="diagonal_relaxed") if split == "train" else whole
            whole.write_parquet(folder / "rows" / f"{split}.parquet")
        manifest = read_if_there(Path(data) / "manifest.json")
        write_json(folder / "manifest.json", manifest | {"kind": "examples", "written": report["kept"]})
        write_json(folder / "report.json", report)
    print(f"{writer.teacher} wrote {report['asked']} texts, {report['kept']} kept beside {report['gold']} gold ones; "
          f"{report['agree']:.0%} of the class asked for; dropped: {report['dropped'] or 'none'}")  # fmt: skip
    return report


def _prompts(train: pl.DataFrame, each: int, shown: int, seed: int) -> list[Prompt]:
    """For every class so many prompts, each with other examples of it."""
    made = []
    for label in sorted(set(train["label"])):
        known = train.filter(pl.col("label") == label)["text"].to_list()
        for number in range(each):
            draw = random.Random(f"{seed} {label} {number}")
            some = draw.sample(known, min(shown, len(known)))
            listed = "\n".join(f"- {' '.join(text.split())}" for text in some)
            text = (f"These texts are of the class \"{label}\":\n{listed}\nWrite one more text of this class, of the "
                    f"same kind and length but about something else. Answer with the text alone.")  # fmt: skip
            fields = {"label": label, "number": str(number), "example": some[0]}
            made.append(Prompt(f"{label}/{number}", text, fields))
    return made


def _first(text: str) -> str:
    """The first line with something on it, without bullet or quotes."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+", "", line).strip().strip('"“”').strip()


def _faults(texts: list[str], rows: Mapping[str, pl.DataFrame], longest: int) -> list[str | None]:
    """A text that is known already teaches nothing, and in dev or test it would be told beforehand."""
    normal = lambda text: " ".join(text.lower().split())
    known = {split: {normal(text) for text in frame["text"]} for split, frame in rows.items()}
    faults, seen = [], set()
    for text in texts:
        place = next((split for split in ("test", "dev", "train") if normal(text) in known.get(split, ())), None)
        fault = "empty" if not text else "too long" if len(text) > longest else None
        fault = fault or ("a text twice" if normal(text) in seen else f"in {place}" if place else None)
        seen.add(normal(text))
        faults.append(fault)
    return faults


def main(address: str, data: str, classifier: str, out: str, written: str) -> None:
    """python -m tasks.generate_examples params.yaml:distill.examples.NAME DATA CLASSIFIER OUT WRITTEN"""
    use_threads()
    generate_examples(read(address), data, classifier, out, written)


if __name__ == "__main__":
    run(main)
