"""Rows of several sources, in the proportions of a sampler: a pure function of the row's number, whoever asks for it.

The sampler says which source the next sample is of; that source gives its next one, in an order that the seed and its
epoch decide; an epoch that ends is followed by the next, in a new order. Samples of all sources share rows: a text
fills what room there is and goes on in the next row, pairs and instructions stay whole and go into the first of a few
open rows with room for them. So row i follows from row i - 1; what is open and counted at every BLOCK-th row is
remembered, from where any row is reached again. A resumed run needs its step and nothing else; all ranks and workers
see one order.

Form of a row, and how documents are kept apart: tasks/processors/lm.py. Sampler: models/language/chatflow.py. Packing
of several sources by open rows is ours.
"""

import hashlib
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from torch import Tensor

from models import build
from models.language.chatflow import ChatFlow, Exhausted, even_shares, tempered
from models.language.packing import places
from tasks.mixed_samples import Entry, MixtureError, Samples, Tokenizing, open_samples
from tasks.settings import SettingsError
from tasks.source import collate

__all__ = ["Exhausted", "Mixture", "MixtureError", "open_mixture"]

BLOCK = 256  # rows from one remembered state to the next
KEPT = 8  # blocks of rows in memory: evaluation and training may ask in turn
BINS = 8  # open rows
LEAST = 8  # a text is cut where at least a row's 8th part of it goes in
ORDER = 1  # last entry of a generator's key, see tasks/source.py

Piece = tuple[int, int, int, int, int]  # source, item, variant, start, stop


