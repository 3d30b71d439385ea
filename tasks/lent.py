"""Note where a teacher of the table `distill.teachers` lies and what it is: DVC takes no list of files from params.

An entry below `distill.several` names its teachers. Its stage reads the notes of them all through
tasks/student_parts.py, which keeps those of its own: another teacher of the table changes nothing.
"""

from pathlib import Path

from tasks.command import run
from tasks.files import digest, write_json

__all__ = ["lent"]


def lent(folder: str | Path, out: str | Path) -> dict:
    """Write {"folder", "content": SHA-256 of the model's files}.

    Raises:
        FileNotFoundError: no model lies there.
    """
    folder = Path(folder)
    if not (folder / "model").is_dir():
        raise FileNotFoundError(f"{folder} has no model; distill.teachers names what trained it as {{from, name}}")
    note = {"folder": str(folder), "content": digest(folder / "model")}
    write_json(out, note)
    return note


def main(folder: str, out: str) -> None:
    """python -m tasks.lent artifacts/finetune/NAME OUT.json"""
    print(f"{folder}: {lent(folder, out)['content'][:12]}")


if __name__ == "__main__":
    run(main)
