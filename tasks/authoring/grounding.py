"""Facts that a text states and its source does not: an invented brand, price, condition, size, colour or material.

A text may say what was shown to its writer, the instruction and the input, and nothing else of these kinds: an
advertisement that invents one is a false description of goods. Facts are found by words, so a check catches what it
knows: the values of the catalogue, a table of words in three languages (tasks/authoring/_words.py), and forms such as
"$20", "size M" or "made by". Words are compared by what they mean: "黑色" is grounded in "black". Every number that the
source does not have counts too, as a price, a size or a number. The checks are ours.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tasks.authoring._words import BRANDS, COLOURS, CONDITIONS, MATERIALS, UNITS

__all__ = ["KINDS", "Invention", "Lexicon", "invented", "rates"]

KINDS = ("brand", "price", "condition", "size", "colour", "material", "number")
SHORT = 2  # characters of a catalogue's value below which it is no word to look for, such as size S
CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
NUMBER = r"\d+(?:[.,]\d+)*"
PRICE = re.compile(
    rf"(?:US\$|[$€£¥￥])\s*({NUMBER})|({NUMBER})\s*(?:{UNITS})(?![a-z])|(?:price[ds]?(?: (?:at|of|is))?|costs?|for only"
    rf"|just|only|价格[是为]?|售价|仅[需售]?|只要|价格は)\s*[:：]?\s*({NUMBER})(?!\s*(?:left|days?|天|日))",
    re.IGNORECASE,
)
OFFER = re.compile(
    rf"{NUMBER}\s*%\s*(?:off|discount|割引|オフ)|half[ -]price|free (?:shipping|delivery|returns?)|discount(?:ed)?\b"
    r"|buy one|包邮|免运费|半价|打折|[一二三四五六七八九\d.]+折|特价|送料無料|割引|半額"
    r"|money[ -]back|warranty|保修|保証",
    re.IGNORECASE,
)
SIZE = re.compile(
    r"\bsizes?\s*[:：]?\s*(?:is |of )?((?:x{0,3}[sl]|m|\d+(?:\.\d+)?|one size)(?![\w]))"
    r"|(?:尺码|尺寸|サイズ)[是为は:：]?\s*([a-z]{1,3}(?![a-z])|\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)\s*码"
    r"|(?<![\w-])((?:extra[ -])?(?:x{1,3}-?large|small|medium|large))"
    r"(?= size| fit|-sized?)",
    re.IGNORECASE,
)
MAKER = re.compile(r"\b(?:made by|designed by|by|from|brand:?|品牌[是为：:]\s*)\s*([A-Z][\w'&-]+)")
LATIN = re.compile("[a-z0-9\u00c0-\u024f]")
VAGUE = {"new", "good", "fair", "poor"}  # they state a condition in a list of facts, and anything in a sentence
NOT_MAKERS = {"us", "january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
              "november", "december", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday",
              "christmas", "easter", "the", "a", "an", "this", "that", "now", "day", "here", "mother's", "father's",
              "valentine's", "new", "halloween", "thanksgiving"}  # fmt: skip


@dataclass(frozen=True)
class Invention:
    """A fact without a source."""

    kind: str  # of KINDS
    text: str  # as it is written
    start: int  # characters before it


@dataclass(frozen=True)
class Lexicon:
    """Words that state a fact of a kind: word in lower case -> name.

    Args:
        words: kind -> words.
    """

    words: Mapping[str, Mapping[str, str]] = field(
        default_factory=lambda: {"brand": BRANDS, "condition": CONDITIONS, "colour": COLOURS, "material": MATERIALS}
    )

    @classmethod
    def of(cls, values: Mapping[str, Iterable[str | None]]) -> "Lexicon":
        """The tables, and the values that a catalogue has of brand, condition, size, colour and material."""
        tables: dict[str, dict[str, str]] = {kind: dict(words) for kind, words in cls().words.items()} | {"size": {}}
        for kind, found in values.items():
            for value in {value.strip().lower() for value in found if value}:
                if len(value) > SHORT or (len(value) == SHORT and re.search(f"[{CJK}]", value)):
                    tables[kind].setdefault(value, value)
        # A colour or a material named alike is no size, and a brand that is a plain word would be found everywhere.
        others = [tables[kind] for kind in ("condition", "colour", "material")]
        brands = tables["brand"].items()
        tables["brand"] = {word: name for word, name in brands if not any(word in table for table in others)}
        tables["size"] = {word: name for word, name in tables["size"].items() if re.search(rf"[{CJK}\d-]| ", word)}
        return cls(tables)

    @cached_property
    def _beginnings(self) -> dict[str, dict[str, list[str]]]:
        """Kind -> first two characters -> words, the longest first."""
        found: dict[str, dict[str, list[str]]] = {kind: {} for kind in self.words}
        for kind, words in self.words.items():
            for word in sorted(words, key=len, reverse=True):
                found[kind].setdefault(word[:2], []).append(word)
        return found

    def found(self, kind: str, text: str) -> list[tuple[str, str, int]]:
        """(name, as it is written, start) of every word of a kind in a text, the longest at each place."""
        begins, plain, place, found = self._beginnings.get(kind, {}), text.lower(), 0, []
        if len(plain) != len(text):  # a few capitals have longer small letters
            text = plain
        while place < len(plain):
            some = (*begins.get(plain[place : place + 2], ()), *begins.get(plain[place], ()))
            word = next((word for word in some if _stands(word, plain, place)), "")
            if word:
                found.append((self.words[kind][word], text[place : place + len(word)], place))
            place += len(word) or 1
        return found


def _stands(word: str, plain: str, place: int) -> bool:
    """Whether a word is at a place; one that begins or ends with a letter of words does not stand within another."""
    end = place + len(word)
    if not plain.startswith(word, place):
        return False
    inside = place and LATIN.match(plain[place]) and LATIN.match(plain[place - 1])
    return not inside and not (end < len(plain) and LATIN.match(plain[end]) and LATIN.match(plain[end - 1]))


def invented(text: str, source: str, lexicon: Lexicon) -> list[Invention]:
    """What `text` states and `source` does not, in the order of the text.

    Args:
        text: what was written.
        source: all that its writer was shown.
        lexicon: of the catalogue.

    >>> [(one.kind, one.text) for one in invented("A red Nike bag for $20, size M.", "red bag", Lexicon())]
    [('brand', 'Nike'), ('price', '$20'), ('size', 'size M')]
    >>> invented("全新的黑色皮包，45元", "black bag, brand new, $45", Lexicon())
    []
    """
    found = []
    for kind in ("brand", "condition", "colour", "material", "size"):
        known = {name for name, _, _ in lexicon.found(kind, source)}
        found += [
            Invention(kind, written, start)
            for name, written, start in lexicon.found(kind, text)
            if name not in known and written.lower() not in VAGUE and not re.fullmatch(f"[{CJK}]", written)
        ]
    found += _makers(text, source, lexicon) + _offers(text, source)
    found += _sizes(text, source) + _numbers(text, source)
    return _without_overlap(sorted(found, key=lambda one: (one.start, KINDS.index(one.kind))))


def rates(found: Sequence[Sequence[Invention]]) -> dict[str, float]:
    """Shares of texts: `invented` that have any invention, and `invented_<kind>` one of a kind.

    >>> rates([[Invention("price", "$2", 0), Invention("price", "$3", 5)], []])["invented_price"]
    0.5
    """
    count = max(len(found), 1)
    kinds = Counter(kind for one in found for kind in {each.kind for each in one})
    return {"invented": sum(bool(one) for one in found) / count} | {
        f"invented_{kind}": kinds[kind] / count for kind in KINDS
    }


def _makers(text: str, source: str, lexicon: Lexicon) -> list[Invention]:
    """Names after "by" or "from" that nobody mentioned; the catalogue's brands are found as words."""
    plain, brands = source.lower(), lexicon.words.get("brand", {})
    return [
        Invention("brand", match.group(1), match.start(1))
        for match in MAKER.finditer(text)
        if (name := match.group(1).lower()) not in plain and name not in brands and name not in NOT_MAKERS
    ]


