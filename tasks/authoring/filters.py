"""What keeps a written text out of a training set: one named filter a fault, so that drops can be counted.

    length    no text, or too short or long for what it is      language  mostly letters of another language
    words     profanity, or talk of a machine about itself      personal  an address, a telephone number, a link
    changed   what was asked for is what was shown              grounding a fact that the input does not have
    occasion  the occasion that was asked for is not there      query     a term of the customer's query is lost
    facts     a rewritten title lost its brand or a number      legal     no category of the taxonomy

Wordings of instructions are filtered as in Self-Instruct (Wang et al., 2022, arXiv:2212.10560) and Alpaca: their
length in words, words that a language model cannot heed, and ROUGE-L above 0.7 against any kept one of the task. The
other filters are ours. A record names those that it passed; a filter that says nothing about a text is not named.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from models.language.llama_e import same_on_both_sides
from tasks.authoring.grounding import Lexicon, invented
from tasks.authoring.measures import kept_facts, rouge_l, terms_found

__all__ = ["ALIKE", "FILTERS", "Draft", "applied", "fault", "kept_wordings", "wording_fault"]

ALIKE = 0.7  # ROUGE-L F1 above which two wordings of a task are one
LENGTHS = {  # characters of a text in English; half as many in Chinese or Japanese
    "ad": (20, 600), "title": (6, 140), "intent": (16, 500), "query": (2, 80), "category": (1, 200), "brand": (1, 80),
    "attributes": (3, 400), "answer": (8, 800),
}  # fmt: skip
PROSE = ("ad", "title", "intent", "answer")  # what is of a language; a brand or a query may be of another
HAN = re.compile("[\u3400-\u9fff]")
KANA = re.compile("[\u3040-\u30ff]")
LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
MACHINE = re.compile(
    r"as an ai\b|language model|i cannot|i can't (?:help|assist)|i'm sorry|i am sorry|作为一个?(?:ai|人工智能)|语言模型"
    r"|抱歉，我"
    r"|### ?(?:instruction|input|response)|\[insert|\{\w*\}|<\w+>",
    re.IGNORECASE,
)
PROFANE = re.compile(
    r"\b(?:fuck\w*|shit\w*|bitch\w*|bastards?|assholes?|cunts?|whores?|sluts?)\b|操你|他妈的|傻逼|妈的|婊子",
    re.IGNORECASE,
)
PERSONAL = re.compile(
    r"[\w.+-]+@[\w-]+\.\w+|https?://|www\.|(?<![\w@])@\w{3,}|(?<!\d)\+?\d[\d ()-]{7,}\d(?!\d)"
    r"|微信号|(?:QQ|qq)[:：号]\s*\d+",
)
OUTSIDE = re.compile(  # what a model of words alone cannot do (Alpaca's list, shortened to this trade)
    r"\b(?:images?|photos?|pictures?|graphs?|files?|videos?|plots?|audio|draw|website|http)\b"
    r"|图片|照片|视频|文件|网址",
    re.IGNORECASE,
)
WORDS = (3, 150)  # of a wording; an instruction has more than the first and at most the second
WORDS_ZH = (3, 150)  # likewise in characters


@dataclass(frozen=True)
class Draft:
    """An exchange that may become a record."""

    task: str
    requires: str
    language: str
    instruction: str
    input: str
    output: str
    presented: dict[str, str] = field(default_factory=dict)  # feature -> its text
    title: str = ""  # of the product, where a title is rewritten
    brand: str = ""
    query: str = ""  # that a title must answer
    occasion: str = ""
    written: bool = True  # by a teacher; a truth of the catalogue is not judged by its form


@dataclass(frozen=True)
class Judge:
    """What filters know beside a draft."""

    lexicon: Lexicon
    taxonomy: Collection[str]


def _length(one: Draft, judge: Judge) -> bool:
    low, high = LENGTHS[one.requires]
    part = 2 if one.language in ("zh", "ja") else 1
    return low / part <= len(one.output.strip()) <= high / part


def _language(one: Draft, judge: Judge) -> bool:
    han, kana, latin = (len(found.findall(one.output)) for found in (HAN, KANA, LATIN))
    if one.language == "zh":
        return han >= 2 and kana <= han / 4
    return han + kana >= 2 if one.language == "ja" else latin / 2 >= han + kana


def _unfit(text: str) -> bool:
    return bool(MACHINE.search(text) or PROFANE.search(text))


def _changed(one: Draft, judge: Judge) -> bool:
    return not same_on_both_sides(one.presented, one.requires, one.output)


def _grounding(one: Draft, judge: Judge) -> bool:
    return not invented(one.output, f"{one.instruction}\n{one.input}", judge.lexicon)


FILTERS = {  # name -> (which drafts it speaks of, whether one passes), in the order in which a fault is looked for
    "length": (lambda one: one.written, _length),
    "language": (lambda one: one.written and one.requires in PROSE, _language),
    "words": (lambda one: one.written, lambda one, judge: not _unfit(one.output)),
    "personal": (lambda one: True, lambda one, judge: not PERSONAL.search(one.output)),
    "changed": (lambda one: one.requires in one.presented, _changed),
    "grounding": (lambda one: one.task != "qa" and one.requires != "category", _grounding),
    "occasion": (lambda one: bool(one.occasion), lambda one, judge: one.occasion.lower() in one.output.lower()),
    "query": (lambda one: one.requires == "title" and bool(one.query),
              lambda one, judge: terms_found(one.query, one.output) == 1.0),
    "facts": (lambda one: one.requires == "title" and "title" in one.presented,
              lambda one, judge: kept_facts(one.title, one.output, one.brand) == 1.0),
    "legal": (lambda one: one.requires == "category", lambda one, judge: one.output in judge.taxonomy),
}  # fmt: skip


def fault(one: Draft, judge: Judge) -> str | None:
    """The first filter that a draft does not pass."""
    return next((name for name, (about, passes) in FILTERS.items() if about(one) and not passes(one, judge)), None)


def applied(one: Draft) -> list[str]:
    """The filters that speak of a draft."""
    return [name for name, (about, _) in FILTERS.items() if about(one)]


def wording_fault(text: str, allowed: Iterable[str], language: str) -> str | None:
    """Why a text is no instruction; its likeness to others is judged by `kept_wordings`."""
    words = text.split() if language == "en" else [letter for letter in text if letter.isalnum()]
    low, high = WORDS if language == "en" else WORDS_ZH
    if not low < len(words) <= high:
        return "too short or too long"
    if set(re.findall(r"\{(.*?)\}", text)) - set(allowed) or text.count("{") != text.count("}"):
        return "a slot that nothing fills"
    if OUTSIDE.search(text):
        return "asks for more than words"
    if _unfit(re.sub(r"\{\w+\}", "", text)):
        return "talk of a machine"
    letters = (HAN.findall(text), LATIN.findall(text))
    wrong = not letters[0] if language == "zh" else len(letters[0]) > len(letters[1]) / 2
    if wrong or not (text[0].isalpha() or text[0] == "{"):
        return "another language, or it begins with a sign"
    return "a program" if text.lower().startswith("write a program") else None


def kept_wordings(kept: Sequence[str], new: Sequence[str]) -> list[bool]:
    """Which of `new` are unlike all kept ones and each other, in their order."""
    known, found = list(kept), []
    for text in new:
        alike = any(rouge_l(text, other) > ALIKE for other in known)
        found.append(not alike)
        if not alike:
            known.append(text)
    return found
