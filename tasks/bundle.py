"""Pack a backbone, and a head tuned on it, into what is served: weights, encoder, the code they need.

    code/serve.py  code/encoder.py  code/models/...     only the files that the method imports; texts.py if it reads
    bundle/manifest.json                                SHA-256 of every file, names of the outputs
    bundle/backbone/  bundle/head/                      safetensors and JSON; backbone/text/ reads listings' words

The same weights give the same manifest on every machine: seconds, memory and paths stay outside. Its SHA-256 is the
identity of a registered version (`content_sha256`).
"""

import hashlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import polars as pl

from tasks.command import run
from tasks.files import read_if_there, read_json, write_json
from tasks.imports import imported, steps
from tasks.poison import PICKLES, PoisonedFolder

__all__ = ["PICKLES", "PoisonedFolder", "columns_of", "content", "finish", "load", "pack"]

BACKBONE_KEYS = ("method", "settings", "sizes", "dense", "tasks")
HEAD_KEYS = ("task", "settings", "backbone", "offset")


def pack(backbone: Path, head: Path | None, out: Path) -> str:
    """Fill the folder `out` with `bundle/` and `code/`.

    Returns:
        The content's SHA-256: equal for equal weights, encoder, settings and code.

    Raises:
        PoisonedFolder: an artefact folder holds a pickle; names it.
        ValueError, OSError: an artefact is missing or unreadable.
    """
    for folder in filter(None, (backbone, head)):
        if found := sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in PICKLES):
            raise PoisonedFolder(f"{', '.join(found)} can run code when read and was not made by this repository; "
                                 f"nothing was read from {folder}. Delete it and run `dvc repro`")  # fmt: skip
    about, bundle = read_json(backbone / "backbone.json"), out / "bundle"
    (bundle / "backbone").mkdir(parents=True)
    shutil.copyfile(backbone / "model.safetensors", bundle / "backbone/model.safetensors")
    shutil.copyfile(backbone / "encoder.json", bundle / "backbone/encoder.json")
    write_json(bundle / "backbone/backbone.json", {key: about[key] for key in BACKBONE_KEYS})
    words = read_if_there(backbone / "text/text.json").get("content") is not None
    if words:
        shutil.copytree(backbone / "text", bundle / "backbone/text")
    if head:
        (bundle / "head").mkdir()
        shutil.copyfile(head / "head.safetensors", bundle / "head/head.safetensors")
        task = read_json(head / "head.json")
        write_json(bundle / "head/head.json", {key: task[key] for key in HEAD_KEYS})
    alone = ["serve.py", "bundled.py", "encoder.py", *(["texts.py"] if words else [])]
    outputs = ["probability"] if head else about["tasks"]
    return finish(out, f"models.recommend.{about['method'].replace('/', '.')}", {name: name for name in alone}, outputs)


def finish(out: Path, module: str, alone: Mapping[str, str], outputs: Sequence[str]) -> str:
    """Add the code and the manifest to `out`/bundle, and return the content's SHA-256.

    Args:
        module: the method's, such as models.recommend.mpt_rec; what it imports of `models` comes along.
        alone: files of tasks/ -> their names at the top of the code path.
        outputs: names of the answer's columns.
    """
    for source, target in _code(module, alone).items():
        (out / "code" / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / "code" / target)
    manifest = {"files": _hashes(out / "bundle"), "code": _hashes(out / "code"), "outputs": list(outputs)}
    write_json(out / "bundle/manifest.json", manifest)
    return sha256(out / "bundle/manifest.json")


def content(backbone: Path, head: Path | None = None) -> str:
    """The SHA-256 that `pack` returns, without keeping the folder."""
    with TemporaryDirectory() as folder:
        return pack(backbone, head, Path(folder))


def load(out: Path):
    """The packed model in this process, through the code that serves it: an object with `score`, `frame`, `predict`.

    Raises:
        ValueError: its files are not those of its manifest.
    """
    # In a registered version these lie at the top of the code path; here they are modules of `tasks`.
    sys.modules.setdefault("bundled", import_module("tasks.bundled"))
    sys.modules.setdefault("encoder", import_module("tasks.encoder"))
    sys.modules.setdefault("texts", import_module("tasks.texts"))
    model = import_module("tasks.serve").Recommender()
    model.load_context(SimpleNamespace(artifacts={"bundle": str(out / "bundle")}))
    return model


def columns_of(features: Path, backbone: Path) -> dict[str, tuple[pl.DataType, bool]]:
    """Raw feature columns -> (widest type of the kind, whether some row lacks a value): what the signature says."""
    from tasks.texts import past  # and torch with it, which packing does without

    manifest, words = read_json(features / "manifest.json"), read_if_there(backbone / "text/text.json")
    texts = [words.get("columns", []), *past(words.get("columns", []), words.get("history", 0))]
    names = list(dict.fromkeys([*manifest["categorical"], *manifest["numerical"], *chain(*texts)]))
    rows = pl.scan_parquet([features / "rows" / f"{split}.parquet" for split in ("train", "val", "test")])
    schema = rows.collect_schema()
    nulls = rows.select(pl.col(names).null_count()).collect().row(0, named=True)
    wide = lambda kind: pl.Int64() if kind.is_integer() else pl.Float64() if kind.is_float() else kind
    return {name: (wide(schema[name]), nulls[name] > 0) for name in names}


def _code(module: str, alone: Mapping[str, str]) -> dict[Path, str]:
    """Files to ship -> place in the code folder; imports are followed, so an edit elsewhere makes no new version."""
    root, found = Path(__file__).parent.parent, {}
    first = {root / "tasks" / source: target for source, target in alone.items()}
    waiting = [name for path in first for name in imported(path)] + steps(module)
    while waiting:
        module = waiting.pop()
        base = root / module.replace(".", "/")
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if path in found or not path.is_file():  # `from models.x import name`: the name may be no file
            continue
        found[path] = path.relative_to(root).as_posix()
        waiting += imported(path)
    return found | first


def sha256(path: Path) -> str:
    """What `sha256sum` prints, as serve.py and score.py compute it too."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def main(backbone: str, head: str | None = None) -> None:
    """python -m tasks.bundle BACKBONE [HEAD]: print the content's SHA-256"""
    print(content(Path(backbone), Path(head) if head else None))


if __name__ == "__main__":
    run(main)
