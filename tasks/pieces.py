"""Sentences -> ids and word starts, several times as fast as the library for texts that repeat their words.

A tokenizer that cuts at spaces gives a word the same pieces wherever it stands, so each distinct word is asked for once
and its pieces are looked up from then on. This is exact where it is used: BERT's word pieces, GPT-2's byte-level pieces
(a word takes the space before it along; texts with other white space or two spaces on end go to the library whole), and
our unigram pieces. Any other tokenizer, and CJK text with the latter two, goes to the library sentence by sentence.

Where a word starts: at a space, where letters, digits and signs meet, and, among Han characters, where rjieba cuts.
Special tokens written out in a text are read as text.
"""

import json
import re
from itertools import chain
from pathlib import Path

import numpy as np

__all__ = ["Pieces"]

CACHE = 200_000  # words kept: about 50 MB; a function of the word, so forgetting them changes nothing
HAN = re.compile("([\u3400-\u4dbf\u4e00-\u9fff]+)")
CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
ODD_SPACE = re.compile(r"[^\S ]|  ")
AT_ONCE = 2048  # sentences that go to the library together
SPACE, LETTER, DIGIT, SIGN = range(4)
OURS = ["NFKC", "Lowercase", "Replace", "Strip"]  # the normalizers of a unigram tokenizer of tasks.tokenizer


