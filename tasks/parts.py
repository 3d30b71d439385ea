"""Which files a recipe's model is made of, with their hashes: what a pre-training depends on, and nothing else.

DVC cannot read a recipe, so it runs this second-long unit after any edit in models/components or tasks/processors; when
none of the recipe's own files has changed, the list comes out as it was, and nothing after it runs.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from tasks.command import run
from tasks.files import digest, write_json
from tasks.settings import SettingsError, read

__all__ = ["imported", "keys_of", "parts"]

FOLLOWED = ("models.components", "tasks.processors")  # imports from here count; DVC lists the engine's files itself


def parts(entry: Mapping, name: str, root: Path = Path()) -> dict[str, str]:
    """The files of one pre-training: path below `root` -> SHA-256.

    Every key of the recipe that is the name of a part counts with the file of that name, and every file that it
    imports; the entry's own keys count too, because they may exchange parts.

    Args:
        entry: one entry of `language.pretrain`.
        name: its key: the recipe, unless the entry names one.

    Raises:
        SettingsError: there is no such recipe; names those there are.
    """
    folder = root / "models/components"
    recipe = folder / "recipes" / f"{entry.get('recipe', name)}.yaml"
    if not recipe.is_file():
        known = ", ".join(sorted(path.stem for path in recipe.parent.glob("*.yaml")))
        raise SettingsError(f"language.pretrain.{name}: there is no recipe {recipe.stem!r}; there are {known}. A key "
                            f"of your own needs `recipe: <one of them>`")  # fmt: skip
    content = yaml.safe_load(recipe.read_text())
    words = set(keys_of(content)) | set(keys_of(entry)) | {str(content.get("transformers"))}
    words.add("pretrained")
    families = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name in words]
    families.append(root / "tasks/processors")
    waiting = [path for family in families for word in words if (path := family / f"{word}.py").is_file()]
    waiting += [folder / "_model.py"]
    found = {recipe}
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file():
            found.add(path)
            waiting += imported(path, root)
    return {path.relative_to(root).as_posix(): digest(path) for path in sorted(found)}


def keys_of(value) -> Iterator[str]:
    """Every key, at any depth."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield str(key)
            yield from keys_of(below)


def imported(path: Path, root: Path, followed: tuple[str, ...] = FOLLOWED) -> list[Path]:
    """The files that a file imports; `from a import b` may mean a/b.py or the name b of a.py."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    places = [root / module.replace(".", "/") for module in modules if module.startswith(followed)]
    return [place.with_suffix(".py") for place in places] + [place / "__init__.py" for place in places]


def main(address: str, name: str, out: str) -> None:
    """python -m tasks.parts params.yaml:language.pretrain NAME OUT.json"""
    found = parts(read(address)[name] or {}, name)
    write_json(out, found)
    print(f"{name}: made of {len(found)} files, see {out}")


if __name__ == "__main__":
    run(main)