def _offers(text: str, source: str) -> list[Invention]:
    plain = source.lower()
    return [Invention("price", m.group(), m.start()) for m in OFFER.finditer(text) if m.group().lower() not in plain]


def _sizes(text: str, source: str) -> list[Invention]:
    plain, found = source.lower(), []
    for match in SIZE.finditer(text):
        value = next(group for group in match.groups() if group).lower()
        if not re.search(rf"(?<![a-z0-9.]){re.escape(value)}(?![a-z0-9.])", plain):
            found.append(Invention("size", match.group(), match.start()))
    return found


def _numbers(text: str, source: str) -> list[Invention]:
    """Numbers that the source does not have; 45, 45.0 and 45.00 are one number, and 1,200 is 1200."""
    known = {_value(each) for each in re.findall(NUMBER, source)}
    prices = {}
    for match in PRICE.finditer(text):
        place = next(index for index in range(1, 4) if match.group(index))
        prices[match.start(place)] = match
    found = []
    for match in re.finditer(NUMBER, text):
        if _value(match.group()) in known:
            continue
        if price := prices.get(match.start()):
            found.append(Invention("price", price.group(), price.start()))
        else:
            found.append(Invention("number", match.group(), match.start()))
    return found


def _value(number: str) -> float:
    plain = re.sub(r",(?=\d{3}(?:\D|$))", "", number).replace(",", ".")
    parts = plain.split(".")
    return float(plain) if len(parts) < 3 else float("".join(parts))


def _without_overlap(found: list[Invention]) -> list[Invention]:
    """One fault a place: the number within a price or a size is not counted again."""
    kept: list[Invention] = []
    for one in found:
        if not kept or one.start >= kept[-1].start + len(kept[-1].text):
            kept.append(one)
    return kept
