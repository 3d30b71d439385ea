"""A run's curve: curve.csv with all that was measured, and a picture of its losses."""

import csv
import math
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from tasks import plots
from tasks.files import write_text

__all__ = ["on_end", "write_curve"]

DRAWN = ("step", "loss", "heldout_loss")


def write_curve(
    folder: Path, rows: Sequence[Mapping[str, float | str | None]], *also: str, picture: str = "curve.png"
) -> None:
    """Write `folder`/curve.csv, with every column that any row has, and `folder`/`picture`.

    Args:
        rows: of one run, or of several on end, each with its step; a row may lack what was not measured then. Of a
            method that takes no steps there is none: the table is its header alone, and there is no picture.
        also: columns that are drawn besides both losses, where the rows have them.
        picture: its path within the folder.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["step", "loss"]
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "curve.csv", text.getvalue())
    if not rows:
        return
    shown = [name for name in (*DRAWN, *also) if name in columns]
    number = lambda value: math.nan if value is None else float(value)
    drawn = plots.curves([{name: number(row.get(name)) for name in shown} for row in rows])
    (folder / picture).parent.mkdir(exist_ok=True)
    (folder / picture).write_bytes(drawn)


def on_end(stages: Mapping[str, Sequence[Mapping[str, float | None]]]) -> list[dict[str, float | str | None]]:
    """The curves of stages that follow each other, as one: each row names its `stage`, and steps count on.

    Args:
        stages: name -> its rows, which begin at step 0.
    """
    rows, before = [], 0
    for name, curve in stages.items():
        for row in curve:
            # A later stage begins with the weights that the one before ended with: that step is told once.
            if row["step"] or not before:
                rows.append({"stage": name} | row | {"step": row["step"] + before})
        before += curve[-1]["step"]
    return rows
