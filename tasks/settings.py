"""Numbers come from params.yaml, addressed as `params.yaml:recommend.backbone`: the form in which commands get them."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import yaml

__all__ = ["SettingsError", "fill", "read"]

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
        SettingsError: names that are no settings, with all that are. What the class itself refuses.
    """
    known = [field.name for field in fields(kind)]
    if unknown := sorted(set(given) - set(known)):
        raise SettingsError(f"{what} has no setting {', '.join(unknown)}; it has: {', '.join(known)}")
    return kind(**given)
