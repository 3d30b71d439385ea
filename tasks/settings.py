"""Numbers come from params.yaml, addressed as `params.yaml:recommend.backbone`: the form in which commands get them."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TypeVar

import yaml

__all__ = ["SettingsError", "check_names", "fill", "read"]

Settings = TypeVar("Settings")


class SettingsError(ValueError):
    """A setting is missing or has a form that cannot work."""


def read(address: str):
    """The value at `file:dotted.key`, or the whole file when no key is given.

    Raises:
        SettingsError: the file, or a step of the key, is not there; names the keys that are.
    """
    file, _, key = address.partition(":")
    if not Path(file).is_file():
        raise SettingsError(f"{file} does not exist here; settings are read from the repository root")
    try:
        value = yaml.safe_load(Path(file).read_text())
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is not plain YAML: {' '.join(str(error).split())}") from None
    seen = file
    for step in filter(None, key.split(".")):
        if not isinstance(value, dict) or step not in value:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else repr(value)
            raise SettingsError(f"{seen} has no {step!r} (asked for {address}); it has: {there}")
        value, seen = value[step], f"{seen}:{step}" if seen == file else f"{seen}.{step}"
    return value


def fill(kind: type[Settings], given: Mapping, what: str) -> Settings:
    """A dataclass of settings from an entry of params.yaml; what the entry does not say keeps its default.

    Args:
        what: the entry is, for the error.

    Raises:
        SettingsError: names that are no settings, with all that are; or what has no default is not said, or null. What
            the class itself refuses.
    """
    check_names(given, [field.name for field in fields(kind)], what)
    needed = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
    if missing := [name for name in needed if given.get(name) is None]:
        raise SettingsError(f"{what} lacks {', '.join(missing)}; it needs {', '.join(needed)}")
    return kind(**given)


def check_names(given: Iterable, known: Iterable[str], what: str) -> None:
    """Refuse names that are no settings.

    Raises:
        SettingsError: with all of them, and all that are.

    >>> check_names({"lr": 0.1, "stepz": 9}, ["lr", "steps"], "training")
    Traceback (most recent call last):
    tasks.settings.SettingsError: training has no setting stepz; it has: lr, steps
    """
    known = list(known)
    if unknown := [str(name) for name in given if name not in known]:
        raise SettingsError(f"{what} has no setting {', '.join(unknown)}; it has: {', '.join(known)}")
