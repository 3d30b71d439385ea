"""Which files a method is made of, with their hashes: what its training depends on, and nothing else.

DVC cannot follow imports, so it runs this second-long unit after any edit in the folder; when none of the method's own
files has changed, the list comes out as it was, and nothing after it runs.
"""

from pathlib import Path

from tasks.command import run
from tasks.files import digest, write_json
from tasks.imports import imported

__all__ = ["made_of"]


def made_of(file: str | Path) -> dict[str, str]:
    """A file of `models/` and every file there that it imports: path -> SHA-256.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found, waiting = {}, [Path(file)]
    if not waiting[0].is_file():
        raise FileNotFoundError(f"{file} does not exist; `method` is <kind>/<name>, a file of models/recommend/<kind>/")
    while waiting:
        path = waiting.pop()
        if path.as_posix() in found or not path.is_file():
            continue
        found[path.as_posix()] = digest(path)
        places = [Path(module.replace(".", "/")) for module in imported(path)]
        waiting += [place.with_suffix(".py") for place in places] + [place / "__init__.py" for place in places]
    return dict(sorted(found.items()))


def main(file: str, out: str) -> None:
    """python -m tasks.made_of models/recommend/retrieval/als.py OUT.json"""
    found = made_of(file)
    write_json(out, found)
    print(f"{file}: made of {len(found)} files, see {out}")


if __name__ == "__main__":
    run(main)
