"""Made-up listings with an answer for every kind of fine-tuning, in the words of the made-up corpora.

What is asked is the setting `answer`:

    category, condition   a class of the title                 match        do title and description fit (pairs)
    price                 a number, the logarithm of dollars    tags         B-, I- or O for each word of the title
    question              a span of the description             choice       one of four things
    title                 a text to write from the description  description  the right one among all (retrieval)

Every draw is a hash of the seed, the listing's number and what is drawn: the same settings give the same bytes. The
numbers begin where no corpus ends, so that no listing was seen in pre-training.
"""

import math
from collections.abc import Callable
from pathlib import Path

import polars as pl

from tasks.datasets._examples import COLUMNS, conform, rules
from tasks.datasets._listings import CATEGORIES, LANGUAGES, LICENCE, Listing, ListingError, draw
from tasks.datasets._rules import Rule

__all__ = ["ANSWERS", "KIND", "ListingError", "described", "expectations", "fetch", "listings", "read"]

KIND = "examples"
FIRST = 1 << 32  # number of the first listing
CUT = (80, 90)  # percent of the listings in train, and in train and dev
SIZES = {"shoes": [str(size) for size in range(36, 46)], "sports": ["S", "M", "L", "XL"]}  # category -> sizes
ENGLISH = ("tags", "question")  # answers that need words with spaces between them, or one grammar
ASKED = {"brand": "Which brand is it?", "colour": "What colour is it?", "thing": "What is for sale?"}


def read(raw: Path) -> pl.LazyFrame:
    """The examples that `fetch` wrote, in the columns of `tasks/datasets/_examples.py`."""
    return conform(pl.scan_parquet(Path(raw) / "examples.parquet"))


def expectations() -> list[Rule]:
    """Those of all examples."""
    return rules()


def fetch(
    out: Path, source: Path, rows: int = 2000, seed: int = 7, answer: str = "category", language: str = "en"
) -> None:
    """Write `rows` examples as `examples.parquet`.

    Args:
        out: an empty folder.
        source: this file; the listings need no other.
        rows: examples, from 10 on.
        seed: other listings of the same marketplace.
        answer: what is asked, see above.
        language: en, zh or ja; tags and question are in English only. A catalogue may have several, such as en+zh.

    Raises:
        ListingError: a setting is out of its range; says which.
    """
    if not isinstance(rows, int) or rows < 10:
        raise ListingError(f"rows is {rows!r}; it must be a whole number from 10 on")
    if answer not in ANSWERS:
        raise ListingError(f"answer is {answer!r}; it is one of {', '.join(ANSWERS)}")
    allowed = LANGUAGES[:1] if answer in ENGLISH else LANGUAGES
    spoken = str(language).split("+") if answer == "catalogue" else [language]
    if not set(spoken) <= set(allowed):
        raise ListingError(f"language is {language!r}; with answer {answer} it is one of {', '.join(allowed)}")
    in_turn = lambda one: spoken[draw(len(spoken), one.seed, one.number, "language")]
    drawn = listings(rows, seed)
    made = [ANSWERS[answer](one, in_turn(one)) | {"split": _split(one), "licence": LICENCE} for one in drawn]
    kinds = {name: COLUMNS[name] for name in made[0]}
    pl.DataFrame(made, schema=kinds).write_parquet(Path(out) / "examples.parquet")


def listings(rows: int, seed: int = 7) -> list[Listing]:
    """`rows` listings of the marketplace, the n-th always the same for a seed."""
    return [Listing(seed, FIRST + number) for number in range(rows)]


def described(one: Listing, language: str = "en") -> str:
    """The sentences of a description as one text."""
    return ("" if language != "en" else " ").join(one.description(language))


def _split(one: Listing) -> str:
    place = draw(100, one.seed, one.number, "split")
    return "train" if place < CUT[0] else "dev" if place < CUT[1] else "test"


def _match(one: Listing, language: str) -> dict:
    fits = draw(2, one.seed, one.number, "fits") == 1
    other = one if fits else Listing(one.seed, one.number + 1 + draw(997, one.seed, one.number, "other"))
    return {"text": one.title(language), "second": described(other, language), "label": "fits" if fits else "other"}


def _tags(one: Listing, language: str) -> dict:
    parts = [(one.brand, "brand"), *((one.words[part][0], part) for part in ("colour", "material", "thing"))]
    words = [(word, f"{'I' if place else 'B'}-{tag}") for text, tag in parts for place, word in enumerate(text.split())]
    words += [(word, "O") for word in (",", *one.condition[0].split())]
    return {"text": " ".join(word for word, _ in words), "labels": [tag for _, tag in words]}


def _question(one: Listing, language: str) -> dict:
    text, word = described(one), {key: value[0] for key, value in one.words.items()}
    before = {"brand": " from ", "colour": "selling my ", "thing": f"The {word['material']} "}
    part = list(ASKED)[draw(len(ASKED), one.seed, one.number, "question")]
    answer = one.brand if part == "brand" else word[part]
    start = text.index(before[part] + answer) + len(before[part])
    return {"text": ASKED[part], "second": text, "spans": [{"start": start, "text": answer}]}


def _choice(one: Listing, language: str) -> dict:
    place = draw(4, one.seed, one.number, "place")
    index = LANGUAGES.index(language)
    right = one.words["thing"][index]
    others = [thing[index] for entry in CATEGORIES.values() for thing in entry["things"] if thing[index] != right]
    start = draw(len(others), one.seed, one.number, "others")
    wrong = [others[(start + 7 * step) % len(others)] for step in range(3)]
    asked = ASKED["thing"] if language == "en" else {"zh": "出售什么？", "ja": "何を売りますか。"}[language]
    options = [*wrong[:place], right, *wrong[place:]]
    return {"text": asked, "second": described(one, language), "choices": options, "label": str(place)}


def _catalogue(one: Listing, language: str) -> dict:
    index = LANGUAGES.index(language)
    facts = {"language": language, "brand": one.brand, "condition": one.condition[(0, 2, 3)[index]]}
    facts |= {part: one.words[part][index] for part in ("colour", "material", "use")} | {"price": str(one.price)}
    if sizes := SIZES.get(one.category):
        facts["size"] = sizes[draw(len(sizes), one.seed, one.number, "size")]
    path = [CATEGORIES[one.category]["names"][index], one.words["thing"][index]]
    second = "\n".join(f"{name}: {fact}" for name, fact in facts.items())
    return {"text": one.title(language), "second": second, "label": " > ".join(path)}


ANSWERS: dict[str, Callable[[Listing, str], dict]] = {
    "category": lambda one, language: {"text": one.title(language), "label": one.category},
    "condition": lambda one, language: {"text": one.title(language), "label": one.condition[0]},
    "price": lambda one, language: {"text": one.title(language), "label": f"{math.log(one.price):.4f}"},
    "match": _match,
    "tags": _tags,
    "question": _question,
    "choice": _choice,
    "catalogue": _catalogue,
    "title": lambda one, language: {"text": described(one, language), "label": one.title(language)},
    "description": lambda one, language: {
        "text": one.title(language), "second": described(one, language), "label": "fits",
    },
}  # fmt: skip
