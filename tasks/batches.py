"""Rows of arrays -> batches of tensors, in an order that a seed and a count decide: a resumed run continues it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from tasks.files import digest, read_json
from tasks.texts import numbers_of

__all__ = ["Batches", "Joined", "in_order", "load_split", "text_names"]


class Joined:
    """Each row's own numbers, then those of its listing's text: looked up in a table when rows are read, never stored.

    Args:
        own: (N, M) float32.
        table, index, scale: see `tasks.texts.numbers_of`.
    """

    def __init__(self, own: np.ndarray, table: np.ndarray, index: np.ndarray, scale: np.ndarray):
        self.own, self.table, self.index, self.scale = own, table, index, scale
        self.shape = len(own), own.shape[1] + table.shape[1] + index.shape[1] - 1
        self.dtype = own.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        """The rows of a slice, of row numbers or of a mask: (n, M + K + H)."""
        return np.concatenate([self.own[rows], numbers_of(self.table, self.index[rows], self.scale)], axis=1)


def load_split(
    features: str | Path, split: str, vectors: str | Path | None = None
) -> tuple[np.ndarray, np.ndarray | Joined]:
    """The encoded rows of one split, memory-mapped: categorical (N, F) int32 and numerical (N, M) float32.

    Args:
        vectors: folder of tasks/vectors.py; its numbers of each row's texts follow the M.

    Raises:
        ValueError: files do not belong together, or are not arrays; names them.
    """
    paths = [Path(features) / kind / f"{split}.npy" for kind in ("categorical", "numerical")]
    try:
        categorical, numerical = (np.lib.format.open_memmap(path, mode="r") for path in paths)
    except ValueError as error:
        raise ValueError(f"{paths[0]} or {paths[1]} is not a numpy array ({error}); run `dvc repro features`") from None
    if len(categorical) != len(numerical):
        raise ValueError(
            f"{paths[0]} has {len(categorical)} rows, {paths[1]} has {len(numerical)}; run `dvc repro -f features`"
        )
    if not text_names(vectors):
        return categorical, numerical
    path = Path(vectors) / "index" / f"{split}.npy"
    table, index = (np.lib.format.open_memmap(file, mode="r") for file in (Path(vectors) / "table.npy", path))
    known = read_json(Path(vectors) / "manifest.json")["features"]
    if len(index) != len(numerical) or known != digest(Path(features) / "manifest.json"):
        raise ValueError(f"{path} was made of other rows than those of {features}; run `dvc repro -f vectors`")
    scale = load_file(Path(vectors) / "text/projection.safetensors")["scale"]
    return categorical, Joined(numerical, table, index, scale)


def text_names(vectors: str | Path | None) -> list[str]:
    """Names of the numbers that tasks/vectors.py made of the listings' texts; none when nothing reads them."""
    return read_json(Path(vectors) / "manifest.json")["names"] if vectors else []


class Batches:
    """Shuffled batches without end; iterating again goes on where the last iteration stopped.

    The order of an epoch is a pure function of the seed and the epoch's number. A last batch that is smaller is kept:
    no row is lost.

    Args:
        arrays: name -> (N, ...) array, also memory-mapped; all of the same N.
        size: rows a batch.
        seed: of the order.
        rows: indices to draw from; None means all N.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], size: int, seed: int, rows: np.ndarray | None = None):
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays of one batch differ in length: {lengths}")
        self.arrays, self.size, self.seed = dict(arrays), size, seed
        self.rows = np.arange(next(iter(lengths.values()))) if rows is None else np.asarray(rows)
        if not len(self.rows) or size < 1:
            raise ValueError(f"cannot batch {len(self.rows)} rows by {size}; both must be at least 1")
        self.batch = 0  # batches given so far, over all epochs: the whole state

    @property
    def per_epoch(self) -> int:
        """Batches in one epoch."""
        return -(-len(self.rows) // self.size)

    def state_dict(self) -> dict[str, int]:
        return {"batch": self.batch, "size": self.size, "seed": self.seed, "rows": len(self.rows)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue an order.

        Raises:
            ValueError: the state is of another order (other size, seed or number of rows).
        """
        here = self.state_dict() | {"batch": state["batch"]}
        if here != dict(state):
            raise ValueError(f"this order is {here}, the saved one {dict(state)}; they cannot continue each other")
        self.batch = state["batch"]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            epoch, start = divmod(self.batch, self.per_epoch)
            order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
            for place in range(start, self.per_epoch):
                chosen = order[place * self.size : (place + 1) * self.size]
                self.batch += 1
                yield {name: torch.from_numpy(array[chosen]) for name, array in self.arrays.items()}


def in_order(arrays: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, Tensor]]:
    """All rows once, from first to last, as evaluation reads them."""
    rows = len(next(iter(arrays.values())))
    for start in range(0, rows, size):
        # A copy: torch cannot hold the read-only pages of a memory-mapped file.
        yield {name: torch.from_numpy(np.array(array[start : start + size])) for name, array in arrays.items()}
