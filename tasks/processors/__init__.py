"""build("bert", given) builds the processor that tasks/processors/bert.py exports: tokens on disk -> training rows.

A processor has `report` (what it read, packed and left out), `len()` (rows of an epoch) and

    row(place, rng) -> {field: numpy array of one row, or a number}

`place` is one of 0..len - 1 and all chance comes from `rng`, so a row is a function of both. Rows are not padded and
carry no mask: who collates them knows how long each is (tasks/source.py). The file name is the registry and the
signature is the settings, with the paper's values where nothing else is said.
"""

from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pkgutil import iter_modules

from tasks.processors._given import Given

__all__ = ["Given", "build", "method", "names", "settings", "summary"]


def names() -> list[str]:
    """All processors, read from the folder; a leading underscore marks a helper."""
    return sorted(m.name for m in iter_modules(__path__) if m.name[0] != "_")


def method(name: str) -> type:
    """The class that tasks/processors/<name>.py exports first.

    Raises:
        LookupError: no such file; names the closest ones.
    """
    if name not in (known := names()):
        close = ", ".join(get_close_matches(name, known) or known)
        raise LookupError(f"tasks/processors has no {name!r}; closest: {close}. A new one is a new file there.")
    module = import_module(f"tasks.processors.{name}")
    return getattr(module, module.__all__[0])


def settings(name: str, chosen: dict) -> dict:
    """All settings of a processor: its own values, and over them those that were chosen.

    Raises:
        LookupError: no such processor.
        ValueError: a setting that its signature does not have; names those it accepts.
    """
    own = {key: p.default for key, p in list(signature(method(name)).parameters.items())[1:]}
    if unknown := sorted(set(chosen) - set(own)):
        accepted = ", ".join(own) or "no settings"
        near = [close for key in unknown for close in get_close_matches(key, own, n=1)]
        hint = f" (meant: {', '.join(near)}?)" if near else ""
        raise ValueError(f"processor {name} has no setting {', '.join(unknown)}{hint}; it accepts: {accepted}")
    return own | chosen


def build(name: str, given: Given, **chosen):
    """Build a processor from what it works on and its settings in a recipe.

    Raises:
        LookupError: no such processor.
        ValueError: an unknown setting, or data and vocabulary that it cannot work with.
    """
    return method(name)(given, **settings(name, chosen))


def summary(name: str) -> str:
    """First line of a processor's module docstring: its row in the README."""
    return import_module(f"tasks.processors.{name}").__doc__.strip().splitlines()[0]
