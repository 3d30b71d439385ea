"""A progress bar with rate and time left: it redraws itself on a terminal, and is a line now and then elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

__all__ = ["counted", "progress"]

T = TypeVar("T")


def progress(total: int | None, name: str, unit: str) -> tqdm:
    """A bar to use in a `with` block.

    Args:
        total: how many there are; None when that is not known, and neither is the time left.
        name: what is being done, such as the stage's name.
        unit: of `total`, in the singular.
    """
    # Under DVC or Prefect there is no terminal, and flows print one line of a bar in ten seconds (tasks/repro.py).
    patience = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=name, unit=f" {unit}", mininterval=patience, ascii=" =")


def counted(items: Iterable[T], name: str, unit: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar that counts those that are done; see `progress`.

    Args:
        total: how many there are; None for their length.
    """
    with progress(len(items) if total is None else total, name, unit) as bar:
        for item in items:
            yield item
            bar.update()
