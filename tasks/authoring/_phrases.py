"""What the words of a product become: an input with its features, and the fields that templates fill their texts with.

A field says only what the input presents: a template cannot invent. Where nothing is known it is empty.
"""

import re
from collections.abc import Mapping, Sequence

from tasks.authoring._catalogue import Product
from tasks.authoring._seeds import Seeds, Wording

__all__ = ["attributes", "fields", "given", "leaf", "says"]

LISTED = ("condition", "size", "colour", "material", "price")  # attributes in the order of an input


def given(presented: Mapping[str, str], seeds: Seeds, language: str) -> str:
    """The input: one feature is its bare text, several get a line each with their names."""
    if len(presented) < 2:
        return next(iter(presented.values()), "")
    names, colon = seeds.words["names"][language], "：" if language == "zh" else ": "
    return "\n".join(f"{names[feature]}{colon}{text}" for feature, text in presented.items())


def attributes(product: Product, seeds: Seeds, within: str | None = None, language: str | None = None) -> str:
    """Facts in a row, such as "condition: new; price: 20 dollars".

    Args:
        within: only what this text says; None for all.
    """
    language = language or product.language
    names = seeds.words["names"][language]
    colon, stop = ("：", "；") if language == "zh" else (": ", "; ")
    told = {name: _said(name, product.facts[name], seeds, language) for name in LISTED if product.facts.get(name)}
    if within is not None:
        told = {name: said for name, said in told.items() if says(within, said)}
    return stop.join(f"{names[name]}{colon}{said}" for name, said in told.items())


def fields(product: Product, wording: Wording, seeds: Seeds, slots: Mapping[str, str], query: str) -> dict[str, str]:
    """All fields of the patterns in seeds.yaml."""
    make = _chinese if wording.language == "zh" else _english
    shown = set(wording.presents)
    title = product.title if "title" in shown else _thing(product, shown, wording.language)
    facts = [(name, _said(name, product.facts[name], seeds, wording.language)) for name in LISTED
             if "attributes" in shown and product.facts.get(name)]  # fmt: skip
    facts = [(name, said) for name, said in facts if not says(title, said)]
    words = [word for word in _terms(product, query) if word.lower() not in product.title.lower()]
    found = make(product, seeds.words["names"][wording.language], facts, slots, words)
    return found | {"thing": title, "title": product.title, "leaf": leaf(product)}


def says(text: str, fact: str) -> bool:
    """Whether a text has a fact as words of its own: size S is not in "shoes".

    >>> says("red shoes", "S"), says("红色鞋子", "红色")
    (False, True)
    """
    edge = lambda letter: r"(?![a-z0-9])" if letter.isascii() and letter.isalnum() else ""
    before = r"(?<![a-z0-9])" if fact[:1].isascii() and fact[:1].isalnum() else ""
    return re.search(before + re.escape(fact.lower()) + edge(fact[-1:]), text.lower()) is not None


def leaf(product: Product) -> str:
    """The last category, as a word in a sentence."""
    return product.category[-1].lower()


def _terms(product: Product, query: str) -> list[str]:
    """The parts of a query: facts of several words stay whole."""
    parts = [*product.facts.values(), *(name.lower() for name in product.category)]
    found = [part for part in sorted(parts, key=len, reverse=True) if part and f" {part} " in f" {query} "]
    rest = query
    for part in found:
        rest = rest.replace(part, " ")
    return sorted({*found, *rest.split()}, key=lambda part: (query.find(part), part))


def _said(name: str, value: str, seeds: Seeds, language: str) -> str:
    return seeds.words["money"][language].format(value) if name == "price" else value


def _thing(product: Product, shown: set[str], language: str) -> str:
    """A name made of the facts that are shown, where the title is not."""
    known = product.facts if "attributes" in shown else {}
    words = [product.facts.get("brand") if "brand" in shown else None, known.get("colour"), known.get("material"),
             leaf(product) if "category" in shown else None]  # fmt: skip
    return ("" if language == "zh" else " ").join(word for word in words if word)


def _english(product: Product, names: Mapping, facts: Sequence, slots: Mapping, words: Sequence[str]) -> dict[str, str]:
    occasion, audience, use = slots.get("occasion"), slots.get("audience"), product.facts.get("use")
    related = f"They may also look at: {', '.join(product.related)}." if product.related else ""
    return {
        "for_occasion": f" for {occasion}" if occasion else "",
        "for_audience": f" for {audience}" if audience else "",
        "for_audience_end": f", a find for {audience}" if audience else "",
        "facts": "".join(f"{names[name].capitalize()}: {said}. " for name, said in facts),
        "for_use": f" for {use}" if use else "",
        "related": related,
        "missing_first": "".join(f"{word} " for word in words),
        "missing_last": " ".join(words),
    }


def _chinese(product: Product, names: Mapping, facts: Sequence, slots: Mapping, words: Sequence[str]) -> dict[str, str]:
    occasion, audience, use = slots.get("occasion"), slots.get("audience"), product.facts.get("use")
    return {
        "for_occasion": f"{occasion}到了，" if occasion else "",
        "for_occasion_end": f"{occasion}好物。" if occasion else "",
        "for_audience": f"适合{audience}，" if audience else "",
        "for_audience_end": f"适合{audience}。" if audience else "",
        "facts": "".join(f"{names[name]}：{said}。" for name, said in facts),
        "for_use": f"来{use}" if use else "",
        "related": f"可能还会看：{'、'.join(product.related)}。" if product.related else "",
        "missing_first": "".join(words),
        "missing_last": " ".join(words),
    }
