"""config.json and model.safetensors: reading and writing the files of a transformers checkpoint, never pickles."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["CheckpointRejected", "read_config", "read_tensors", "write"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class CheckpointRejected(ValueError):
    """A folder is no checkpoint that can be converted without guessing; nothing was loaded or written."""


def read_config(folder: str | Path) -> dict:
    """The config.json of a folder.

    Raises:
        CheckpointRejected: it is absent, or no JSON object.
    """
    return _object(Path(folder) / CONFIG)


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that model.safetensors.index.json names, in their own types.

    Raises:
        CheckpointRejected: no such file, pickled weights only, a damaged file, or shards that do not hold what the
            index says.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return _load(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _sharded(folder, _object(folder / INDEX).get("weight_map", {}))
    pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
    if pickled:
        raise CheckpointRejected(
            f"{folder} holds pickled weights only ({', '.join(pickled[:3])}), and unpickling runs whatever code they "
            f"carry; have the sender save them with save_pretrained(...), which writes {WEIGHTS}"
        )
    raise CheckpointRejected(f"{folder} has neither {WEIGHTS} nor {INDEX}; is it the folder of a checkpoint?")


def write(folder: str | Path, config: Mapping, tensors: Mapping[str, Tensor]) -> None:
    """Write both files, each whole or not at all, the weights first."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        alone = memory.data_ptr() not in seen and memory.nbytes() == tensor.nbytes
        apart[name] = tensor if alone else tensor.clone()  # safetensors refuses tensors that share memory
        seen.add(memory.data_ptr())
    fresh = {name: folder / f".{name}.{os.getpid()}" for name in (WEIGHTS, CONFIG)}
    try:
        save_file(apart, fresh[WEIGHTS], metadata={"format": "pt"})  # from_pretrained insists on "pt"
        fresh[CONFIG].write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for name, file in fresh.items():
            os.replace(file, folder / name)
    finally:
        for file in fresh.values():
            file.unlink(missing_ok=True)


def _sharded(folder: Path, places: Mapping[str, str]) -> dict[str, Tensor]:
    outside = sorted({shard for shard in places.values() if Path(shard).name != shard})
    if outside or not places:
        raise CheckpointRejected(
            f"{folder / INDEX} names {'files outside its folder: ' + outside[0] if outside else 'no tensor'}"
        )
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        tensors |= _load(folder / shard)
    if wrong := sorted(set(places) ^ set(tensors)):
        raise CheckpointRejected(
            f"{folder}: {len(wrong)} tensors are in the index or in the shards, but not in both: "
            f"{', '.join(wrong[:5])}; fetch the checkpoint again"
        )
    return tensors


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointRejected(f"{file} cannot be read ({error}); fetch the checkpoint again") from None


def _object(file: Path) -> dict:
    try:
        value = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointRejected(f"{file} is not there; is its folder that of a checkpoint?") from None
    except ValueError as error:
        raise CheckpointRejected(f"{file} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointRejected(f"{file} holds {type(value).__name__}, not an object")
    return value
