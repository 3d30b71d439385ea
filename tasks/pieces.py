"""Sentences -> ids and word starts, several times as fast as the library for texts that repeat their words.

A tokenizer that cuts at spaces gives a word the same pieces wherever it stands, so each distinct word is asked for once
and its pieces are looked up from then on, all sentences at a time. This is exact where it
is used: BERT's word pieces, to which every Han character is a word; GPT-2's byte-level pieces (a word takes the space
before it along; texts with other white space or two spaces on end go to the library whole), and our unigram pieces. Any
other tokenizer, and CJK text with the latter two, goes to the library sentence by sentence.

Where a word starts: at a space, where letters, digits and signs meet, and, among Han characters, where rjieba cuts.
Special tokens written out in a text are read as text.
"""

import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

__all__ = ["Pieces"]

CACHE = 32_000_000  # bytes of words kept, WORD for each besides its own; forgetting them changes nothing
WORD = 160
HAN = "\u3400-\u4dbf\u4e00-\u9fff"
CJK = f"[\u3040-\u30ff{HAN}]"
ODD_SPACE = r"[\s\x1c-\x1f--[ ]]|  "
AT_ONCE = 2048  # words or sentences that go to the library together: it takes a kilobyte and more for each
PORTION = 4_000_000  # bytes of text cut at a time: arrays of their words are some ten times as large
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
        self.bytes = _bytes(self.tokenizer, len(self.first)) if self.mode == "bytes" else None
        self._forget()

    def __call__(self, sentences: Sequence[str] | pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut sentences.

        Returns:
            ids (n,) uint32 of all tokens on end, words (n,) bool: starts a word, lengths (sentences,) int64.
        """
        texts = pl.Series(sentences, dtype=pl.String)
        parts = [self._cut(part) for part in _portions(texts)]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def _cut(self, texts: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.mode is None:
            return self._whole(texts)
        if self.mode == "bert":
            return self._looked_up(texts)
        whole = texts.str.contains(CJK)
        if self.mode == "bytes":
            whole |= texts.str.contains(ODD_SPACE)
        if not whole.any():
            return self._looked_up(texts)
        return _interleaved([self._looked_up(texts.filter(~whole)), self._whole(texts.filter(whole))], whole.to_numpy())

    def _looked_up(self, texts: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.spent > CACHE:
            self._forget()
        lists = self._words(texts)
        words, counts = lists.explode(), lists.list.len().to_numpy().astype(np.int64)
        rows = self._numbered(words)
        sizes = self.sizes[rows]
        ends = np.cumsum(sizes)
        at = np.repeat(self.offsets[rows] - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)
        ids, starts = self.ids[at], self.starts[at]
        if self.mode == "bert" and (han := self.han[rows]).any():
            starts[(ends - sizes)[han]] = _han_starts(texts)
        borders = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(counts)])]
        return ids, starts, np.diff(borders)

    def _words(self, texts: pl.Series) -> pl.Series:
        """Each sentence as the list of what can be looked up; an empty string has no pieces."""
        if self.mode == "bytes":
            return texts.str.replace_all(" ", "\n ", literal=True).str.split("\n")
        return (texts.str.replace_all(f"([{HAN}])", " $1 ") if self.mode == "bert" else texts).str.split(" ")

    def _numbered(self, words: pl.Series) -> np.ndarray:
        """The number of each word; those met for the first time are learned."""
        distinct = words.unique(maintain_order=True)
        listed = distinct.to_list()
        if new := [word for word in listed if word not in self.numbers]:
            self._learn(new)
        rows = np.fromiter(map(self.numbers.__getitem__, listed), np.int64, len(listed))
        table = pl.DataFrame({"word": distinct, "row": rows})
        return words.to_frame("word").join(table, on="word", how="left", maintain_order="left")["row"].to_numpy()

    def _learn(self, new: list[str]) -> None:
        """Ask the library for words."""
        texts = pl.Series(new, dtype=pl.String)
        ids, sizes, _ = self._encoded(texts)
        self.numbers.update(zip(new, range(len(self.sizes), len(self.sizes) + len(new)), strict=True))
        self.offsets = np.concatenate([self.offsets, len(self.ids) + np.cumsum(sizes) - sizes])
        self.sizes = np.concatenate([self.sizes, sizes])
        self.ids = np.concatenate([self.ids, ids])
        self.starts = np.concatenate([self.starts, self._starts(ids, sizes)])
        self.han = np.concatenate([self.han, texts.str.contains(f"^[{HAN}]").to_numpy()])
        self.spent += int(texts.str.len_bytes().sum()) + WORD * len(new)

    def _forget(self) -> None:
        self.numbers: dict[str, int] = {}
        self.sizes = self.offsets = np.zeros(0, np.int64)
        self.ids, self.starts, self.han = np.zeros(0, np.uint32), np.zeros(0, bool), np.zeros(0, bool)
        self.spent = 0

    def _encoded(self, texts: pl.Series, offsets: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the library says: ids of all texts on end, how many of each, and on demand each token's first letter."""
        encode = self.tokenizer.encode_batch if offsets else self.tokenizer.encode_batch_fast
        ids, sizes, first = [], [], []
        for begin in range(0, len(texts), AT_ONCE):
            encoded = encode(texts[begin : begin + AT_ONCE].to_list(), add_special_tokens=False)
            found = [encoding.ids for encoding in encoded]
            sizes += map(len, found)
            ids.append(np.fromiter(chain.from_iterable(found), np.int64))
            if offsets:
                first += (place for encoding in encoded for place, _ in encoding.offsets)
        ids = self.plain[np.concatenate([np.zeros(0, np.int64), *ids])]
        return ids, np.array(sizes, np.int64), np.array(first, np.int64)

    def _whole(self, texts: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths = texts.str.len_chars().to_numpy().astype(np.int64) + 1  # and the line end that `_cut_by_words` adds
        ids, sizes, first = self._encoded(texts, offsets=self.bytes is None)
        if self.bytes is not None and self.bytes[ids].sum() == texts.str.len_bytes().sum():
            first = _letters(texts, self.bytes[ids])
        else:
            if self.bytes is not None:  # bytes that the vocabulary lacks
                first = self._encoded(texts, offsets=True)[2]
            first = first + np.repeat(np.cumsum(lengths) - lengths, sizes)
        starts = self._starts(ids, sizes)
        if texts.str.contains(CJK).any():
            _cut_by_words(texts, first, starts)
        return ids, starts, sizes

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


def _mode(content: dict) -> str | None:
    """bert, bytes or unigram where a word's pieces do not depend on its neighbours, else None."""
    model, cutter, cleaner = (content[key] or {} for key in ("model", "pre_tokenizer", "normalizer"))
    kinds = model["type"], cutter.get("type"), cleaner.get("type")
    for token in content["added_tokens"]:  # such a token may take a space along, or be more than a word
        if token["lstrip"] or token["rstrip"] or not token["special"] or re.search(r"\s", token["content"]):
            return None
    if kinds == ("WordPiece", "BertPreTokenizer", "BertNormalizer") and cleaner["handle_chinese_chars"]:
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


def _bytes(tokenizer, size: int) -> np.ndarray | None:
    """Bytes of text behind every token of a byte-level tokenizer; None where a normalizer changes the text before."""
    if tokenizer.normalizer is not None:
        return None
    added = {row: token.content for row, token in tokenizer.get_added_tokens_decoder().items()}
    lengths = np.zeros(size, np.int64)
    for token, row in tokenizer.get_vocab(with_added_tokens=True).items():
        lengths[row] = len(token.encode() if row in added else token)
    return lengths


def _portions(texts: pl.Series) -> list[pl.Series]:
    """Texts of at most PORTION bytes together, or one that is longer; at least one portion, which may be empty."""
    ends = np.cumsum(texts.str.len_bytes().to_numpy(), dtype=np.int64)
    borders, begin = [0], 0
    while begin < len(texts):
        spent = ends[begin - 1] if begin else 0
        begin = max(begin + 1, int(np.searchsorted(ends, spent + PORTION, side="right")))
        borders.append(begin)
    return [texts[a:b] for a, b in zip(borders, borders[1:], strict=False)] or [texts]


def _letters(texts: pl.Series, sizes: np.ndarray) -> np.ndarray:
    """Which letter of the texts, a line end behind each, a token begins in, from the bytes of every token."""
    data = np.frombuffer("".join(texts).encode(), np.uint8)
    letter = np.cumsum((data & 0xC0) != 0x80) - 1  # a byte of this form begins none
    ends = np.cumsum(texts.str.len_bytes().to_numpy(), dtype=np.int64)
    begins = np.cumsum(sizes) - sizes
    return letter[begins] + np.searchsorted(ends, begins, side="right")


def _han_starts(texts: pl.Series) -> np.ndarray:
    """For each Han character of the texts, whether it begins a word; runs of them are cut one by one."""
    runs = texts.str.extract_all(f"[{HAN}]+").explode().drop_nulls()
    line = "\n".join(runs)
    ends = np.cumsum(runs.str.len_chars().to_numpy().astype(np.int64) + 1)[:-1] - 1
    return np.delete(_begins(line), ends)


def _begins(text: str) -> np.ndarray:
    """For each character of a text, whether rjieba begins a word with it."""
    import rjieba

    words = rjieba.cut(text)
    begins = np.zeros(len(text), bool)
    begins[np.cumsum([0, *map(len, words)])[:-1]] = True
    return begins


def _cut_by_words(texts: pl.Series, first: np.ndarray, starts: np.ndarray) -> None:
    """Within runs of CJK characters, tokens start words where rjieba does; changes `starts` in place.

    Args:
        texts: joined by line ends, at which rjieba cuts anyhow.
        first: of each token, the letter of the joined texts that it begins in.
        starts: of each token.
    """
    line = "\n".join(texts)
    letters = pl.Series([line]).str.split("").explode()
    begins = np.append(_begins(line), False)
    cjk = np.append(letters.str.contains(CJK).to_numpy(), False)
    space = np.append(letters.str.contains(r"^[\s\x1c-\x1f]").to_numpy(), False)
    first = first + space[first]
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
