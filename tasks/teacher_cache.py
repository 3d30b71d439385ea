"""What a teacher says of its rows, on disk: read by every student instead of running the teacher again.

A cache is a folder:

    shard-00000.safetensors ...   rows in order without padding (models/distill/_kept.py), `lengths`, and of each row a
                                  hash (16,) of what the teacher read
    manifest.json                 what it was made of, and rows, tokens, bytes and SHA-256 of each whole shard

It is bound to the teacher's files, the tokenizer, the rows, what was kept, and each row's own hash. Who writes it:
tasks/ask_teacher.py.

    python -m tasks.teacher_cache FOLDER        checks a cache and says what it holds
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from models.distill._kept import Kept, inputs_of
from tasks.command import run
from tasks.files import digest, read_json

__all__ = [
    "FORMAT", "HASH", "MANIFEST", "CacheBroken", "CacheForeign", "Taught", "TeacherCache", "check", "hash_of",
    "read_manifest", "shard_count", "size",
]  # fmt: skip

MANIFEST, FORMAT, HASH = "manifest.json", 1, 16
NOT_KEPT = ("hash",)


class CacheBroken(ValueError):
    """A cache is incomplete, truncated or corrupt."""


class CacheForeign(ValueError):
    """A cache is of another teacher, tokenizer, data, or of other signals."""


class TeacherCache:
    """A whole cache, mapped into memory and read only.

    Args:
        folder: what `fill` wrote.
        facts: what it must have been made of; None takes any.
        verify: compare the SHA-256 of every shard (a second for a few hundred megabytes), not only its size.

    Raises:
        FileNotFoundError: there is no cache.
        CacheForeign: facts differ; names them.
        CacheBroken: shards are missing, or not what the manifest says.
    """

    def __init__(self, folder: str | Path, facts: Mapping | None = None, verify: bool = True):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, facts)
        whole = shard_count(self.manifest["facts"])
        if (there := len(self.manifest["shards"])) < whole:
            raise CacheBroken(f"{self.folder} is not finished: it has {there} of {whole} shards; fill it again with "
                              f"the same settings, and it continues there")  # fmt: skip
        for shard in self.manifest["shards"]:
            check(self.folder / shard["file"], shard, verify)
        self.kept = Kept(**self.manifest["facts"]["kept"])
        self._open: dict[int, tuple[dict[str, Tensor], list[list[int]]]] = {}

    def __len__(self) -> int:
        """Rows."""
        return self.manifest["facts"]["count"]

    @property
    def fingerprint(self) -> str:
        """Changes with everything that was said."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def row(self, number: int) -> dict[str, Tensor]:
        """What was kept of one row, and `hash`; views of the file.

        Raises:
            IndexError: no such row.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"{self.folder} holds the rows 0..{len(self) - 1}, but row {number} was asked for; keep "
                             f"as many rows as the run has steps x batch")  # fmt: skip
        shard, place = divmod(number, self.manifest["facts"]["shard"])
        tensors, starts = self._shard(shard)
        return Kept.row(tensors, starts, place)

    def fields(self, batch: Mapping[str, Tensor], numbers: Sequence[int]) -> dict[str, Tensor]:
        """What the teacher said of the rows of a batch: fields to be added to it.

        Args:
            batch: fields of a batch, on the CPU.
            numbers: of its rows in their source. Where rows never change they are found by what they hold instead.

        Raises:
            CacheForeign: a row is not the one that the teacher read.
        """
        found, strange = [], []
        for place, number in enumerate(numbers):
            read = hash_of(batch, place)
            row = self.row(number) if self.manifest["facts"]["numbered"] else self._find(read)
            if row is None or row["hash"].numpy().tobytes() != read:
                strange.append(number)
            found.append(row)
        if strange:
            raise CacheForeign(f"{self.folder}: the teacher never read {len(strange)} of these {len(found)} rows, the "
                               f"first is row {strange[0]}; the data, its processing or the seed is not that of the "
                               f"cache. Bring it back, or delete the cache to make it anew")  # fmt: skip
        told = [{name: value for name, value in row.items() if name not in NOT_KEPT} for row in found]
        return self.kept.fields(told, batch["mask"])

    def _find(self, read: bytes) -> dict[str, Tensor] | None:
        number = self._numbers.get(read)
        return None if number is None else self.row(number)

    @cached_property
    def _numbers(self) -> dict[bytes, int]:
        """Row by hash; equal rows are one."""
        hashes = b"".join(self._shard(s)[0]["hash"].numpy().tobytes() for s in range(len(self.manifest["shards"])))
        return {hashes[i * HASH : (i + 1) * HASH]: i for i in range(len(self))}

    def _shard(self, number: int) -> tuple[dict[str, Tensor], list[list[int]]]:
        if number not in self._open:
            from safetensors.torch import load_file

            tensors = load_file(self.folder / self.manifest["shards"][number]["file"])  # mapped, not read
            self._open[number] = tensors, Kept.starts_of(tensors["lengths"])
        return self._open[number]


class Taught:
    """A source whose batches carry what the teacher said of them; works on any rank and in any portions."""

    def __init__(self, source, cache: TeacherCache):
        self.source, self.cache = source, cache
        self.fingerprint = f"{source.fingerprint} taught {cache.fingerprint[:16]}"

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows of these numbers, and the fields `taught_...`."""
        batch = self.source.rows(indices)
        return batch | self.cache.fields(batch, list(indices))


