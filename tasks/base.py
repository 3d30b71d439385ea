"""Where the causal language models lie that stages begin from; those from outside are noted and read in place.

    python -m tasks.base params.yaml:language.bases.NAME artifacts/base/NAME

The stage always runs. Weights are hashed when a file's size or time of change is another than noted; so a base of many
gigabytes costs a moment, and one that was exchanged makes everything stale that began from it.
"""

from collections.abc import Mapping
from pathlib import Path

from tasks import flavor
from tasks.command import run
from tasks.files import read_if_there, read_json, write_json
from tasks.settings import SettingsError, read

__all__ = ["BaseChanged", "base", "load_causal", "load_tokenizer", "model_of"]

WRITERS = ("ForCausalLM", "LMHeadModel")  # how their classes' names end


class BaseChanged(ValueError):
    """A model from outside is not what was noted."""


def base(folder: str | Path, out: str | Path) -> dict:
    """Write `out`/base.json: {"folder", "content": SHA-256 of its files, "class", "files": {name: [bytes, ns]}}.

    Raises:
        FileNotFoundError: there is no such folder.
        PoisonedFolder: it could run code when read.
        SettingsError: it holds no model of transformers that writes text.
    """
    folder, note = Path(folder), Path(out) / "base.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; language.bases.{Path(out).name} is the folder of a model in "
                                f"transformers' layout")  # fmt: skip
    name, files = _writer(folder), _files(folder)
    known = read_if_there(note)
    same = known.get("folder") == str(folder) and known.get("files") == files
    made = {"folder": str(folder), "class": name, "files": files,
            "content": known["content"] if same else flavor.content(folder)}  # fmt: skip
    if not same:
        write_json(note, made)
    return made


def model_of(folder: str | Path) -> Path:
    """The folder of a causal language model: a stage's model/, the place that its base.json notes, or itself.

    Raises:
        FileNotFoundError: there is none.
        BaseChanged: the base's files are not those that were noted.
        PoisonedFolder: it could run code when read.
        SettingsError, ValueError, OSError: it holds no model of transformers that writes text.
    """
    place = _place(Path(folder))
    _writer(place)
    return place


def load_causal(folder: str | Path, dtype: str = "float32"):
    """The model of such a folder, an `nn.Module` of transformers; nothing in the folder is run or unpickled.

    Args:
        dtype: whatever it was saved in; "auto" leaves it.

    Raises:
        as `model_of`.
    """
    from transformers import AutoModelForCausalLM
    from transformers import logging as verbosity

    verbosity.set_verbosity_error()
    verbosity.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        model_of(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )


def load_tokenizer(folder: str | Path):
    """The tokenizer in a folder of transformers' layout; nothing in it is run."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _place(folder: Path) -> Path:
    if (folder / "model").is_dir():
        return folder / "model"
    if not (folder / "base.json").is_file():
        if folder.is_dir() and any(folder.iterdir()):
            return folder
        what = "holds no model" if folder.is_dir() else "is no folder"
        raise FileNotFoundError(f"{folder} {what}, and neither model/ nor base.json are in it; give a folder in "
                                f"transformers' layout, or run the stage that makes it")  # fmt: skip
    note = read_json(folder / "base.json")
    if not Path(note["folder"]).is_dir() or _files(Path(note["folder"])) != note["files"]:
        raise BaseChanged(f"{note['folder']} is not what {folder}/base.json notes; run `dvc repro base@{folder.name}`")
    return Path(note["folder"])


def _writer(folder: Path) -> str:
    """The class of a model that writes text and may be loaded."""
    config = flavor.check_folder(folder)
    if not config:
        raise SettingsError(f"{folder} is a recipe of ours that transformers has no class for; a causal language model "
                            f"of transformers is needed (recipes gpt2, llama, bloom)")  # fmt: skip
    if not (name := config["architectures"][0]).endswith(WRITERS):
        raise SettingsError(f"{folder} holds {name}, which writes no text; give a causal language model")
    return name


def _files(folder: Path) -> Mapping[str, list[int]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns] for path in found}


def main(address: str, out: str) -> None:
    """python -m tasks.base params.yaml:language.bases.NAME OUT"""
    made = base(read(address), out)
    print(f"{made['folder']}: {made['class']}, content {made['content'][:12]}")


if __name__ == "__main__":
    run(main)
