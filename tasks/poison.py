"""Files that can run code when read: their endings, their first bytes, and the error of whoever finds one."""

import re
from collections.abc import Iterator
from pathlib import Path

from tasks.bundled import PICKLES
from tasks.files import read_json

__all__ = ["PICKLES", "PoisonedFolder", "refuse_poison"]

CODE = {".dll", ".dylib", ".egg", ".py", ".pyc", ".pyd", ".so", ".whl", ".zip"}
# More containers of pickles or of layers given as code. A .npy is judged by its header.
CONTAINERS = {".cloudpickle", ".dill", ".h5", ".hdf5", ".keras", ".mar", ".npz", ".pt2", ".skops"}
STARTS = {
    **{bytes([0x80, protocol]): "a pickle" for protocol in range(2, 6)},
    b"PK\x03\x04": "a zip archive, as torch.save writes",
    b"\x7fELF": "a compiled library",
}
REMOTE = ("auto_map", "custom_generate", "custom_pipelines")  # entries that name Python files to be run
# How a chat template leaves what templates may do; transformers' sandbox refuses it too, but only when it renders.
ESCAPE = re.compile(r"""\.\s*__\w|\[\s*(\\?["'])__|\|\s*attr\b""")
KERNELS = ("_attn_implementation", "attn_implementation", "experts_implementation")  # a/b is code of a hub


class PoisonedFolder(ValueError):
    """An artefact folder holds a file that can run code when read."""


def refuse_poison(folder: Path) -> None:
    """Look through a model's folder before any library reads it.

    Weights are safetensors, tokenizers and settings are JSON or text, sentencepiece models are protobuf; nothing else
    belongs there. What a file is named says little, so its first bytes are read too, except those of .safetensors: they
    are a length, and the only reader of that ending takes nothing else.

    Raises:
        PoisonedFolder: a pickle, Python or compiled code, settings that name such, a chat template that leaves its
            sandbox, an index of weights that leads out of the folder or to anything but safetensors; names them.
    """
    found = [f"{path.relative_to(folder)} {fault}" for path in sorted(folder.rglob("*")) if path.is_file()
             for fault in _faults(path)]  # fmt: skip
    if found:
        shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if found[5:] else "")
        raise PoisonedFolder(
            f"{folder}: {shown}. Such a file can run code when read, and was not made by this repository; nothing was "
            f"read. Delete it and run `dvc repro`, or ask the sender for safetensors and a tokenizer without code"
        )


def _faults(path: Path) -> Iterator[str]:
    suffix = path.suffix.lower()
    if suffix in PICKLES | CONTAINERS:
        yield "is a pickle"
    elif suffix in CODE:
        yield "is code"
    elif suffix != ".safetensors":
        yield from _begins(path)
    if suffix == ".jinja" and ESCAPE.search(path.read_text(errors="replace")):
        yield "is a template that reaches for Python's own attributes"
    elif path.name.endswith(".index.json"):
        yield from _leads_out(path)
    elif path.name.endswith("config.json"):
        yield from _names_code(path)


def _begins(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        start = file.read(4)
        yield from (f"is {kind} by its first bytes" for known, kind in STARTS.items() if start.startswith(known))
        if start == b"\x93NUM" and b"|O" in file.read(300):
            yield "is an array of pickled objects"


def _leads_out(path: Path) -> Iterator[str]:
    index = read_json(path)
    places = index.get("weight_map", {}) if isinstance(index, dict) else {}
    odd = [name for name in map(str, places.values()) if Path(name).name != name or not name.endswith(".safetensors")]
    if odd:
        yield f"leads to {odd[0]!r}, which is no safetensors of this folder"


def _names_code(path: Path) -> Iterator[str]:
    if path.name == "adapter_config.json":
        yield "makes transformers take the model from the place that it names; merge the adapter first"
    yield from sorted({fault for key, value in _entries(read_json(path)) if (fault := _fault(key, value))})


def _fault(key: str, value) -> str | None:
    if key in ("chat_template", "template") and isinstance(value, str) and ESCAPE.search(value):
        return "holds a chat template that reaches for Python's own attributes"
    if key in REMOTE and value:
        return f"names code of its own ({key}), which is never run"
    if key in KERNELS and any("/" in str(each) for each in (value.values() if isinstance(value, dict) else [value])):
        return f"names a kernel of a hub ({key}: {value}), which is code"
    return None


def _entries(value) -> Iterator[tuple[str, object]]:
    """All (key, value) of nested JSON."""
    parts = (
        value.items() if isinstance(value, dict) else [("", item) for item in value] if isinstance(value, list) else []
    )
    for key, part in parts:
        yield key, part
        yield from _entries(part)
