"""Fenced blocks of the documentation, and what a reader would type."""

import re
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^        (\S.*)$", re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block, in order."""
    return FENCE.findall(page.read_text())


def commands(page: Path) -> list[str]:
    """Lines to type, without their comments: of ```sh blocks, and of indented ones that begin like a command."""
    typed = [line for kind, text in blocks(page) if kind == "sh" for line in text.splitlines()]
    shown = re.sub(FENCE, "", page.read_text())
    typed += [line for line in INDENTED.findall(shown) if re.match(r"(python|dvc|make|torchrun|prefect) ", line)]
    lines = (line.split("  #")[0].strip() for line in typed)
    return [line for line in lines if line and line[0] != "#"]
