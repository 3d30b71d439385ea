"""Tokens on disk: one long row of ids with the borders of sentences, documents and words, mapped into memory.

A stream is a folder:

    ids.npy        (N,) uint16 or uint32   the ids of all tokens on end, without special tokens
    words.npy      (N,) bool               the token starts a word
    sentences.npy  (S + 1,) int64          offsets into ids: sentence s is ids[sentences[s]:sentences[s + 1]]
    documents.npy  (D + 1,) int64          offsets into sentences, likewise
    manifest.json  counts, dtype, SHA-256 and size of each file, and what the writer adds (tokenizer, dataset)

The writer appends blocks and keeps none of them, so its memory does not grow with the corpus; a reader maps the files,
so that any number of processes share one copy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.files import digest, read_json, write_json

__all__ = ["Shards", "ShardsBroken", "Writer", "id_type", "write"]

FILES = ("ids", "words", "sentences", "documents")


class ShardsBroken(ValueError):
    """A folder of tokens is incomplete, or is not what its manifest says."""


@dataclass(frozen=True, eq=False)
class Shards:
    """One stream of tokens, mapped into memory and read only; see the module for the arrays."""

    folder: Path
    ids: np.ndarray
    words: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    manifest: dict

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> "Shards":
        """Map a stream.

        Args:
            folder: what `Writer` or `write` filled.
            verify: compare the SHA-256 of every file (a second for a few hundred megabytes), not only its size.

        Raises:
            ShardsBroken: a file is missing, or its size, hash or counts are not those of the manifest.
        """
        folder = Path(folder)
        missing = [name for name in ("manifest.json", *_names()) if not (folder / name).is_file()]
        if missing:
            raise ShardsBroken(f"{folder} is no folder of tokens: it lacks {', '.join(missing)}; run the tokens stage")
        manifest = read_json(folder / "manifest.json")
        for name in _names():
            _check(folder / name, manifest["files"].get(name), verify)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in FILES}
        shards = cls(folder, **arrays, manifest=manifest)
        found = {"tokens": len(shards.ids), "sentences": len(shards.sentences) - 1, "documents": len(shards)}
        if wrong := {key: n for key, n in found.items() if manifest[key] != n} or len(shards.words) != len(shards.ids):
            raise ShardsBroken(f"{folder}: the arrays hold {wrong}, unlike manifest.json; run the tokens stage again")
        return shards

    def __len__(self) -> int:
        """Documents."""
        return len(self.documents) - 1

    def sentence(self, index: int) -> np.ndarray:
        """The ids of sentence `index` of the whole stream."""
        return self.ids[self.sentences[index] : self.sentences[index + 1]]

    def document(self, index: int) -> list[np.ndarray]:
        """The ids of document `index`, sentence by sentence."""
        return [self.sentence(s) for s in range(self.documents[index], self.documents[index + 1])]

    def span(self, index: int) -> tuple[int, int]:
        """Where document `index` begins and ends in `ids` and `words`."""
        first, last = self.documents[index], self.documents[index + 1]
        return int(self.sentences[first]), int(self.sentences[last])


class Writer:
    """Appends blocks of documents to a stream; `close` writes the manifest, without which nothing opens."""

    def __init__(self, folder: str | Path, vocabulary: int):
        """`folder` is made; `vocabulary`: rows of the tokenizer, which decide the type of an id."""
        self.folder, self.vocabulary = Path(folder), vocabulary
        self.folder.mkdir(parents=True, exist_ok=True)
        types = {"ids": id_type(vocabulary), "words": np.dtype(bool), **dict.fromkeys(FILES[2:], np.dtype(np.int64))}
        self.arrays = {name: _Array(self.folder / f"{name}.npy", types[name]) for name in FILES}
        self.tokens = self.sentence_count = self.document_count = 0
        for name in FILES[2:]:
            self.arrays[name].append(np.zeros(1, np.int64))

    def append(self, ids: np.ndarray, words: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> None:
        """Add documents.

        Args:
            ids: (n,) tokens of all their sentences on end.
            words: (n,) bool, the token starts a word.
            lengths: (s,) tokens of each sentence.
            counts: (d,) sentences of each document.

        Raises:
            ValueError: the numbers do not add up, or an id is outside the vocabulary.
        """
        if not (len(ids) == len(words) == np.sum(lengths) and len(lengths) == np.sum(counts)):
            raise ValueError(f"{len(ids)} ids, {len(words)} words and {len(lengths)} sentences do not add up")
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.vocabulary):
            raise ValueError(
                f"an id is {ids.min()} or {ids.max()}; the vocabulary has the ids 0..{self.vocabulary - 1}"
            )
        self.arrays["ids"].append(ids)
        self.arrays["words"].append(words)
        self.arrays["sentences"].append(self.tokens + np.cumsum(lengths, dtype=np.int64))
        self.arrays["documents"].append(self.sentence_count + np.cumsum(counts, dtype=np.int64))
        self.tokens, self.sentence_count = self.tokens + len(ids), self.sentence_count + len(lengths)
        self.document_count += len(counts)

    def close(self, **facts) -> dict:
        """Finish the files and write manifest.json with `facts` (JSON values) beside the counts; returns it."""
        for array in self.arrays.values():
            array.close()
        files = {name: {"bytes": (p := self.folder / name).stat().st_size, "sha256": digest(p)} for name in _names()}
        manifest = {
            **facts,
            "tokens": self.tokens,
            "sentences": self.sentence_count,
            "documents": self.document_count,
            "vocabulary": self.vocabulary,
            "dtype": id_type(self.vocabulary).name,
            "files": files,
        }
        write_json(self.folder / "manifest.json", manifest)
        return manifest


def write(
    folder: str | Path,
    documents: Iterable[Sequence[Sequence[int]]],
    vocabulary: int,
    words: Iterable[Sequence[Sequence[bool]]] | None = None,
    **facts,
) -> Shards:
    """Write a small stream from lists, and open it.

    Args:
        folder: taken as it is; files of the same names are overwritten.
        documents: documents of sentences of ids.
        vocabulary: rows of the tokenizer.
        words: like `documents`, True where a token starts a word; without it every token does.
        facts: further entries of the manifest.
    """
    documents = [[list(sentence) for sentence in document] for document in documents]
    starts = [[[True] * len(s) for s in d] for d in documents] if words is None else words
    writer = Writer(folder, vocabulary)
    flat = lambda nested, kind: np.array([x for d in nested for s in d for x in s], kind)
    lengths = np.array([len(s) for d in documents for s in d], np.int64)
    counts = np.array([len(d) for d in documents], np.int64)
    writer.append(flat(documents, np.int64), flat(starts, bool), lengths, counts)
    writer.close(**facts)
    return Shards.open(folder)


def id_type(vocabulary: int) -> np.dtype:
    """uint16 where every id fits, else uint32."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)


class _Array:
    """A one-dimensional .npy file that grows; its header is written again when its length is known."""

    def __init__(self, path: Path, dtype: np.dtype):
        self.file = open(path, "wb")  # noqa: SIM115 (open until close)
        self.dtype, self.length = dtype, 0
        self.body = self._header()

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        self.file.seek(0)
        if self._header() != self.body:  # numpy leaves room for a longer length; if not, the data would be overwritten
            raise ValueError(f"the header of {self.file.name} has outgrown its room")
        self.file.close()

    def _header(self) -> int:
        head = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, head)
        return self.file.tell()


def _names() -> list[str]:
    return [f"{name}.npy" for name in FILES]


def _check(path: Path, stated: dict | None, verify: bool) -> None:
    size = path.stat().st_size
    if stated is None or size != stated["bytes"]:
        wanted = "nothing" if stated is None else f"{stated['bytes']:,} bytes"
        raise ShardsBroken(f"{path} has {size:,} bytes, its manifest says {wanted}; run the tokens stage again")
    if verify and digest(path) != stated["sha256"]:
        raise ShardsBroken(f"{path} has changed since it was written (SHA-256); run the tokens stage again")
