"""A small vocabulary and made-up streams of tokens for the tests of processors and sources."""

import json
from pathlib import Path

import numpy as np

from tasks.processors import Given, build
from tasks.shards import write
from tasks.source import open_source
from tasks.tokenizer import Vocabulary

ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "bos": "<s>", "eos": "</s>"}
PAD, UNK, CLS, SEP, MASK, BOS, EOS = range(7)
SENTINELS = 40
FIRST = 7 + SENTINELS  # the first id that stands for text
SIZE = 400


def tokenizer(folder: Path, without: tuple[str, ...] = (), sentinels: int = SENTINELS) -> Path:
    """A tokenizer's folder with these roles taken out; the other ids do not move."""
    folder.mkdir(parents=True, exist_ok=True)
    special = [*ROLES.values(), *(f"<extra_id_{n}>" for n in range(sentinels))]
    pieces = special + [f"piece{n}" for n in range(len(special), SIZE)]
    added = [{"content": token, "id": n, "special": True} for n, token in enumerate(special)]
    content = {"model": {"vocab": {piece: n for n, piece in enumerate(pieces)}}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    named = {f"{role}_token": token for role, token in ROLES.items() if role not in without}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    return folder


def documents(count: int = 60, sentences: int = 6, words: int = 12, seed: int = 0) -> list[list[list[int]]]:
    """Documents of 1..sentences sentences of 1..words tokens."""
    rng = np.random.default_rng(seed)
    sentence = lambda: rng.integers(FIRST, SIZE, rng.integers(1, words + 1)).tolist()
    return [[sentence() for _ in range(rng.integers(1, sentences + 1))] for _ in range(count)]


def stream(folder: Path, texts, seed: int = 0) -> Path:
    """Write one stream; two of three tokens start a word."""
    rng = np.random.default_rng(seed)
    starts = [[(rng.random(len(sentence)) < 2 / 3).tolist() for sentence in text] for text in texts]
    write(folder, texts, SIZE, words=starts)
    return folder


def given(folder: Path, length: int = 64, seed: int = 7, heldout: bool = False, **streams) -> Given:
    """What a processor gets: these streams, written, and the vocabulary."""
    for name, texts in streams.items():
        stream(folder / "train" / name, texts)
    vocabulary = Vocabulary.open(tokenizer(folder / "tokenizer"))
    return Given(folder / "train", vocabulary, length, seed, heldout)


def made(name: str, folder: Path, settings: dict | None = None, length: int = 64, **streams):
    """A processor over these streams."""
    return build(name, given(folder, length, **streams), **(settings or {}))


def source(name: str, folder: Path, settings: dict | None = None, length: int = 64, seed: int = 7, **streams):
    """A source over these streams."""
    given(folder, length, **streams)
    return open_source(folder, {name: settings or {}}, folder / "tokenizer", length, seed)


def draw(processor, times: int = 1):
    """Every row of an epoch, `times` times."""
    for epoch in range(times):
        for place in range(len(processor)):
            yield processor.row(place, np.random.default_rng([epoch, place, 9]))


def flat(document) -> list[int]:
    """A document's tokens."""
    return [token for sentence in document for token in sentence]
