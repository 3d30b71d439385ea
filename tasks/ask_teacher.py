"""A teacher is asked about every row once, and what it says is written to a cache, shard by shard.

See tasks/teacher_cache.py for the folder. Before the first row its size is estimated, and a disk that is too small is
refused; a run that was stopped goes on at the first shard that is missing, and ends with the same bytes.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models import parallel
from models.distill._distillation import see
from models.distill._kept import Kept
from models.distill._objective import Objective
from tasks.engine import Engine
from tasks.files import digest, locked, write_json
from tasks.kinds._kind import Example, Kind
from tasks.teacher_cache import (
    FORMAT,
    HASH,
    MANIFEST,
    CacheBroken,
    CacheForeign,
    Taught,
    TeacherCache,
    check,
    hash_of,
    read_manifest,
    shard_count,
    size,
)

__all__ = ["InOrder", "NoRoom", "estimate", "fill", "taught_by"]

SAMPLE = 256  # rows whose lengths stand for all
SPARE = 1.1  # of the estimated size must be free: lengths were estimated from a sample


class NoRoom(OSError):
    """The disk has less room than the cache is estimated to take; nothing was written."""


class InOrder:
    """Labelled examples by their own numbers, each once, whatever order they train in."""

    def __init__(self, kind: Kind, examples: Sequence[Example], fingerprint: str):
        self.kind, self.examples, self.fingerprint = kind, examples, fingerprint

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these examples."""
        return self.kind.collate([self.examples[index] for index in indices])


def fill(
    folder: str | Path,
    teacher: nn.Module,
    source,
    kept: Kept,
    facts: Mapping[str, str],
    count: int | None = None,
    numbered: bool = False,
    batch: int = 32,
    shard: int = 1024,
    device: str | torch.device = "cpu",
    anew: bool = False,
) -> TeacherCache:
    """Ask the teacher about every row, or go on where an earlier run was stopped; a whole cache is opened at once.

    Under several ranks all of them ask, as a teacher that is shared among them needs, and the first one writes.

    Args:
        folder: of the cache.
        teacher: in evaluation mode; on `device`, or placed by models/distill/_placement.py.
        source: rows(indices) -> batch, with a fingerprint: `InOrder` for labelled rows, tasks/source.py for text.
        kept: what to keep.
        facts: {"teacher": hash of its files, "tokenizer": its hash} and what else decides, such as its precision.
        count: rows 0..count - 1 are kept; None for one epoch.
        numbered: rows change with their number (masking, pairs), so that row i serves i alone: `count` is then steps x
            batch. Otherwise a row is found by what it holds, in any epoch and order.
        batch: rows that the teacher reads at once; changes nothing but rounding.
        shard: rows of a file.
        anew: delete a cache that was made of something else, and say why, instead of refusing it.

    Raises:
        CacheForeign: the folder holds a cache made of something else.
        CacheBroken: what is there is truncated or corrupt; the ranks do not see one folder.
        NoRoom: the disk is too small; nothing was written.
        ValueError: facts are missing; a number that `kept` cannot hold.
    """
    folder, whole = Path(folder), _facts(source, kept, facts, len(source) if count is None else count, numbered, shard)
    chief = not parallel.rank()
    with locked(str(folder.resolve())) if chief else nullcontext():
        if anew:
            if chief:
                _forget(folder, whole)
            _together()
        known = _resume(folder, whole)
        _refuse_apart(folder, len(known))  # all ranks know the same shards before the first one writes another
        first, last = len(known), shard_count(whole)
        if first < last:
            _refuse_full(folder, teacher, source, kept, whole, known, device)
            with tqdm(total=whole["count"], initial=sum(s["rows"] for s in known), desc="teacher", unit=" rows",
                      mininterval=0.5 if sys.stderr.isatty() else 10.0, ascii=" =",
                      **({} if chief else {"disable": True})) as bar:  # fmt: skip
                for number in range(first, last):
                    rows = range(number * shard, min((number + 1) * shard, whole["count"]))
                    tensors = _ask(teacher, source, kept, rows, batch, device, bar)
                    if chief:
                        known = [*known, _write(folder, number, tensors)]
                        write_json(folder / MANIFEST, {"format": FORMAT, "facts": whole, "shards": known})
        _together()  # nobody opens what the first rank has not finished
    return TeacherCache(folder, whole)


def taught_by(
    folder: str | Path,
    teacher: nn.Module,
    objective: Objective,
    source,
    training: Engine,
    facts: Mapping[str, str],
    order: InOrder | None = None,
    device: str | torch.device = "cpu",
    anew: bool = False,
    **how,
) -> tuple[Kept, Taught]:
    """What a run needs instead of its teacher: for Distillation what is kept, and a source whose batches carry it.

    Args:
        folder: of the cache, filled or continued here.
        source: of the run's rows.
        training: of the run: how many rows it reads, where they change with their number. Held-out rows are compared at
            the step after the last, so what that asks for is kept too.
        order: the same rows by their own numbers, where they never change: each is kept once.
        anew: see `fill`.
        how: `store` and `words` of Kept.
    """
    kept = Kept.of_run(objective, training.steps + 1, teacher, **how)
    count = None if order else training.steps * training.batch
    cache = fill(folder, teacher, order or source, kept, facts, count, order is None, device=device, anew=anew)
    return kept, Taught(source, cache)


