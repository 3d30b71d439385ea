"""Rows without end for training: a pure function of the seed and a row's number, whoever asks and in what portions.

Row number i belongs to epoch i // len and is the (i % len)-th of that epoch's order, which the seed and the epoch
decide. All chance inside the row (what is masked, which pair is false) comes from a generator keyed by the seed and
i. So a resumed run needs no state but its step, and any number of ranks share the same global batches.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.files import digest, read_json
from tasks.processors import Given, build, settings
from tasks.tokenizer import TokenizerError, Vocabulary

__all__ = ["Source", "collate", "open_source"]

ORDER, ROW = 1, 2  # last entry of a generator's key: an epoch's order and a row's chance must not share a stream


class Source:
    """Rows of one split through one processor.

    Args:
        processor: what makes a row of a place (tasks/processors).
        fingerprint: of the data, the tokenizer and the settings; a checkpoint of another one does not continue here.
        seed: of the order and of all chance.
        filler: id that pads `ids`; the mask hides it.
    """

    def __init__(self, processor, fingerprint: str, seed: int, filler: int = 0):
        if not len(processor):
            raise ValueError("the processor made no row of the data; give it longer texts or a shorter row")
        self.processor, self.fingerprint, self.seed, self.filler = processor, fingerprint, seed, filler
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Rows of one epoch."""
        return len(self.processor)

    @property
    def report(self) -> dict[str, float]:
        """What the processor read, packed and left out."""
        return self.processor.report

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows of these numbers, collated; each number is 0 or more, epochs follow each other.

        Raises:
            IndexError: a number below 0, or none at all.
        """
        if not len(indices) or min(indices) < 0:
            raise IndexError(
                f"rows are numbered from 0 on, and at least one must be asked for; got {list(indices)[:5]}"
            )
        found = []
        for index in map(int, indices):
            epoch, place = divmod(index, len(self))
            rng = np.random.default_rng([self.seed, index, ROW])
            found.append(self.processor.row(int(self._ordered(epoch)[place]), rng))
        return collate(found, self.filler)

    def _ordered(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch, ORDER]).permutation(len(self))
        return self._order[1]


def open_source(
    folder: str | Path,
    processor: Mapping[str, Mapping],
    tokenizer_folder: str | Path,
    length: int,
    seed: int,
    heldout: bool = False,
) -> Source:
    """Open the training or held-out split of a dataset's tokens.

    Args:
        folder: what the tokens stage wrote: train/ and heldout/, each with its streams and arrays.
        processor: its name -> its settings, as a recipe has it; {} are the paper's values.
        tokenizer_folder: of the tokenizer that made the tokens.
        length: places of a row.
        seed: of the plan, the order and all chance.
        heldout: the held-out split, without augmentation.

    Raises:
        LookupError: no such processor.
        ValueError: unknown settings, broken data, another tokenizer, or a processor that this data cannot feed.
    """
    if len(processor) != 1:
        raise ValueError(f"a recipe has one processor, got {len(processor)}: {', '.join(processor) or 'none'}")
    (name, chosen), split = *processor.items(), Path(folder) / ("heldout" if heldout else "train")
    full = settings(name, dict(chosen or {}))
    vocabulary = Vocabulary.open(tokenizer_folder)
    streams = _streams(split)
    for stream, manifest in streams.items():
        if (made := manifest.get("tokenizer")) not in (None, vocabulary.sha256):
            raise TokenizerError(
                f"{split / stream} was made by another tokenizer ({made[:12]}) than {tokenizer_folder} "
                f"({vocabulary.sha256[:12]}); run the tokens stage again"
            )
    made = build(name, Given(split, vocabulary, length, seed, heldout), **full)
    facts = {
        "data": {stream: manifest["files"] for stream, manifest in streams.items()},
        "arrays": {file.name: digest(file) for file in sorted(split.iterdir()) if file.is_file()},
        "tokenizer": vocabulary.sha256,
        "processor": {name: full},
        "length": length,
    }
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Source(made, fingerprint, seed, vocabulary.filler)


def collate(rows: Sequence[Mapping[str, np.ndarray | int]], filler: int = 0) -> dict[str, Tensor]:
    """Rows of different lengths -> a batch as long as its longest row.

    Masks are made here and nowhere else: `mask` of ids, `target_mask` of target_ids, `frame_mask` of frames. Labels are
    padded with -100, ids with `filler`; padding belongs to the row's last document.
    """
    batch = {}
    for name in rows[0]:
        values = [np.asarray(row[name]) for row in rows]
        if values[0].ndim == 0:
            batch[name] = torch.from_numpy(np.array(values))
            continue
        lengths = np.array([len(value) for value in values])
        fill = _fill(name, filler)
        padded = np.full((len(rows), lengths.max(), *values[0].shape[1:]), fill, values[0].dtype)
        for row, value in enumerate(values):
            padded[row, : len(value)] = value
            if name.endswith("documents"):
                padded[row, len(value) :] = value[-1]
        batch[name] = torch.from_numpy(padded)
        if field := _mask(name):
            batch[field] = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
    return batch


def _fill(name: str, filler: int) -> int:
    if name.endswith("ids"):
        return filler
    return -100 if name.startswith("labels_") else 0


def _mask(name: str) -> str | None:
    if name.endswith("ids"):
        return name.removesuffix("ids") + "mask"
    return name.removesuffix("frames") + "frame_mask" if name.endswith("frames") else None


def _streams(split: Path) -> dict[str, dict]:
    if not split.is_dir():
        raise FileNotFoundError(f"{split} does not exist; run the tokens stage of this dataset")
    return {file.parent.name: read_json(file) for file in sorted(split.glob("*/manifest.json"))}
