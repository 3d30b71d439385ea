"""A picture of which classes are taken for which, as PNG bytes: equal inputs give equal bytes."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np

__all__ = ["confusion_picture"]

MOST = 40  # classes; more cannot be read


def confusion_picture(counts: np.ndarray, names: Sequence[str]) -> bytes | None:
    """Shares of each right class (a row) by said class (a column), with the counts; None for more than 40 classes."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    if len(names) > MOST:
        return None
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.2 + 0.42 * len(names)
    figure = Figure(figsize=(side, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = share[row, column] > 0.5
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xlabel="predicted", ylabel="label")
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})  # no version, no date: equal bytes
    return content.getvalue()
