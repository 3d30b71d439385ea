"""The reference: a page for every method and one of all commands, written from signatures and docstrings.

    python -m tasks.reference docs/reference

What a page says stands in the code: equations and source in the module's docstring, settings in the class's, defaults
in the signature. Nothing is imported or run.
"""

import ast
import re
import sys
from pathlib import Path
from textwrap import dedent

from tasks.command import run
from tasks.files import new_folder, write_text
from tasks.readme import FOLDERS

__all__ = ["reference"]

FAMILIES = {
    mark: pattern for mark, pattern in FOLDERS.items() if pattern.startswith("models/") and "recipes" not in mark
}
USAGE = re.compile(r"python -m (tasks|flows)\.")


def reference(root: Path, out: Path) -> dict[str, int]:
    """Write the folder `out` whole: a folder for each family of methods, commands.md, index.md.

    Args:
        root: the repository.

    Returns:
        Family -> its methods.
    """
    counts = {}
    with new_folder(out) as folder:
        lines = ["# Reference", "Written by `python -m tasks.reference` from the code; change the docstring there.", ""]
        for pattern in sorted(FAMILIES.values()):
            files = [path for path in sorted(root.glob(pattern)) if path.name[0] != "_"]
            family = Path(pattern).parent.relative_to("models")
            (folder / family).mkdir(parents=True, exist_ok=True)
            lines += [f"## models/{family}", ""]
            for path in files:
                text, said = method_page(path, root)
                write_text(folder / family / f"{path.stem}.md", text)
                lines.append(f"- [{path.stem}]({family.as_posix()}/{path.stem}.md): {said}")
            lines.append("")
            counts[family.as_posix()] = len(files)
        write_text(folder / "commands.md", commands_page(root))
        write_text(folder / "index.md", "\n".join([*lines, "Commands: [commands.md](commands.md)", ""]))
    return counts


def method_page(path: Path, root: Path) -> tuple[str, str]:
    """A method's page, and its first line."""
    tree, where = ast.parse(path.read_text()), path.relative_to(root).as_posix()
    said, *rest = ast.get_docstring(tree).split("\n", 1)
    parts = [f"# {path.stem}", said, _prose(rest[0] if rest else ""), f"File: `{where}`."]
    names = _public(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in names:
            parts += [f"## {node.name}", _signature(node), _prose(ast.get_docstring(node) or "")]
    return "\n\n".join(part for part in parts if part) + "\n", said


def commands_page(root: Path) -> str:
    """Every `python -m tasks.x` and `python -m flows.x` with what its file says first, and how it is called."""
    lines = [
        "# Commands",
        "Run from the repository's root. Most are stages of `dvc.yaml`, which says what they read and write.",
        "",
    ]
    for path in sorted([*root.glob("flows/*.py"), *root.glob("tasks/**/*.py")]):
        text = path.read_text()
        if path.name[0] == "_" or '__name__ == "__main__"' not in text:
            continue
        tree, module = ast.parse(text), ".".join(path.relative_to(root).with_suffix("").parts)
        main = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"), None)
        usage = (main and ast.get_docstring(main) or "").split("\n")[0]
        usage = usage if USAGE.match(usage) else f"python -m {module}"
        lines += [f"- `{usage}`  ", f"  {ast.get_docstring(tree).splitlines()[0]}"]
    return "\n".join(lines) + "\n"


def _public(tree: ast.Module) -> list[str]:
    listed = next(
        (node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"), None
    )
    return ast.literal_eval(listed) if listed is not None else []


def _signature(node: ast.ClassDef | ast.FunctionDef) -> str:
    """As it would be called, a line each; of a dataclass its fields."""
    if isinstance(node, ast.FunctionDef):
        return f"```python\n{node.name}({_arguments(node)})\n```"
    start = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if start is not None:
        return f"```python\n{node.name}({_arguments(start)})\n```"
    fields = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign)]
    return f"```python\n{node.name}({', '.join(fields)})\n```" if fields else ""


def _arguments(node: ast.FunctionDef) -> str:
    given = node.args
    given.args = [one for one in given.args if one.arg != "self"]
    return ast.unparse(given)


def _prose(text: str) -> str:
    """A docstring as Markdown: what is indented as code, the settings as a list."""
    out, code = [], []
    for block in re.split(r"\n\s*\n", dedent(text).strip("\n")):
        lines = block.split("\n")
        if all(line.startswith("    ") for line in lines if line):
            code.append(f"```text\n{dedent(block)}\n```")
            out.append(code[-1])
        elif re.fullmatch(r"\w+:", lines[0]) and len(lines) > 1:
            out.append(f"**{lines[0][:-1]}**\n\n" + _listed(lines[1:]))
        else:
            out.append(block)
    return "\n\n".join(part for part in out if part)


def _listed(lines: list[str]) -> str:
    """`name: what` a row, continued on deeper lines."""
    rows = []
    for line in lines:
        deeper = line.startswith(" " * 8) or (rows and not re.match(r"\s{4}\S", line))
        if deeper and rows:
            rows[-1] += f" {line.strip()}"
        else:
            name, colon, what = line.strip().partition(": ")
            rows.append(f"- `{name}`: {what}" if colon else f"- {line.strip()}")
    return "\n".join(rows)


def main(out: str = "docs/reference") -> None:
    """python -m tasks.reference [docs/reference]"""
    counts = reference(Path(), Path(out))
    print(f"{out}: {sum(counts.values())} methods in {len(counts)} families", file=sys.stdout)


if __name__ == "__main__":
    run(main)
