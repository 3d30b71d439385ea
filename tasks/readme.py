"""The tables of README.md and docs/, written from the first line of each file: methods, data sets, parts of models."""

import ast
import re
from collections import Counter
from pathlib import Path

from tasks.command import run
from tasks.files import write_text

__all__ = ["fill", "pages", "refuse_lost_tables"]

FOLDERS = {  # mark on a page -> the files of its table, below the repository
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
MARK = re.compile(r"(<!-- (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def pages(root: Path = Path()) -> list[Path]:
    """The pages that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def fill(text: str, root: Path = Path()) -> str:
    """A page with its tables brought up to date, between their marks.

    Args:
        text: of the page.
        root: the repository.

    Raises:
        ValueError: a mark that names no table.
    """

    def filled(match: re.Match) -> str:
        if match[2] not in FOLDERS and match[2] != "schedules":
            raise ValueError(f"no table is called {match[2]!r}; there are: {', '.join(FOLDERS)}, schedules")
        return match[1] + _table(match[2], root) + match[4]

    return MARK.sub(filled, text)


def refuse_lost_tables(texts: list[str]) -> None:
    """Every table stands on exactly one page.

    Raises:
        ValueError: names those that do not.
    """
    found = Counter(match[2] for text in texts for match in MARK.finditer(text))
    if wrong := [f"{mark} on {found[mark]}" for mark in (*FOLDERS, "schedules") if found[mark] != 1]:
        raise ValueError(f"each table stands on one page as <!-- name --> ... <!-- end -->, but {', '.join(wrong)}")


def _table(mark: str, root: Path) -> str:
    if mark == "schedules":
        head, rows = "schedule", _schedules(root / SCHEDULES)
    else:
        files = (path for path in sorted(root.glob(FOLDERS[mark])) if path.name[0] != "_")
        head, rows = "file", {path.stem: _first(path) for path in files}
    return f"| {head} | what it is |\n|---|---|\n" + "".join(f"| `{name}` | {said} |\n" for name, said in rows.items())


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


def main() -> None:
    """python -m tasks.readme"""
    texts = {page: fill(page.read_text()) for page in pages()}
    refuse_lost_tables(list(texts.values()))
    for page, text in texts.items():
        write_text(page, text)


if __name__ == "__main__":
    run(main)
