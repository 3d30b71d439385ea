"""What params.yaml puts into the commands of dvc.yaml must be plain words: DVC hands a command to the shell.

    python -m tasks.plain_words dvc.yaml params.yaml

A task called `x; rm -rf ~` would otherwise be a command of its own, as would a `from:` of that form.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from tasks.command import run
from tasks.settings import SettingsError

__all__ = ["NotPlain", "refuse_others"]

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, and this runs first in every `dvc repro`
PLAIN = re.compile(r"[\w.@+,:=/][\w.@+,:=/-]*")
TOLD = re.compile(r"\$\{([\w.]+)\}")
SHOWN = 5


class NotPlain(SettingsError):
    """A name or a path of params.yaml is more than letters, digits and . _ - / @ + , : ="""


def refuse_others(graph: str | Path = "dvc.yaml", params: str | Path = "params.yaml") -> int:
    """Check every name and value of params.yaml that a command of the graph contains: how many there are.

    Raises:
        NotPlain: names them, before any command runs.
        SettingsError: a file is not plain YAML.
    """
    stages, settings = _mapping(graph).get("stages") or {}, _mapping(params)
    said = {(place, str(value)) for stage in stages.values() for place, value in _said(stage, settings)}
    odd = sorted((place, value) for place, value in said if not PLAIN.fullmatch(value) or ".." in value.split("/"))
    if odd:
        shown = "".join(f"\n  {params}:{place}: {value!r}" for place, value in odd[:SHOWN])
        more = f"\n  and {len(odd) - SHOWN} more" if odd[SHOWN:] else ""
        raise NotPlain(
            f"{len(odd)} names or values would be run by the shell, since they stand in commands of {graph}; nothing "
            f"was started. Write letters, digits and . _ - / @ + , : = only:{shown}{more}"
        )
    return len(said)


def _said(stage: Mapping, settings: Mapping) -> Iterator[tuple[str, object]]:
    """(place in params.yaml, value) of each ${...} of a stage's command."""
    commands = stage.get("do", stage).get("cmd", "")
    told = set(TOLD.findall(commands if isinstance(commands, str) else "\n".join(commands)))
    places = TOLD.fullmatch(str(stage.get("foreach", "")))
    rows = _at(settings, places[1]) if places else stage.get("foreach", {})
    for number, row in enumerate(rows or {}):
        key, item = (row, rows[row]) if isinstance(rows, Mapping) else (number, row)
        place = f"{places[1] if places else 'foreach'}.{key}"
        if "key" in told:
            yield place, key
        for path in (path for path in told if path.split(".")[0] == "item"):
            value = item if path == "item" else _at(item, path.removeprefix("item."))
            yield from _plain(f"{place}{path.removeprefix('item')}", value)
    for path in (path for path in told if path.split(".")[0] not in ("key", "item")):
        yield from _plain(path, _at(settings, path))


def _plain(place: str, value) -> Iterator[tuple[str, object]]:
    """DVC writes a mapping as flags and quotes it; an absent value it refuses itself."""
    if value is not None and not isinstance(value, (Mapping, list)):
        yield place, value


def _at(value, path: str):
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _mapping(file: str | Path) -> Mapping:
    try:
        return yaml.load(Path(file).read_text(), LOADER) or {}
    except FileNotFoundError:
        return {}  # DVC says so itself, and nothing of it runs
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is not plain YAML: {' '.join(str(error).split())}") from None


def main(graph: str = "dvc.yaml", params: str = "params.yaml") -> None:
    """python -m tasks.plain_words [dvc.yaml [params.yaml]]"""
    print(f"{params}: {refuse_others(graph, params)} names and values stand in commands, all of them plain")


if __name__ == "__main__":
    run(main)
