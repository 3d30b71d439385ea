"""Which modules of `models` a file imports: what travels with a served model, and what a training depends on."""

import ast
from pathlib import Path

__all__ = ["imported", "steps"]


def imported(path: Path) -> list[str]:
    """Modules of `models` that a file may import, also inside its functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [*steps(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "models"]


def steps(module: str) -> list[str]:
    """models.recommend.ple -> models, models.recommend, models.recommend.ple."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
