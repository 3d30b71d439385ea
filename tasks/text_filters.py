"""Filters of texts at ingestion: written in the language they claim, and of a quality worth reading.

    language    a detector of n-grams (lingua) that is sure of another language than the one that is claimed
    quality     Gopher's rules about words, symbols, bullets and stop words (datatrove)
    repetition  Gopher's rules about repeated lines, paragraphs and n-grams (datatrove)

Each is off unless a data set's `filters` names it. A text that is dropped is counted by its reason, with the first
texts in alphabetical order as examples. Words of Chinese come from rjieba, those of Japanese are runs of one script;
punctuation is no word, or every sentence of Chinese would have too many words without letters.

Source: Rae et al., 2021 (Gopher), arXiv:2112.11446, section A1.1 and table A1. What the rules read of each kind of
text, and which of them are left out where a language has no spaces or other stop words, is ours.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from inspect import signature

import polars as pl

from models.components._closest import refuse_unknown
from tasks.datasets._text import SCRIPTS
from tasks.settings import SettingsError

__all__ = ["Filters"]

LANGUAGE = {  # kind -> column of text -> column of the language that it claims
    "documents": {"sentences": "language"},
    "pairs": {"source": "source_language", "target": "target_language"},
    "instructions": {"instruction": "language"},
}
QUALITY = {  # what the rules about words read, with the language of its words
    "documents": {"sentences": "language"},
    "pairs": LANGUAGE["pairs"],
    "instructions": {"output": "language"},
}
DETECTOR = {"among": tuple(SCRIPTS), "least": 0.8, "letters": 20, "otherwise": "drop"}
NO_SPACES = {"min_avg_word_length": None, "max_avg_word_length": None, "min_stop_words": None}
NO_STOP_WORDS = {"min_stop_words": None}  # the rule's own are English
WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
RUN = re.compile("[\u3040-\u309f]+|[\u30a0-\u30ff]+|[\u3400-\u4dbf\u4e00-\u9fff々]+|[^\\W\u3040-\u9fff]+")
EXAMPLES, SHOWN = 3, 80  # texts for each reason, characters of each


class Filters:
    """Filters of one kind of rows; counts what it drops.

    Args:
        kind: documents, pairs or instructions.
        chosen: `language: {among, least, letters, otherwise}`: detect one of `among`; at `least` this probability is
            sure; texts of fewer `letters` are not judged; `otherwise` drop a row, or relabel it as what was found.
            `quality` and `repetition`: arguments of datatrove's GopherQualityFilter and GopherRepetitionFilter; {} are
            Gopher's own, which are for pages: of a text of 20 words any four are a fifth, more than its rule about
            the most frequent n-gram allows (`top_n_grams: []` leaves that out).

    Raises:
        SettingsError: an unknown filter, setting or language, or a kind without a language.
    """

    def __init__(self, kind: str, chosen: Mapping[str, Mapping | None]):
        if kind not in LANGUAGE:
            raise SettingsError(f"filters are for {', '.join(LANGUAGE)}; {kind} are kept as they are")
        for name in chosen:
            refuse_unknown("filters", name, ("language", "quality", "repetition"), SettingsError)
        self.kind, self.settings = kind, {name: dict(value or {}) for name, value in chosen.items()}
        self.dropped: Counter = Counter()
        self.relabelled: Counter = Counter()
        self.unjudged = 0
        self.examples: dict[str, list[str]] = {}
        self._detector = _Detector(self.settings["language"]) if "language" in self.settings else None
        self._rules: dict[str, list[Callable[[str], str | None]]] = {}
        for name in ("quality", "repetition"):  # a wrong argument is told before the first text
            _rule(name, "en", self.settings.get(name, {}))

    def __call__(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows that stay, in their order."""
        kept = []
        for row in frame.iter_rows(named=True):
            if reason := self._language(row) or self._quality(row):
                self.dropped[reason] += 1
                shown = self.examples.setdefault(reason, [])
                text = _text(row[next(iter(LANGUAGE[self.kind]))])
                self.examples[reason] = sorted([*shown, text[:SHOWN]])[:EXAMPLES]
            else:
                kept.append(row)
        return pl.DataFrame(kept, schema=frame.schema, orient="row")

    @property
    def report(self) -> dict:
        """What was asked, and what became of the texts."""
        packages = (["lingua-language-detector"] if self._detector else []) + ["datatrove"]
        return {
            "settings": self.settings,
            "dropped": dict(self.dropped),
            "relabelled": dict(self.relabelled),
            "unjudged": self.unjudged,
            "examples": self.examples,
            "libraries": {name: version(name) for name in packages},
        }

    def _language(self, row: dict) -> str | None:
        if self._detector is None:
            return None
        for column, claimed in LANGUAGE[self.kind].items():
            if row[claimed] not in self._detector.languages:
                self.unjudged += 1
                continue
            found = self._detector(_text(row[column]))
            self.unjudged += found is None
            if found in (None, row[claimed]):
                continue
            said = f"language: {row[claimed]} reads as {found}"
            if self._detector.otherwise == "drop":
                return said
            self.relabelled[said] += 1
            row[claimed] = found
        return None

    def _quality(self, row: dict) -> str | None:
        for column, claimed in QUALITY[self.kind].items():
            language = row[claimed] or "en"
            if language not in self._rules:
                asked = [name for name in ("quality", "repetition") if name in self.settings]
                self._rules[language] = [_rule(name, language, self.settings[name]) for name in asked]
            for rule in self._rules[language]:
                if reason := rule(_text(row[column])):
                    return reason
        return None


