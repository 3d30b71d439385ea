"""build("recommend", "mpt_rec", ...) builds the class that models/recommend/mpt_rec.py exports.

The file name is the registry and the signature is the settings: a new method is a new file, no table is edited.
"""

from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pkgutil import iter_modules

__all__ = ["WrongSetting", "build", "method", "names", "summary"]

NUMBERS = (int, float, int | None, float | None)


class WrongSetting(TypeError, ValueError):
    """A setting that the method does not have, or one that is no number where it should be: its user can mend it."""


def names(family: str) -> list[str]:
    """All methods of a family, read from the folder; a leading underscore marks a helper."""
    folder = import_module(f"models.{family}").__path__
    return sorted(m.name for m in iter_modules(folder) if m.name[0] != "_" and not m.ispkg)


def method(family: str, name: str) -> type:
    """The class that models/<family>/<name>.py exports first.

    Raises:
        LookupError: no such file; names the closest ones.
    """
    if name not in (known := names(family)):
        close = ", ".join(get_close_matches(name, known) or known)
        raise LookupError(f"models/{family} has no {name!r}; closest: {close}. A new one is a new file there.")
    module = import_module(f"models.{family}.{name}")
    return getattr(module, module.__all__[0])


def build(family: str, name: str, *parts, **settings):
    """Build a method from the parts it connects and its settings in params.yaml.

    Raises:
        LookupError: no such method.
        WrongSetting: a setting that the method's signature does not have; names those it accepts. A text for a number.
    """
    built = method(family, name)
    known = signature(built).parameters
    try:
        signature(built).bind(*parts, **settings)
    except TypeError as error:
        accepted = ", ".join(list(known)[len(parts) :]) or "no settings"
        raise WrongSetting(f"{family}.{name}: {error}; it accepts: {accepted}") from None
    for setting, value in settings.items():
        if isinstance(value, str) and setting in known and known[setting].annotation in NUMBERS:
            raise WrongSetting(f"{family}.{name}: {setting} is a number, got the text {value!r}; YAML reads 1e-3 as a "
                               f"text, so write 1.0e-3")  # fmt: skip
    return built(*parts, **settings)


def summary(family: str, name: str) -> str:
    """First line of a method's module docstring: its row in the README."""
    return import_module(f"models.{family}.{name}").__doc__.strip().splitlines()[0]
