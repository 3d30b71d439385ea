"""Instructions with their answers: what a language model is tuned on to follow them.

Takes Parquet, JSON lines, JSON, CSV and TSV, also with .gz. A record has instruction, input (may be absent) and output;
or instruction and "instances", a list of input and output, as Self-Instruct has, each of which is one row; or
messages, of which the first of the user and of the assistant count. Records without an answer are left out. `language`
and `licence` are settings of the dataset unless the records have them. When the source is this file, instructions about
made-up listings are written.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from tasks.datasets._listings import CATEGORIES, LICENCE, Listing, draw
from tasks.datasets._rules import Rule
from tasks.datasets._text import TextUnreadable, language_of, licence_of, note, records, rules, scan, stated

__all__ = ["KIND", "SCHEMA", "expectations", "fetch", "read"]

KIND = "instructions"
SCHEMA = dict.fromkeys(("instruction", "input", "output", "language", "licence", "origin"), pl.String)
ROLES = {"user": "instruction", "human": "instruction", "assistant": "output", "gpt": "output"}


def read(raw: Path) -> pl.LazyFrame:
    """instruction, input (empty where there is none), output, language, licence and origin; a row is one exchange."""
    return scan(raw, SCHEMA, _instructions)


def expectations() -> list[Rule]:
    """Instruction and answer have text. The language is judged by the instruction: an answer may be code."""
    found = rules({"instruction": "language", "output": "language"}, longest=100_000, duplicates=1)
    whole = pl.concat_str([pl.col(c).fill_null("") for c in ("instruction", "input", "output")], separator="\x1f")
    found = [rule for rule in found if rule.name not in ("output in its language", "duplicates")]
    return [
        *found,
        Rule(
            name="duplicates",
            text="at most 10 % of the rows repeat the instruction, input and output of another",
            columns=("instruction", "input", "output"),
            measure=1 - whole.hash(seed=0).n_unique() / pl.len(),
            high=0.1,
        ),
    ]


def fetch(
    out: Path,
    source: Path,
    instructions: int = 600,
    seed: int = 7,
    language: str | dict | None = None,
    licence: str | dict | None = None,
) -> None:
    """Copy a file or folder, or make `instructions` of them when `source` is this file.

    Args:
        out: an empty folder.
        source: instructions, or this file.
        instructions: to make.
        seed: other listings.
        language: of the files, where they do not say it; else each row's is guessed from the script of its instruction.
        licence: of the files.
    """
    if note(out, source, __file__, language=language, licence=licence):
        return
    with open(out / "listings.jsonl", "w", encoding="utf-8") as file:
        for number in range(instructions):
            record = {**_made(Listing(seed, number), draw(5, seed, number, "instruction")), "licence": LICENCE}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _made(listing: Listing, kind: int) -> dict:
    description = " ".join(listing.description())
    if kind == 0:
        return {"instruction": "Write a title for this listing.", "input": description, "output": listing.title()}
    if kind == 1:
        choices = ", ".join(CATEGORIES)
        asked = f"Which category fits this listing? Choose one of: {choices}."
        return {"instruction": asked, "input": listing.title(), "output": listing.category}
    if kind == 2:
        return {"instruction": "Describe the item.", "input": listing.title(), "output": description}
    if kind == 3:
        return {"instruction": "把这个标题翻译成中文。", "input": listing.title(), "output": listing.title("zh")}
    asked = f"What is the {listing.brand} item made of, and how much is it?"
    said = f"It is made of {listing.words['material'][0]} and costs {listing.price} dollars."
    text = f"{listing.title()}. I ask {listing.price} dollars."
    return {"instruction": asked, "input": text, "output": said}


def _instructions(path: Path, file: str, facts: dict) -> Iterator[dict]:
    for record in records(path):
        for asked, given, answer in _exchanges(path, record):
            if asked.strip() and answer.strip():
                language = record.get("language") or stated(facts.get("language"), file)
                yield {
                    "instruction": asked.strip(),
                    "input": given.strip(),
                    "output": answer.strip(),
                    "language": language or language_of(asked),
                    "licence": licence_of(record, facts, file),
                    "origin": file,
                }


def _exchanges(path: Path, record: dict) -> Iterator[tuple[str, str, str]]:
    if "instruction" in record and "output" in record:
        yield record["instruction"] or "", record.get("input") or "", record["output"] or ""
    elif "instruction" in record and isinstance(record.get("instances"), list):
        for instance in record["instances"]:
            yield record["instruction"] or "", instance.get("input") or "", instance.get("output") or ""
    elif isinstance(turns := record.get("messages") or record.get("conversations"), list):
        said = {}
        for turn in turns:
            role = ROLES.get(turn.get("role") or turn.get("from"))
            if role:
                said.setdefault(role, turn.get("content") or turn.get("value") or "")
        yield said.get("instruction", ""), "", said.get("output", "")
    else:
        raise TextUnreadable(
            f"{path} has the columns {', '.join(record)}: instruction and output, instruction and instances, or "
            "messages are needed"
        )