class _Detector:
    """The language of a text, or None where nothing is sure."""

    def __init__(self, settings: Mapping):
        from lingua import IsoCode639_1, Language, LanguageDetectorBuilder

        for name in settings:
            refuse_unknown("filters.language", name, DETECTOR, SettingsError)
        chosen = DETECTOR | settings
        self.languages, self.least = tuple(chosen["among"]), chosen["least"]
        self.letters, self.otherwise = chosen["letters"], chosen["otherwise"]
        if self.otherwise not in ("drop", "relabel"):
            raise SettingsError(f"filters.language.otherwise is {self.otherwise!r}; it is drop or relabel")
        if len(self.languages) < 2:
            raise SettingsError(f"filters.language.among is {list(self.languages)}; two languages or more can be told "
                                "apart")  # fmt: skip
        codes = [getattr(IsoCode639_1, code.upper(), None) for code in self.languages]
        if unknown := [name for name, code in zip(self.languages, codes, strict=True) if code is None]:
            raise SettingsError(f"filters.language.among has {', '.join(unknown)}, which the detector does not know; "
                                "it takes codes of ISO 639-1, such as en, zh, ja")  # fmt: skip
        languages = [Language.from_iso_code_639_1(code) for code in codes]
        self._code = dict(zip(languages, self.languages, strict=True))
        self._found = LanguageDetectorBuilder.from_languages(*languages).build()

    def __call__(self, text: str) -> str | None:
        if sum(map(str.isalpha, text)) < self.letters:
            return None
        best = self._found.compute_language_confidence_values(text)[0]
        return self._code[best.language] if best.value >= self.least else None


def _rule(name: str, language: str, settings: Mapping) -> Callable[[str], str | None]:
    """A rule of datatrove for a language: text -> reason to drop it, or None."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    kind = {"quality": GopherQualityFilter, "repetition": GopherRepetitionFilter}[name]
    for key in settings:
        known = [p for p in signature(kind.__init__).parameters if p not in ("self", "exclusion_writer", "language")]
        refuse_unknown(f"filters.{name}", key, known, SettingsError)
    left_out = {} if name == "repetition" or language == "en" else NO_STOP_WORDS
    left_out = NO_SPACES if left_out and language in ("zh", "ja") else left_out
    words = _words(language)
    rule = kind(language=words, **left_out | settings)

    def judge(text: str) -> str | None:
        if not words.word_tokenize(text):
            return f"{name}: no words"  # where the rules would divide by their number
        found = rule.filter(Document(text=text, id=""))
        return None if found is True else f"{name}: {found[1]}"

    return judge


def _words(language: str):
    """A word tokenizer in datatrove's form."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            if language == "zh":
                import rjieba

                return [word for word in rjieba.cut(text) if any(map(str.isalnum, word))]
            return (RUN if language == "ja" else WORD).findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return text.splitlines()

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(match.start(), match.end()) for match in WORD.finditer(text)]

    return Words(language)


def _text(value) -> str:
    return "\n".join(value) if isinstance(value, list) else value or ""