class Pieces:
    """Cuts sentences with one tokenizer; not for several threads."""

    def __init__(self, folder: str | Path):
        """`folder` holds tokenizer.json."""
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True
        content = json.loads(self.tokenizer.to_str())
        self.mode = _mode(content)
        self.prefix = content["model"].get("continuing_subword_prefix") or ""
        self.first, self.last = _classes(self.tokenizer, self.prefix)
        self.plain = _plain(content, len(self.first))
        self._forget()

    def __call__(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut sentences.

        Returns:
            ids (n,) uint32 of all tokens on end, words (n,) bool: starts a word, lengths (sentences,) int64.
        """
        if self.mode is None:
            return self._whole(sentences)
        if self.mode == "bert":
            return self._looked_up([self._bert_words(s) for s in sentences])
        odd = ODD_SPACE if self.mode == "bytes" else CJK
        whole = np.array([bool(odd.search(s) or CJK.search(s)) for s in sentences], bool)
        if not whole.any():
            return self._looked_up([self._words(s) for s in sentences])
        parts = [
            self._looked_up([self._words(s) for s, w in zip(sentences, whole, strict=True) if not w]),
            self._whole([s for s, w in zip(sentences, whole, strict=True) if w]),
        ]
        return _interleaved(parts, whole)

    def _words(self, sentence: str) -> list[str]:
        if self.mode == "bytes":
            return sentence.replace(" ", "\n ").split("\n")
        return sentence.split(" ")

    def _bert_words(self, sentence: str) -> list[str]:
        """Cut at spaces and around runs of Han characters, and these into their words."""
        if not HAN.search(sentence):
            return sentence.split(" ")
        import rjieba

        found = []
        for index, run in enumerate(HAN.split(sentence)):
            found += rjieba.cut(run) if index % 2 else run.split(" ")
        return found

    def _looked_up(self, words: list[list[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if len(self.numbers) > CACHE:
            self._forget()
        counts = np.fromiter(map(len, words), np.int64, len(words))
        rows = np.fromiter(map(self.numbers.__getitem__, chain.from_iterable(words)), np.int64, counts.sum())
        self._learn()
        sizes = self.sizes[rows]
        ends = np.cumsum(sizes)
        at = np.repeat(self.offsets[rows] - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)
        borders = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(counts)])]
        return self.ids[at], self.starts[at], np.diff(borders)

    def _learn(self) -> None:
        """Ask the library for the words met for the first time."""
        new, self.numbers.new = self.numbers.new, []
        if not new:
            return
        encoded = self.tokenizer.encode_batch_fast(new, add_special_tokens=False)
        found = [encoding.ids for encoding in encoded]
        sizes = np.fromiter(map(len, found), np.int64, len(found))
        ids = self.plain[np.fromiter(chain.from_iterable(found), np.int64, sizes.sum())]
        starts = self._starts(ids, sizes)
        if self.mode == "bert":  # a word of several Han characters starts at the first only
            han = np.fromiter((bool(HAN.match(word)) for word in new), bool, len(new))
            starts &= ~np.repeat(han, sizes)
            starts[(np.cumsum(sizes) - sizes)[han & (sizes > 0)]] = True
        self.offsets = np.concatenate([self.offsets, len(self.ids) + np.cumsum(sizes) - sizes])
        self.sizes = np.concatenate([self.sizes, sizes])
        self.ids, self.starts = np.concatenate([self.ids, ids]), np.concatenate([self.starts, starts])

    def _forget(self) -> None:
        self.numbers = _Numbers()
        self.sizes = self.offsets = np.zeros(0, np.int64)
        self.ids, self.starts = np.zeros(0, np.uint32), np.zeros(0, bool)

    def _whole(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parts = []
        for first in range(0, len(sentences), AT_ONCE):
            some = sentences[first : first + AT_ONCE]
            encoded = self.tokenizer.encode_batch(some, add_special_tokens=False)
            found = [encoding.ids for encoding in encoded]
            sizes = np.fromiter(map(len, found), np.int64, len(found))
            ids = self.plain[np.fromiter(chain.from_iterable(found), np.int64, sizes.sum())]
            starts, at = self._starts(ids, sizes), 0
            for text, encoding, size in zip(some, encoded, sizes, strict=True):
                if size and CJK.search(text):
                    _cut_by_words(text, encoding.offsets, starts[at : at + size])
                at += size
            parts.append((ids, starts, sizes))
        if not parts:
            return np.zeros(0, np.uint32), np.zeros(0, bool), np.zeros(0, np.int64)
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def _starts(self, ids: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """A token starts a word if BERT's mark is absent; or after a space, at a sign, or where letters meet digits."""
        first = self.first[ids]
        if self.prefix:
            return first != CONTINUES
        starts, before = first == SPACE, self.last[ids[:-1]]
        starts[1:] |= ((first[1:] != before) | (first[1:] == SIGN)) & (before != SPACE)  # which has started it already
        starts[(np.cumsum(sizes) - sizes)[sizes > 0]] = True
        return starts


CONTINUES = 255  # class of a piece that BERT marks as the rest of a word


class _Numbers(dict):
    """word -> number in the order of first use; `new`: those that have no pieces yet."""

    def __init__(self):
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        self.new.append(word)
        return number


def _mode(content: dict) -> str | None:
    """bert, bytes or unigram where a word's pieces do not depend on its neighbours, else None."""
    model, cutter, cleaner = (content[key] or {} for key in ("model", "pre_tokenizer", "normalizer"))
    kinds = model["type"], cutter.get("type"), cleaner.get("type")
    if any(t["lstrip"] or t["rstrip"] or re.search(r"\s", t["content"]) for t in content["added_tokens"]):
        return None  # such a token may take a space along
    if kinds[:2] == ("WordPiece", "BertPreTokenizer") and kinds[2] in (None, "BertNormalizer", "Lowercase"):
        return "bert"
    if kinds[:2] == ("BPE", "ByteLevel") and kinds[2] in (None, "Lowercase"):
        return "bytes" if cutter["use_regex"] and not cutter["add_prefix_space"] and not model["dropout"] else None
    if kinds == ("Unigram", "Metaspace", "Sequence") and cutter["split"] and cutter["prepend_scheme"] == "always":
        steps = [step["type"] for step in cleaner["normalizers"]]
        return "unigram" if [step for step in OURS if step in steps] == steps and steps[-1] == "Strip" else None
    return None


def _plain(content: dict, size: int) -> np.ndarray:
    """id -> id, but the unknown token's for special tokens: some models read them in plain text all the same."""
    plain, unknown = np.arange(size, dtype=np.uint32), content["model"].get("unk_id")
    if unknown is not None:
        plain[[token["id"] for token in content["added_tokens"] if token["special"]]] = unknown
    return plain


def _classes(tokenizer, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Class of the first and of the last character of every token."""
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    first = np.zeros(max(tokens.values()) + 1, np.uint8)
    last = first.copy()
    for token, row in tokens.items():
        rest = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
        text = token[len(prefix) :] if rest else token
        first[row] = CONTINUES if rest else _class(text[:1])
        last[row] = _class(text[-1:])
    return first, last


def _class(letter: str) -> int:
    """Bytes above 127 of a byte-level token count as letters: they are parts of one."""
    if letter in "\u0120\u2581\u010a\u0109 ":
        return SPACE
    if letter.isdigit():
        return DIGIT
    return LETTER if letter.isalpha() or ord(letter) > 127 else SIGN


def _cut_by_words(text: str, offsets: list[tuple[int, int]], starts: np.ndarray) -> None:
    """Within runs of CJK characters, tokens start words where rjieba does; changes `starts` in place."""
    import rjieba

    cjk = np.zeros(len(text) + 1, bool)
    for match in CJK.finditer(text):
        cjk[match.start()] = True
    begins, at = np.zeros(len(text) + 1, bool), 0
    for word in rjieba.cut(text):
        begins[at] = True
        at += len(word)
    spaces = np.array([letter.isspace() for letter in text] + [False])
    first = np.array([begin for begin, _ in offsets])
    first = first + spaces[first]
    fresh = np.ones(len(first), bool)
    fresh[1:] = first[1:] != first[:-1]  # the bytes of one character are not several words
    inside = cjk[first]
    starts[inside] = (begins[first] & fresh)[inside]


def _interleaved(parts, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two results of some sentences each, in the order of the sentences: `whole` says which come from the second."""
    lengths = np.zeros(len(whole), np.int64)
    for chosen, part in zip((~whole, whole), parts, strict=True):
        lengths[chosen] = part[2]
    side = np.repeat(whole, lengths)
    ids, words = np.zeros(len(side), np.uint32), np.zeros(len(side), bool)
    for chosen, part in zip((~side, side), parts, strict=True):
        ids[chosen], words[chosen] = part[0], part[1]
    return ids, words, lengths
