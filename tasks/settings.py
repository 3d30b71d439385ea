"""Numbers come from params.yaml, addressed as `params.yaml:recommend.backbone`: the form in which commands get them."""

from pathlib import Path

import yaml

__all__ = ["SettingsError", "read"]


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
    value = yaml.safe_load(Path(file).read_text())
    seen = file
    for step in filter(None, key.split(".")):
        if not isinstance(value, dict) or step not in value:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else repr(value)
            raise SettingsError(f"{seen} has no {step!r} (asked for {address}); it has: {there}")
        value, seen = value[step], f"{seen}:{step}" if seen == file else f"{seen}.{step}"
    return value
