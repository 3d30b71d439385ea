"""Checkpoints that survive a kill at any moment, also during their own writing.

A checkpoint is one safetensors file: tensors by name, everything else as JSON in its header, and a SHA-256 of both.
The two newest are kept; a corrupt newest one is passed over, and said so.
"""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tasks.files import on_disk

__all__ = ["latest", "pack_optimizer", "save_checkpoint", "tensor_digest", "unpack_optimizer"]

KEPT = 2


def save_checkpoint(folder: str | Path, step: int, tensors: dict[str, Tensor], state: dict) -> Path:
    """Write `<folder>/step-<step>.safetensors` whole or not at all, then drop all but the newest two.

    Raises:
        OSError: the disk is full or read-only; older checkpoints are untouched.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps(state, sort_keys=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(tensors, metadata={"state": header, "sha256": _digest(tensors, header)})
    path = folder / f"step-{step:09d}.safetensors"
    fresh = folder / f".{path.name}.{os.getpid()}"
    try:
        with on_disk(path), open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def latest(folder: str | Path) -> tuple[dict[str, Tensor], dict] | None:
    """Tensors and state of the newest sound checkpoint, or None when there is none."""
    for path in _newest_first(Path(folder)):
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                written = file.metadata() or {}
            if written.get("sha256") != _digest(tensors, written.get("state", "")):
                raise ValueError("its contents do not match its hash")
            return tensors, json.loads(written["state"])
        except (SafetensorError, ValueError, OSError) as error:
            print(f"checkpoint {path} is corrupt ({error}); trying the one before", file=sys.stderr)
    return None


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's numbers."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict]:
    """An optimizer's state as named tensors and JSON; `unpack_optimizer` is its inverse."""
    whole = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, slots in whole["state"].items():
        for name, value in slots.items():
            (tensors if isinstance(value, Tensor) else plain)[f"optimizer.{index}.{name}"] = value
    return tensors, {"groups": whole["param_groups"], "plain": plain}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], state: dict) -> None:
    """Put a packed state back into an optimizer over the same parameters."""
    slots: dict[int, dict] = {}
    packed = {name: value for name, value in tensors.items() if name.startswith("optimizer.")}
    for name, value in (packed | state["plain"]).items():
        _, index, slot = name.split(".", 2)
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": state["groups"]})


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", p.stem)), reverse=True)


def _digest(tensors: dict[str, Tensor], header: str) -> str:
    total = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
