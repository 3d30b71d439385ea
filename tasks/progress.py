"""A progress bar with rate and time left: it redraws itself on a terminal, and is a line now and then elsewhere."""

import sys

from tqdm import tqdm

__all__ = ["progress"]


def progress(total: int, name: str, unit: str) -> tqdm:
    """A bar to use in a `with` block.

    Args:
        total: how many there are.
        name: what is being done, such as the stage's name.
        unit: of `total`, in the singular.
    """
    # Under DVC or Prefect there is no terminal, and flows print one line of a bar in ten seconds (tasks/repro.py).
    patience = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=name, unit=f" {unit}", mininterval=patience, ascii=" =")
