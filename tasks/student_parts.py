"""Which files a student is made of, with their hashes: what its distillation depends on, and nothing else.

As tasks/parts.py for a pre-training: DVC runs this second-long unit after any edit of models/components, models/distill
or tasks/kinds; when none of an entry's own files has changed, the list comes out as it was, and nothing after it runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.command import run
from tasks.curriculum import read_entry
from tasks.files import digest, read_json, write_json
from tasks.parts import imported, keys_of
from tasks.settings import read
from tasks.teachers import Teacher, noted

__all__ = ["student_parts"]

FOLLOWED = ("models.components", "models.distill", "tasks.kinds", "tasks.processors")
ALWAYS = ("models/components/_model.py", "models/distill/_exact.py", "models/distill/_student.py")
WRITES = ("models/distill/_writing.py",)
INHERITS = ("models/distill/_inheriting.py",)


def student_parts(
    chosen: Mapping,
    part: str,
    name: str,
    recipe: str | Path | None,
    notes: str | Path | None = None,
    root: Path = Path(),
    start: str | Path | None = None,
) -> dict:
    """The files of one entry below `distill`: {"files": path below `root` -> SHA-256, "teachers": their notes}, and
    {"start": {folder: content}} where it begins from a trained model.

    The recipes of the teachers and of that model say which components count, the entry which methods; every file that
    these import does too.

    Args:
        recipe: recipe.json of the teacher; None where there are several.
        notes: of tasks/lent.py, for an entry below `several`.
        start: folder of the model that an entry below `specific` begins from.

    Raises:
        SettingsError, LookupError: there is no such entry, or it cannot be.
    """
    entry = read_entry(chosen, part, name)
    teachers = {}
    if part == "several":
        asked = entry.own["teachers"]
        folders = noted(notes, asked)
        content = [read_json(Path(notes) / f"{each}.json")["content"] for each in asked]
        teachers = dict(zip(map(str, folders), content, strict=True))
    recipes = [Path(folder) / "recipe.json" for folder in teachers] or [Path(recipe)]
    begun = None if start is None else Teacher.open(start)
    told = [read_json(path) for path in recipes]
    told += [{"model": begun.start.recipe, "transformers": begun.start.family}] if begun else []
    words = {key for each in told for key in keys_of(each)} | {str(each.get("transformers")) for each in told}
    words |= {"pretrained", *(str(read_json(path.parent / "run.json").get("kind")) for path in recipes)}
    families = [path for path in sorted((root / "models/components").iterdir()) if path.is_dir() and path.name in words]
    families += [root / "tasks/kinds", root / "tasks/processors"]
    waiting = [path for family in families for word in words if (path := family / f"{word}.py").is_file()]
    waiting += [root / path for path in ALWAYS + WRITES * entry.writes + INHERITS * entry.inherits]
    waiting += _methods(entry.methods, entry.by[0] if entry.by else None, root)
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file():
            found.add(path)
            waiting += imported(path, root, FOLLOWED)
    files = {path.relative_to(root).as_posix(): digest(path) for path in sorted(found)}
    return {"files": files, "teachers": teachers} | ({"start": {str(start): begun.content}} if begun else {})


def _methods(names: Sequence[str], by: str | None, root: Path) -> list[Path]:
    combiner = [root / f"models/distill/teachers/{by}.py"] if by else []
    return [root / f"models/distill/{name}.py" for name in names] + combiner


def main(address: str, part: str, name: str, teacher: str, out: str, start: str | None = None) -> None:
    """python -m tasks.student_parts params.yaml:distill PART NAME TEACHER|NOTES OUT.json [START]"""
    recipe = None if part == "several" else Path(teacher) / "recipe.json"
    found = student_parts(read(address), part, name, recipe, teacher, start=start)
    write_json(out, found)
    print(f"{name}: made of {len(found['files'])} files, see {out}")


if __name__ == "__main__":
    run(main)