def estimate(teacher: nn.Module, source, kept: Kept, count: int, device: str | torch.device = "cpu") -> float:
    """Bytes of a cache of `count` rows, from a sample of them."""
    spread = sorted({round(place * (count - 1) / (SAMPLE - 1)) for place in range(SAMPLE)})
    lengths = source.rows(spread)["mask"].sum(1).tolist()
    # Rows without a token say nothing of what a token takes.
    seen = [number for number, length in zip(spread, lengths, strict=True) if length][:4] or spread[:1]
    packed = _ask(teacher, source, kept, seen, len(seen), device, None)
    return Kept.size_like(packed, lengths) * count / len(lengths)


def _together() -> None:
    if parallel.world() > 1:
        torch.distributed.barrier()


def _refuse_apart(folder: Path, shards: int) -> None:
    """Raise CacheBroken on every rank if one of them sees another folder; all meet here."""
    if parallel.world() == 1:
        return
    found: list[int] = [0] * parallel.world()
    torch.distributed.all_gather_object(found, shards)
    if set(found) != {shards}:
        raise CacheBroken(f"{folder}: the ranks see {', '.join(map(str, found))} whole shards there; the folder must "
                          f"be the same for all, so put it where every machine sees it")  # fmt: skip


@torch.no_grad()
def _ask(teacher, source, kept: Kept, rows: Sequence[int], batch: int, device, bar) -> dict[str, Tensor]:
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(rows), batch):
        numbers = rows[start : start + batch]
        given = source.rows(numbers)
        hashes = b"".join(hash_of(given, place) for place in range(len(numbers)))
        moved = {name: value.to(device) for name, value in given.items()}
        packed = kept.pack(see(teacher, kept.wanted, moved, {}))
        packed["hash"] = torch.frombuffer(bytearray(hashes), dtype=torch.uint8).view(-1, HASH)
        parts.append(packed)
        if bar is not None:
            bar.update(len(numbers))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _facts(source, kept: Kept, facts: Mapping, count: int, numbered: bool, shard: int) -> dict:
    if missing := {"teacher", "tokenizer"} - set(facts):
        raise ValueError(f"a cache is bound to the hashes of its teacher and tokenizer; facts lack "
                         f"{', '.join(sorted(missing))}")  # fmt: skip
    if count < 1 or shard < 1:
        raise ValueError(f"a cache has at least one row, and one in each shard; got count {count}, shard {shard}")
    own = {"rows": source.fingerprint, "count": count, "numbered": numbered, "shard": shard, "kept": kept.facts()}
    if numbered:
        own["seed"] = getattr(source, "seed", None)  # decides what is masked; a fingerprint is of the data
    return json.loads(json.dumps({**facts, **own}))


def _forget(folder: Path, facts: Mapping) -> None:
    """Delete a cache that was made of something else."""
    if not (folder / MANIFEST).is_file():
        return
    try:
        read_manifest(folder, facts)
    except CacheForeign as error:
        print(f"{error}; this run deletes it", flush=True)
        shutil.rmtree(folder)


def _resume(folder: Path, facts: Mapping) -> list[dict]:
    """The whole shards that are there; what a kill left is removed."""
    known = []
    if (folder / MANIFEST).is_file():
        known = read_manifest(folder, facts)["shards"]
        for shard in known:
            check(folder / shard["file"], shard, verify=True)
    if not parallel.rank() and folder.is_dir():
        for file in (*folder.glob(".shard-*"), *folder.glob("shard-*")):
            if file.name not in {shard["file"] for shard in known}:
                file.unlink()
    return known


def _write(folder: Path, number: int, tensors: dict[str, Tensor]) -> dict:
    """A shard, whole or not at all."""
    from safetensors.torch import save_file

    file = folder / f"shard-{number:05}.safetensors"
    fresh = file.with_name(f".{file.name}")
    save_file({name: value.contiguous() for name, value in tensors.items()}, fresh)
    record = {"file": file.name, "rows": len(tensors["lengths"]), "tokens": int(tensors["lengths"].sum()),
              "bytes": fresh.stat().st_size, "sha256": digest(fresh)}  # fmt: skip
    os.replace(fresh, file)
    return record


def _refuse_full(folder: Path, teacher, source, kept: Kept, facts: Mapping, known: list, device) -> None:
    needed = estimate(teacher, source, kept, facts["count"], device)
    left = needed - sum(shard["bytes"] for shard in known)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    said = f"the teacher's cache of {facts['count']:,} rows takes about {size(needed)}"
    if not parallel.rank():
        print(f"{said}; {size(free)} are free", flush=True)
    if left * SPARE > free:
        raise NoRoom(f"{said}, of which {size(left)} are missing, but {folder} has {size(free)} free; keep fewer "
                     f"words, layers or rows, or give it another disk")  # fmt: skip
