"""Packing: documents of any length laid into rows of one length, each kept apart from its neighbours.

Three packers. `concat` puts all documents on end and cuts every `length` tokens: no padding but in the last row, and
documents are cut. `first_fit` keeps whole documents and fills a few open rows as they come; `best_fit` sorts them
first, longest to shortest, and puts each where it leaves the least room. What they return is a plan: which part of
which document lies in which row. A plan is a function of the lengths and the seed, of nothing else.

The tail rule: the last row of `concat` is shorter than the others and is kept, so every token lies in exactly one row.

Source: Krell et al., 2021, arXiv:2107.02027, for packing without leaks; Ding et al., 2024, arXiv:2404.10830, for
best-fit decreasing in language modelling. Closing the fullest row when none of the open ones has room is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Plan", "alone", "best_fit", "concat", "first_fit", "places", "split"]


@dataclass(frozen=True)
class Plan:
    """Pieces of documents in rows: row r holds the pieces rows[r] .. rows[r + 1] - 1, from left to right.

    Args:
        document: (P,) int64, the document each piece is cut from.
        start: (P,) int64, its first token within that document.
        stop: (P,) int64, one past its last.
        rows: (R + 1,) int64.
        length: places of a row.
        overhead: places that each piece takes besides its tokens (its own special tokens).
        dropped: documents longer than a row, which a packer of whole documents leaves out.
        lost: tokens of those.
    """

    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    rows: np.ndarray
    length: int
    overhead: int = 0
    dropped: int = 0
    lost: int = 0

    def __len__(self) -> int:
        return len(self.rows) - 1

    @property
    def efficiency(self) -> float:
        """Taken places over all places, in [0, 1]; 1 means no padding."""
        taken = int((self.stop - self.start).sum()) + self.overhead * len(self.document)
        return taken / (len(self) * self.length) if len(self) else 1.0


def concat(lengths: Sequence[int], length: int, seed: int, overhead: int = 0) -> Plan:
    """All documents on end, in an order drawn by the seed, cut into rows.

    Args:
        lengths: (N,) tokens of each document; an empty one is no piece.
        length: places of a row.
        overhead: places for the special tokens of each piece. A row that has no room for one token more stays shorter.

    >>> plan = concat([3, 4], length=4, seed=1)
    >>> plan.document.tolist(), plan.start.tolist(), plan.stop.tolist(), plan.rows.tolist()
    ([0, 1, 1], [0, 0, 1], [3, 1, 4], [0, 2, 3])
    """
    sizes, order = _read(lengths, length, seed, overhead)
    if overhead:
        return _concat_wrapped(sizes, order, length, overhead)
    bounds = np.concatenate([[0], np.cumsum(sizes[order])])
    cuts = np.unique(np.concatenate([bounds, np.arange(0, bounds[-1] + 1, length)]))
    begin, end = cuts[:-1], cuts[1:]
    place = np.searchsorted(bounds, begin, side="right") - 1
    rows = np.searchsorted(begin, np.arange(0, bounds[-1], length))
    return Plan(order[place], begin - bounds[place], end - bounds[place], np.append(rows, len(begin)), length)


def first_fit(lengths: Sequence[int], length: int, seed: int, bins: int = 8, overhead: int = 0) -> Plan:
    """Whole documents, in an order drawn by the seed, each into the first of at most `bins` open rows with room for it.

    Raises:
        ValueError: `bins` is not at least 1.
    """
    if bins < 1:
        raise ValueError(f"first-fit needs at least 1 open row, got bins: {bins}")
    sizes, order = _read(lengths, length, seed, overhead)
    fits, lost = _whole(sizes + overhead, order, length)
    closed: list[list[int]] = []
    opened: list[list[int]] = []
    rooms: list[int] = []
    for number, size in zip(fits.tolist(), (sizes[fits] + overhead).tolist(), strict=True):
        for place, room in enumerate(rooms):
            if size <= room:
                opened[place].append(number)
                rooms[place] -= size
                break
        else:
            if len(rooms) == bins:
                full = rooms.index(min(rooms))
                closed.append(opened.pop(full))
                rooms.pop(full)
            opened.append([number])
            rooms.append(length - size)
    return _whole_plan(closed + opened, sizes, length, overhead, lost)


def best_fit(lengths: Sequence[int], length: int, seed: int, overhead: int = 0) -> Plan:
    """Whole documents, longest first, each into the row that it leaves the least room in. Ties: by the seed."""
    sizes, order = _read(lengths, length, seed, overhead)
    fits, lost = _whole(sizes + overhead, order, length)
    fits = fits[np.argsort(-sizes[fits], kind="stable")]
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0  # bit k is set while some row has k places left: the least sufficient one is a shift away
    for number, size in zip(fits.tolist(), (sizes[fits] + overhead).tolist(), strict=True):
        if enough := rooms >> size:
            room = size + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            rows[row].append(number)
        else:
            room, row = length, len(rows)
            rows.append([number])
        with_room[room - size].append(row)
        rooms |= 1 << (room - size)
    return _whole_plan(rows, sizes, length, overhead, lost)


def alone(lengths: Sequence[int], length: int, overhead: int = 0) -> Plan:
    """No packing: each document in a row of its own, in their order."""
    sizes = np.asarray(lengths, np.int64)
    fits, lost = _whole(sizes + overhead, np.flatnonzero(sizes), length)
    return _whole_plan([[number] for number in fits.tolist()], sizes, length, overhead, lost)


def split(lengths: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents cut into pieces of at most `length` tokens: (P,) document, start, stop. An empty one has no piece.

    >>> [part.tolist() for part in split([5, 0, 2], length=3)]
    [[0, 0, 2], [0, 3, 0], [3, 5, 2]]
    """
    if length < 1:
        raise ValueError(f"a piece needs room for at least 1 token, got {length}; raise the row's length")
    sizes = np.asarray(lengths, np.int64)
    pieces = -(-sizes // length)
    document = np.repeat(np.arange(len(sizes)), pieces)
    start = places(pieces)[1] * length
    return document, start, np.minimum(start + length, sizes[document])


def places(sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Number of the piece and place within it, for pieces of these sizes laid on end: two (sum of sizes,) int64.

    >>> [part.tolist() for part in places([2, 3])]
    [[0, 0, 1, 1, 1], [0, 1, 0, 1, 2]]
    """
    sizes = np.asarray(sizes, np.int64)
    piece = np.repeat(np.arange(len(sizes)), sizes)
    return piece, np.arange(len(piece)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _read(lengths: Sequence[int], length: int, seed: int, overhead: int) -> tuple[np.ndarray, np.ndarray]:
    if length <= overhead:
        raise ValueError(
            f"a row of {length} places has no room for a token beside {overhead} special ones; lengthen it"
        )
    sizes = np.asarray(lengths, np.int64)
    if len(sizes) and sizes.min() < 0:
        raise ValueError(f"document {int(sizes.argmin())} has {int(sizes.min())} tokens; its offsets do not increase")
    order = np.random.default_rng([seed, 1]).permutation(len(sizes))
    return sizes, order[sizes[order] > 0]


def _whole(taken: np.ndarray, order: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    fits = taken[order] <= length
    return order[fits], order[~fits]


def _whole_plan(rows: list[list[int]], sizes: np.ndarray, length: int, overhead: int, lost: np.ndarray) -> Plan:
    document = np.array([number for row in rows for number in row], np.int64)
    offsets = np.cumsum([0] + [len(row) for row in rows])
    start = np.zeros(len(document), np.int64)
    return Plan(document, start, sizes[document], offsets, length, overhead, len(lost), int(sizes[lost].sum()))


def _concat_wrapped(sizes: np.ndarray, order: np.ndarray, length: int, overhead: int) -> Plan:
    document, start, stop, rows, room = [], [], [], [0], length
    for number, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        done = 0
        while done < size:
            if room <= overhead:
                rows.append(len(document))
                room = length
            taken = min(size - done, room - overhead)
            document.append(number)
            start.append(done)
            stop.append(done + taken)
            done += taken
            room -= taken + overhead
    if len(document) > rows[-1]:
        rows.append(len(document))
    return Plan(*(np.array(part, np.int64) for part in (document, start, stop, rows)), length, overhead)
