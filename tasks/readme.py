"""The README's tables of methods and data sets, written from the first line of each file."""

import ast
import re
from pathlib import Path

from models import names, summary
from tasks.command import run
from tasks.files import write_text

__all__ = ["fill"]


def fill(text: str, tasks: Path = Path("tasks")) -> str:
    """The README with both tables brought up to date, between their marks.

    Raises:
        ValueError: a mark is missing.
    """
    datasets = sorted((tasks / "datasets").glob("[a-z]*.py"))
    first = {path.stem: ast.get_docstring(ast.parse(path.read_text())).splitlines()[0] for path in datasets}
    tables = {
        "methods": {name: summary("recommend", name) for name in names("recommend")},
        "datasets": first,
    }
    for mark, rows in tables.items():
        lines = "\n".join(f"| `{name}` | {said} |" for name, said in rows.items())
        pattern, table = rf"(<!-- {mark} -->\n).*?(<!-- end -->)", f"| file | what it is |\n|---|---|\n{lines}\n"
        text, found = re.subn(pattern, lambda match, table=table: match[1] + table + match[2], text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"the README has {found} places <!-- {mark} --> ... <!-- end -->; it needs one")
    return text


def main(readme: str = "README.md") -> None:
    """python -m tasks.readme [README.md]"""
    write_text(readme, fill(Path(readme).read_text()))


if __name__ == "__main__":
    run(main)
