"""Instructions with their answers: what a language model is tuned on to follow them.

Takes Parquet, JSON lines, JSON, CSV and TSV, also with .gz. A record has instruction, input (may be absent) and output;
or instruction and "instances", a list of input and output, as Self-Instruct has, each of which is one row; or
messages, of which the first of the user and of the assistant count. Records without an answer are left out. `language`
and `licence` are settings of the dataset unless the records have them. When the source is this file, instructions about
made-up listings are written.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from tasks.datasets._listings import CATEGORIES, LANGUAGES, LICENCE, Listing, check_languages, draw
from tasks.datasets._rules import Rule
from tasks.datasets._text import TextUnreadable, language_of, licence_of, note, records, rules, scan, stated

__all__ = ["KIND", "SCHEMA", "expectations", "fetch", "read"]

KIND = "instructions"
SCHEMA = dict.fromkeys(("instruction", "input", "output", "language", "licence", "origin"), pl.String)
ROLES = {"user": "instruction", "human": "instruction", "assistant": "output", "gpt": "output"}
ASKED = {  # of made-up listings, by the language of the instruction
    "en": {
        "title": "Write a title for this listing.",
        "category": "Which category fits this listing? Choose one of: {}.",
        "between": ", ",
        "describe": "Describe the item.",
        "translate": {"zh": "Translate this title into Chinese.", "ja": "Translate this title into Japanese."},
        "asked": "What is the {} item made of, and how much is it?",
        "said": "It is made of {} and costs {} dollars.",
        "text": "{}. I ask {} dollars.",
    },
    "zh": {
        "title": "请为这个商品写一个标题。",
        "category": "这个商品属于哪个类别？请从以下选项中选择：{}。",
        "between": "、",
        "describe": "请描述这个商品。",
        "translate": {"en": "请把这个标题翻译成英文。", "ja": "请把这个标题翻译成日文。"},
        "asked": "{}的这个商品是什么材料做的？价格是多少？",
        "said": "材料是{}，价格是{}美元。",
        "text": "{}。价格是{}美元。",
    },
    "ja": {
        "title": "この商品のタイトルを書いてください。",
        "category": "この商品はどのカテゴリーですか。次から一つ選んでください：{}。",
        "between": "、",
        "describe": "この商品を説明してください。",
        "translate": {"en": "このタイトルを英語に訳してください。", "zh": "このタイトルを中国語に訳してください。"},
        "asked": "{}のこの商品の素材は何ですか。値段はいくらですか。",
        "said": "素材は{}で、値段は{}ドルです。",
        "text": "{}。値段は{}ドルです。",
    },
}


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
    languages: Sequence[str] | None = None,
    language: str | dict | None = None,
    licence: str | dict | None = None,
) -> None:
    """Copy a file or folder, or make `instructions` of them when `source` is this file.

    Args:
        out: an empty folder.
        source: instructions, or this file.
        instructions: to make.
        seed: other listings.
        languages: of those that are made: en, zh, ja, in turn; None for English ones and translations into Chinese.
        language: of the files, where they do not say it; else each row's is guessed from the script of its instruction.
        licence: of the files.

    Raises:
        ListingError: a language that listings do not have.
    """
    if note(out, source, __file__, language=language, licence=licence):
        return
    if languages is not None:
        check_languages(languages)
    with open(out / "listings.jsonl", "w", encoding="utf-8") as file:
        for number in range(instructions):
            listing, kind = Listing(seed, number), draw(5, seed, number, "instruction")
            record = _made(listing, kind) if languages is None else _spoken(listing, kind, languages, number)
            record["licence"] = LICENCE
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


def _spoken(listing: Listing, kind: int, languages: Sequence[str], number: int) -> dict:
    """As `_made`, in the language whose turn it is; titles are translated into the next one."""
    turn = number % len(languages)
    spoken, other = languages[turn], languages[(turn + 1) % len(languages)]
    place, words = LANGUAGES.index(spoken), ASKED[spoken]
    title, description = listing.title(spoken), ("" if spoken != "en" else " ").join(listing.description(spoken))
    category = lambda name: CATEGORIES[name]["names"][place]
    if kind == 0:
        record = {"instruction": words["title"], "input": description, "output": title}
    elif kind == 1:
        choices = words["between"].join(map(category, CATEGORIES))
        record = {
            "instruction": words["category"].format(choices),
            "input": title,
            "output": category(listing.category),
        }
    elif kind == 2 or (kind == 3 and other == spoken):
        record = {"instruction": words["describe"], "input": title, "output": description}
    elif kind == 3:
        record = {"instruction": words["translate"][other], "input": title, "output": listing.title(other)}
    else:
        said = words["said"].format(listing.words["material"][place], listing.price)
        text = words["text"].format(title, listing.price)
        record = {"instruction": words["asked"].format(listing.brand), "input": text, "output": said}
    return record | {"language": spoken}


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
