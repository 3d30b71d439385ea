"""Classification: a class for one text."""

import polars as pl

from tasks.kinds._classes import Classes

__all__ = ["Classification"]


class Classification(Classes):
    """Reads text and label; a second text is left aside."""

    reads = ("text", "label")

    def rows_of(self, frame: pl.DataFrame) -> list[tuple]:
        return [(text,) for text in frame["text"]]
