"""Representations of a frozen backbone, computed once per row set and shared by all heads tuned on it.

A memo, not a stage: its key is the content it was computed from, so it is never stale, and may be deleted at any time.
"""

import hashlib
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tasks.files import locked, new_folder

__all__ = ["represented"]

KEPT = 4  # row sets; the one used longest ago goes first


def represented(
    model: nn.Module, identity: str, rows: dict[str, tuple], asked: dict[str, np.ndarray], memo: Path, batch: int = 8192
) -> tuple[dict[str, dict[str, np.ndarray]], bool, float]:
    """What the heads read, for the asked rows of every split.

    Args:
        identity: names the backbone's weights and the encoded rows, by their hashes.
        rows: split -> (categorical (N, F), numerical (N, M)).
        asked: split -> indices of the rows on which the task asks; equal sets of rows share one memo.
        memo: folder of all memos.

    Returns:
        split -> name -> (rows, ...) float32, memory-mapped; whether it was there already; seconds spent computing.
    """
    key = hashlib.sha256(identity.encode())
    for split, indices in asked.items():
        key.update(f"\0{split} {len(indices)}\0".encode())
        key.update(indices.astype(np.int64))
    folder, started = memo / key.hexdigest()[:32], time.monotonic()
    with locked(f"{memo}-{folder.name}"):  # of two heads tuned side by side, the second finds what the first computed
        reused = folder.is_dir()
        if not reused:
            with new_folder(folder) as fresh:
                for split, indices in asked.items():
                    _compute(model, *rows[split], indices, fresh / split, batch)
            _forget(memo, folder)
        folder.touch()
        tables = {split: _open(folder / split) for split in asked}
    return tables, reused, 0.0 if reused else time.monotonic() - started


def _open(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.lib.format.open_memmap(path, mode="r") for path in sorted(folder.glob("*.npy"))}


@torch.no_grad()
def _compute(model: nn.Module, categorical, numerical, indices: np.ndarray, folder: Path, batch: int) -> None:
    folder.mkdir()
    written: dict[str, np.memmap] = {}
    for start in range(0, len(indices), batch):
        part = indices[start : start + batch]
        found = model.represent(torch.from_numpy(categorical[part]), torch.from_numpy(numerical[part]))
        for name, value in found.items():
            if name not in written:
                shape = (len(indices), *value.shape[1:])
                written[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, shape)
            written[name][start : start + len(part)] = value.float().numpy()
    for array in written.values():
        array.flush()


def _forget(memo: Path, newest: Path) -> None:
    others = sorted((p for p in memo.iterdir() if p.is_dir() and p.name[0] != "." and p != newest),
                    key=lambda p: p.stat().st_mtime, reverse=True)  # fmt: skip
    for old in others[KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
