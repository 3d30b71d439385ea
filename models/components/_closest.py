"""Unknown names, and what was probably meant."""

from collections.abc import Collection
from difflib import get_close_matches

__all__ = ["refuse_unknown"]


def refuse_unknown(what: str, key: str, known: Collection[str], error: type[Exception] = LookupError) -> None:
    """Raise an error with the closest of the known keys, unless the key is one of them.

    >>> refuse_unknown("norm", "laier", ["layer", "rms"])
    Traceback (most recent call last):
    LookupError: norm has no 'laier'; closest: layer
    """
    if key not in known:
        close = ", ".join(get_close_matches(str(key), known) or sorted(known))
        raise error(f"{what} has no {key!r}; closest: {close}")