class Mixture:
    """Rows with ids, mask, labels_lm, documents, positions and sources (the number of each place's source).

    Args:
        samples: of each source, in the order of their numbers.
        sampler: makes a new sampler.
        length: places of a row.
        seed: of the orders.
        fingerprint: of data, tokenizer and settings.
        filler: id that pads ids.
        finite: the sampler's limits end it; else rows go on without end.
    """

    def __init__(
        self,
        samples: Sequence[Samples],
        sampler: Callable[[], ChatFlow],
        length: int,
        seed: int,
        fingerprint: str,
        filler: int = 0,
        finite: bool = False,
    ):
        self.samples, self.length, self.seed, self.filler = list(samples), length, seed, filler
        self.fingerprint, self.sources = fingerprint, tuple(part.name for part in samples)
        self._packer = _Packer(self.samples, sampler(), length, seed)
        self._states = [self._packer.state()]
        self._blocks: OrderedDict[int, list[list[Piece]]] = OrderedDict()
        self._count = self._rows_of_all() if finite else None

    def __len__(self) -> int:
        """Rows that all samples of all sources would fill once; of a finite mixture, its rows."""
        if self._count is not None:
            return self._count
        return max(1, -(-sum(part.report["tokens"] for part in self.samples) // self.length))

    @property
    def report(self) -> dict[str, dict]:
        """What each source read, cut and left out."""
        return {part.name: part.report for part in self.samples}

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows of these numbers, collated.

        Raises:
            IndexError: a number below 0, or none at all.
            Exhausted: every source has given all that it may before that row.
        """
        if not len(indices) or min(indices) < 0:
            raise IndexError(f"rows are numbered from 0 on, and at least one must be asked for; got "
                             f"{list(indices)[:5]}")  # fmt: skip
        numbers = [int(index) % self._count if self._count else int(index) for index in indices]
        return collate([self._row(self._pieces(number)) for number in numbers], self.filler)

    def mix(self, rows: int) -> dict[str, float]:
        """The sampler's books once so many rows are full: `lambda`, and of each source the share it now has, its
        samples, tokens and epochs so far.

        Raises:
            Exhausted: there are not so many rows.
        """
        self._reach(rows // BLOCK)
        self._packer.load(self._states[rows // BLOCK])
        for _ in range(rows % BLOCK):
            self._packer.row()
        sampler = self._packer.sampler
        found = {"rows": rows, "lambda": sampler.pace(sampler.clock)}
        shares = sampler.shares(sampler.clock)
        for number, (name, part) in enumerate(zip(self.sources, self.samples, strict=True)):
            found |= {f"share_{name}": shares[number], f"samples_{name}": sampler.samples[number],
                      f"tokens_{name}": sampler.tokens[number],
                      f"epochs_{name}": sampler.samples[number] / len(part)}  # fmt: skip
        return found

    def ahead(self, rows: int) -> float:
        """About how much of the sampler's path lies behind after so many rows, in [0, 1], from the sources' sizes."""
        sampler, tokens = self._packer.sampler, rows * self.length
        mean = sum(part.report["tokens"] for part in self.samples) / sum(map(len, self.samples))
        return sampler.pace(tokens if sampler.unit == "tokens" else tokens / max(mean, 1.0))

    def _rows_of_all(self) -> int:
        rows = 0
        try:
            while True:
                rows += len(self._block(rows // BLOCK))
                if rows % BLOCK:
                    return rows
        except Exhausted:
            return rows

    def _pieces(self, number: int) -> list[Piece]:
        rows = self._block(number // BLOCK)
        if number % BLOCK >= len(rows):
            self._ended(number // BLOCK * BLOCK + len(rows))
        return rows[number % BLOCK]

    def _reach(self, block: int) -> None:
        """Remember the states up to the beginning of a block."""
        while len(self._states) <= block:
            last = len(self._states) - 1
            if len(rows := self._block(last)) < BLOCK:
                self._ended(last * BLOCK + len(rows))

    def _ended(self, rows: int) -> NoReturn:
        raise Exhausted(f"the mixture has {rows:,} rows: then every source ({', '.join(self.sources)}) has given all "
                        f"that it may. Train for fewer steps, allow more repeats, or add data")  # fmt: skip

    def _block(self, block: int) -> list[list[Piece]]:
        """The pieces of a block's rows."""
        if block in self._blocks:
            self._blocks.move_to_end(block)
            return self._blocks[block]
        self._reach(block)
        self._packer.load(self._states[block])
        rows = []
        while len(rows) < BLOCK:
            try:
                rows.append(self._packer.row())
            except Exhausted:
                if not rows:
                    raise
                break
        if len(rows) == BLOCK and len(self._states) == block + 1:
            self._states.append(self._packer.state())
        self._blocks[block] = rows
        if len(self._blocks) > KEPT:
            self._blocks.popitem(last=False)
        return rows

    def _row(self, pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
        made = [self.samples[source].tokens(*piece) for source, *piece in pieces]
        sizes = [len(ids) for ids, _ in made]
        documents, positions = places(sizes)
        return {
            "ids": np.concatenate([ids for ids, _ in made]),
            "labels_lm": np.concatenate([labels for _, labels in made]),
            "documents": documents,
            "positions": positions,
            "sources": np.repeat(np.array([piece[0] for piece in pieces], np.int8), sizes),
        }


class _Packer:
    """Draws samples and lays them into rows; `state` is all that decides what comes next."""

    def __init__(self, samples: Sequence[Samples], sampler: ChatFlow, length: int, seed: int):
        self.samples, self.sampler, self.length, self.seed = samples, sampler, length, seed
        self.least = max(2, length // LEAST)
        self.bins: list[tuple[int, list[Piece]]] = []  # room and pieces
        self.full: deque[list[Piece]] = deque()
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def state(self) -> tuple:
        return self.sampler.state_dict(), [(room, list(pieces)) for room, pieces in self.bins], list(self.full)

    def load(self, state: tuple) -> None:
        counts, bins, full = state
        self.sampler.load_state_dict(counts)
        self.bins, self.full = [(room, list(pieces)) for room, pieces in bins], deque(full)

    def row(self) -> list[Piece]:
        """The next full row; when the sources end, those that are still open."""
        while not self.full:
            try:
                self._draw()
            except Exhausted:
                if not self.bins:
                    raise
                self._close(0)
        return self.full.popleft()

    def _draw(self) -> None:
        source = self.sampler.draw()
        samples = self.samples[source]
        epoch, place = divmod(self.sampler.samples[source], len(samples))
        sample = int(self._order(source, epoch)[place])
        variant = (sample + epoch) % samples.variants
        item, start, stop = samples.piece(sample, variant)
        self.sampler.took(source, stop - start)
        while start < stop:
            wanted = stop - start
            number = self._place(wanted if samples.whole else min(wanted, self.least))
            room, pieces = self.bins[number]
            taken = min(wanted, room)
            pieces.append((source, item, variant, start, start + taken))
            self.bins[number] = room - taken, pieces
            if room == taken:
                self._close(number)
            start += taken

    def _place(self, size: int) -> int:
        """The first open row with room for so many tokens; a new one if there is none, for which the fullest closes."""
        for number, (room, _) in enumerate(self.bins):
            if room >= size:
                return number
        if len(self.bins) == BINS:
            rooms = [room for room, _ in self.bins]
            self._close(rooms.index(min(rooms)))
        self.bins.append((self.length, []))
        return len(self.bins) - 1

    def _close(self, number: int) -> None:
        self.full.append(self.bins.pop(number)[1])

    def _order(self, source: int, epoch: int) -> np.ndarray:
        if self._orders.get(source, (-1,))[0] != epoch:
            rng = np.random.default_rng([self.seed, source, epoch, ORDER])
            self._orders[source] = epoch, rng.permutation(len(self.samples[source]))
        return self._orders[source][1]


def open_mixture(
    sources: Mapping[str, Mapping],
    sampler: Mapping,
    tokenizer_folder: str | Path,
    length: int,
    seed: int,
    heldout: bool = False,
    cache: str | Path | None = None,
) -> Mixture:
    """Open a mixture.

    Args:
        sources: name -> the settings of tasks/mixed_samples.Entry: data (an ingested folder, several, or a frame), kind
            (text, parallel, sft), language, template, role, repeats.
        sampler: settings of models/language/chatflow.py; or `temperature` instead of a preset: one mixture by the
            sources' sizes to the power of 1 / temperature.
        tokenizer_folder: that AutoTokenizer loads.
        length: places of a row.
        seed: of all orders.
        heldout: each source's held-out rows once, equally many tokens of each as long as they last, whatever the
            sampler: rows for evaluation.
        cache: folder that keeps tokens, by what they were made of and with.

    Raises:
        SettingsError: sources or sampler have settings that cannot work.
        MixtureError: a source has nothing to give, or the tokenizer cannot read it.
        ValueError: the sampler's anchors and numbers, see there.
    """
    if not isinstance(sources, Mapping) or not sources:
        raise SettingsError(f"a mixture needs sources, name: {{data, kind}}; got {sources!r}")
    if not isinstance(length, int) or length < 8:
        raise SettingsError(f"length is {length!r}; it must be a whole number of tokens from 8 on")
    entries = {name: Entry.read(name, settings or {}) for name, settings in sources.items()}
    make = _sampler(entries, sampler)
    tokenizing, kept = Tokenizing(tokenizer_folder), Path(cache) if cache else None
    samples = [open_samples(name, entry, tokenizing, length, heldout, kept) for name, entry in entries.items()]
    sizes = {part.name: len(part) for part in samples}
    facts = {
        "tokens": {part.name: part.shards.manifest["files"] for part in samples},
        "sources": {name: [entry.kind, entry.form, entry.repeats, entry.role] for name, entry in entries.items()},
        "around": [[part.first, part.last] for part in samples],
        "sampler": "even" if heldout else dict(sampler),
        "length": length,
        "packing": [BINS, LEAST],
    }
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    if heldout:
        even = {"anchors": even_shares(sizes), "unit": "tokens", "limits": sizes}
        made = lambda: build("language", "chatflow", list(sizes), **even)
    else:
        made = lambda: make(sizes, seed)
    return Mixture(samples, made, length, seed, fingerprint, tokenizing.filler, finite=heldout)


def _sampler(entries: Mapping[str, Entry], settings: Mapping) -> Callable[[Mapping[str, int], int], ChatFlow]:
    """How to make the sampler once the sources' sizes are known; all other faults are raised at once."""
    chosen = dict(settings or {})
    temperature = chosen.pop("temperature", None)
    if temperature is not None and ("anchors" in chosen or "preset" in chosen):
        raise SettingsError("sampler: temperature is instead of preset and anchors; leave them out")

    def make(sizes: Mapping[str, int], seed: int) -> ChatFlow:
        own = dict(chosen) if temperature is None else chosen | {"anchors": tempered(sizes, temperature)}
        most = {name: entry.repeats and max(1, round(entry.repeats * sizes[name])) for name, entry in entries.items()}
        return build("language", "chatflow", _roles(entries), **{"seed": seed, "limits": most} | own)

    try:
        make(dict.fromkeys(entries, 1), 0)
    except TypeError as error:
        raise SettingsError(f"sampler: {error}") from None
    return make


def _roles(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Each source's role: what it says, or what its kind says; the first of the texts is the source language."""
    roles = {}
    for name, entry in entries.items():
        if entry.role:
            roles[name] = entry.role
        elif entry.kind != "text":
            roles[name] = entry.kind
        else:
            known = "source" in roles.values() or any(other.role == "source" for other in entries.values())
            roles[name] = "target" if known else "source"
    return roles
