"""Note where a language model from outside lies, and what it is: it is read in place, never copied.

    python -m tasks.base params.yaml:language.bases.NAME artifacts/base/NAME

The stage always runs. Weights are hashed when a file's size or time of change is another than noted; so a base of many
gigabytes costs a moment, and one that was exchanged makes everything stale that began from it.
"""

from collections.abc import Mapping
from pathlib import Path

from tasks import flavor
from tasks.command import run
from tasks.files import read_if_there, read_json, write_json
from tasks.settings import read

__all__ = ["BaseChanged", "base", "model_of"]


class BaseChanged(ValueError):
    """A model from outside is not what was noted."""


def base(folder: str | Path, out: str | Path) -> dict:
    """Write `out`/base.json: {"folder", "content": SHA-256 of its files, "class", "files": {name: [bytes, ns]}}.

    Raises:
        FileNotFoundError: there is no such folder.
        PoisonedFolder: it could run code when read.
        ValueError: it holds no model of transformers that writes text.
    """
    folder, note = Path(folder), Path(out) / "base.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; language.bases.{Path(out).name} is the folder of a model in "
                                f"transformers' layout")  # fmt: skip
    config = flavor.check_folder(folder)
    name = config.get("architectures", ["a recipe of ours"])[0]
    if not name.endswith(("ForCausalLM", "LMHeadModel")):
        raise ValueError(f"{folder} holds {name}, which writes no text; a base is a causal language model")
    files = _files(folder)
    known = read_if_there(note)
    same = known.get("folder") == str(folder) and known.get("files") == files
    made = {"folder": str(folder), "class": name, "files": files,
            "content": known["content"] if same else flavor.content(folder)}  # fmt: skip
    if not same:
        write_json(note, made)
    return made


def model_of(folder: str | Path) -> Path:
    """The model's folder of a stage's output: its model/, or the place that a base.json points to.

    Raises:
        FileNotFoundError: neither is there.
        BaseChanged: the base's files are not those that were noted.
    """
    folder = Path(folder)
    if (folder / "model").is_dir():
        return folder / "model"
    if not (folder / "base.json").is_file():
        if (folder / "config.json").is_file():
            return folder
        raise FileNotFoundError(f"{folder} holds no model: neither model/ nor base.json; run the stage that makes it")
    note = read_json(folder / "base.json")
    if not Path(note["folder"]).is_dir() or _files(Path(note["folder"])) != note["files"]:
        raise BaseChanged(f"{note['folder']} is not what {folder}/base.json notes; run `dvc repro base@{folder.name}`")
    return Path(note["folder"])


def _files(folder: Path) -> Mapping[str, list[int]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns] for path in found}


def main(address: str, out: str) -> None:
    """python -m tasks.base params.yaml:language.bases.NAME OUT"""
    made = base(read(address), out)
    print(f"{made['folder']}: {made['class']}, content {made['content'][:12]}")


if __name__ == "__main__":
    run(main)