def hash_of(batch: Mapping[str, Tensor], row: int) -> bytes:
    """Of what a teacher reads of a row; padding does not count."""
    total = hashlib.blake2b(digest_size=HASH)
    for name, value in inputs_of(batch, row):
        total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode() + value.contiguous().numpy().tobytes())
    return total.digest()


def shard_count(facts: Mapping) -> int:
    """Shards of a whole cache."""
    return -(-facts["count"] // facts["shard"])


def read_manifest(folder: Path, facts: Mapping | None) -> dict:
    """The manifest; raises FileNotFoundError, CacheBroken and, where facts differ, CacheForeign."""
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} is no teacher cache: it has no {MANIFEST}; fill it first")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CacheBroken(f"{folder}: {MANIFEST} is not of format {FORMAT}; delete the folder and fill it again")
    was = manifest["facts"]
    if facts is not None and was != facts:
        changed = [f"{key} was {_shown(was.get(key))}, is {_shown(facts.get(key))}"
                   for key in sorted({*was, *facts}) if was.get(key) != facts.get(key)]  # fmt: skip
        raise CacheForeign(f"{folder} was made of something else: {'; '.join(changed)}. Bring that back, or delete the "
                           f"folder to make the cache anew")  # fmt: skip
    return manifest


def check(file: Path, told: Mapping, verify: bool) -> None:
    """Raise CacheBroken if a shard is not what the manifest tells; `verify`: also by its SHA-256."""
    mend = "delete the folder and fill it again"
    if not file.is_file():
        raise CacheBroken(f"{file} is missing; {mend}")
    if (size := file.stat().st_size) != told["bytes"]:
        raise CacheBroken(f"{file} is truncated or was written to: {size:,} bytes instead of {told['bytes']:,}; {mend}")
    if verify and (found := digest(file)) != told["sha256"]:
        raise CacheBroken(f"{file} is corrupt: its SHA-256 is {found[:12]} instead of {told['sha256'][:12]}; {mend}")


def _shown(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if isinstance(value, str) and len(value) == 64 else text


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def main(folder: str) -> None:
    """python -m tasks.teacher_cache FOLDER"""
    cache = TeacherCache(folder)
    shards, facts = cache.manifest["shards"], cache.manifest["facts"]
    print(f"{folder}: {len(cache):,} rows, {sum(s['tokens'] for s in shards):,} tokens, {len(shards)} whole shards, "
          f"{size(sum(s['bytes'] for s in shards))}; teacher {_shown(facts['teacher'])}, "
          f"{cache.kept.facts()}")  # fmt: skip


if __name__ == "__main__":
    run(main)
