"""The README's tables, written from the first line of each file: methods, data sets, parts of language models."""

import ast
import re
from pathlib import Path

from tasks.command import run
from tasks.files import write_text

__all__ = ["fill"]

FOLDERS = {  # mark in the README -> the files of its table, below the repository
    "methods": "models/recommend/*.py",
    "datasets": "tasks/datasets/*.py",
    "retrieval": "models/recommend/retrieval/*.py",
    "session": "models/recommend/session/*.py",
    "towers": "models/recommend/towers/*.py",
    "ctr": "models/recommend/ctr/*.py",
    "rerank": "models/recommend/rerank/*.py",
    "bandit": "models/recommend/bandit/*.py",
    "embedding": "models/components/embedding/*.py",
    "encoder": "models/components/encoder/*.py",
    "decoder": "models/components/decoder/*.py",
    "target": "models/components/target/*.py",
    "recipes": "models/components/recipes/*.yaml",
    "writing": "models/language/*.py",
    "processors": "tasks/processors/*.py",
    "kinds": "tasks/kinds/*.py",
    "distill": "models/distill/*.py",
    "teachers": "models/distill/teachers/*.py",
    "distill_tasks": "models/distill/tasks/*.py",
    "distill_texts": "models/distill/texts/*.py",
    "writers": "tasks/writers/*.py",
}
SCHEDULES = "models/schedules.py"  # one file, a function each


def fill(text: str, root: Path = Path()) -> str:
    """The README with all tables brought up to date, between their marks.

    Args:
        text: of the README.
        root: the repository.

    Raises:
        ValueError: a mark is missing.
    """
    tables = {mark: {path.stem: _first(path) for path in sorted(root.glob(pattern)) if path.name[0] != "_"}
              for mark, pattern in FOLDERS.items()}  # fmt: skip
    tables["schedules"] = _schedules(root / SCHEDULES)
    for mark, rows in tables.items():
        head = "schedule" if mark == "schedules" else "file"
        lines = "\n".join(f"| `{name}` | {said} |" for name, said in rows.items())
        pattern, table = rf"(<!-- {mark} -->\n).*?(<!-- end -->)", f"| {head} | what it is |\n|---|---|\n{lines}\n"
        text, found = re.subn(pattern, lambda match, table=table: match[1] + table + match[2], text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"the README has {found} places <!-- {mark} --> ... <!-- end -->; it needs one")
    return text


def _first(path: Path) -> str:
    """The first line of a module's docstring, or of a YAML file's comment."""
    if path.suffix == ".yaml":
        return path.read_text().splitlines()[0].removeprefix("#").strip()
    return ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]


def _schedules(path: Path) -> dict[str, str]:
    """The functions of the mapping SCHEDULES, by their docstrings."""
    tree = ast.parse(path.read_text())
    said = {node.name: ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    listed = next(node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == "SCHEDULES")
    names = {node.id for node in ast.walk(listed) if isinstance(node, ast.Name)} & set(said)
    return {name: said[name].splitlines()[0] for name in sorted(names)}


def main(readme: str = "README.md") -> None:
    """python -m tasks.readme [README.md]"""
    write_text(readme, fill(Path(readme).read_text(), Path(readme).resolve().parent))


if __name__ == "__main__":
    run(main)
