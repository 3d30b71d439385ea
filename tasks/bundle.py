"""Pack a backbone, and a head tuned on it, into what is served: weights, encoder, the code they need.

    code/serve.py  code/encoder.py  code/models/...     only the files that the method imports
    bundle/manifest.json                                SHA-256 of every file, names of the outputs
    bundle/backbone/  bundle/head/                      safetensors and JSON

The same weights give the same manifest on every machine: seconds, memory and paths stay outside. Its SHA-256 is the
identity of a registered version (`content_sha256`).
"""

import ast
import hashlib
import shutil
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import polars as pl

from tasks.command import run
from tasks.files import read_json, write_json

__all__ = ["PICKLES", "PoisonedFolder", "columns_of", "content", "load", "pack"]

BACKBONE_KEYS = ("method", "settings", "sizes", "dense", "tasks")
HEAD_KEYS = ("task", "settings", "backbone", "offset")
PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}  # as in serve.py, which must stand alone


class PoisonedFolder(ValueError):
    """An artefact folder holds a file that can run code when read."""


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
    if head:
        (bundle / "head").mkdir()
        shutil.copyfile(head / "head.safetensors", bundle / "head/head.safetensors")
        task = read_json(head / "head.json")
        write_json(bundle / "head/head.json", {key: task[key] for key in HEAD_KEYS})
    for source, target in _code(about["method"]).items():
        (out / "code" / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / "code" / target)
    manifest = {
        "files": _hashes(bundle),
        "code": _hashes(out / "code"),
        "outputs": ["probability"] if head else about["tasks"],
    }
    write_json(bundle / "manifest.json", manifest)
    return sha256(bundle / "manifest.json")


def content(backbone: Path, head: Path | None = None) -> str:
    """The SHA-256 that `pack` returns, without keeping the folder."""
    with TemporaryDirectory() as folder:
        return pack(backbone, head, Path(folder))


def load(out: Path):
    """The packed model in this process, through the code that serves it: an object with `score`, `frame`, `predict`.

    Raises:
        ValueError: its files are not those of its manifest.
    """
    # In a registered version encoder.py lies at the top of the code path; here it is a module of `tasks`.
    sys.modules.setdefault("encoder", import_module("tasks.encoder"))
    model = import_module("tasks.serve").Recommender()
    model.load_context(SimpleNamespace(artifacts={"bundle": str(out / "bundle")}))
    return model


def columns_of(features: Path) -> dict[str, tuple[pl.DataType, bool]]:
    """Raw feature columns -> (widest type of the kind, whether some row lacks a value): what the signature says."""
    manifest = read_json(features / "manifest.json")
    names = [*manifest["categorical"], *manifest["numerical"]]
    rows = pl.scan_parquet([features / "rows" / f"{split}.parquet" for split in ("train", "val", "test")])
    schema = rows.collect_schema()
    nulls = rows.select(pl.col(names).null_count()).collect().row(0, named=True)
    wide = lambda kind: pl.Int64() if kind.is_integer() else pl.Float64() if kind.is_float() else kind
    return {name: (wide(schema[name]), nulls[name] > 0) for name in names}


def _code(method: str) -> dict[Path, str]:
    """Files to ship -> place in the code folder; imports are followed, so an edit elsewhere makes no new version."""
    root, found = Path(__file__).parent.parent, {}
    waiting = ["models", "models.recommend", f"models.recommend.{method}"]
    while waiting:
        module = waiting.pop()
        base = root / module.replace(".", "/")
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if path in found or not path.is_file():  # `from models.x import name`: the name may be no file
            continue
        found[path] = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.split(".")[0] == "models"]
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "models":
                steps = node.module.split(".")
                waiting += [".".join(steps[: i + 1]) for i in range(len(steps))]
                waiting += [f"{node.module}.{alias.name}" for alias in node.names]
    return found | {root / "tasks/serve.py": "serve.py", root / "tasks/encoder.py": "encoder.py"}


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
