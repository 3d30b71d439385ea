"""Regression: a number for a text or a pair of texts, such as how alike two sentences are."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from tasks import answers
from tasks.kinds._classes import pooling
from tasks.kinds._kind import Example, Kind, Rejected, answers_of, pad

__all__ = ["Regression"]


class Regression(Kind):
    """Reads text, second where there is one, and label, a number of any unit."""

    target = "regression"
    loader = "AutoModelForSequenceClassification"
    metric = "spearman"
    reads = ("text", "label")

    def __init__(self, texts, rows, facts):
        super().__init__(texts, rows, facts)
        for split, frame in rows.items():
            number = frame["label"].cast(pl.Float64, strict=False)
            if strange := frame["label"].filter(number.is_null() | ~number.is_finite()).to_list():
                raise Rejected(f"{split} has {len(strange)} labels that are no numbers, such as {strange[0]!r}")

    def head(self) -> dict:
        return {"outputs": 1, **pooling(self.facts)}

    def encode(self, frame: pl.DataFrame, split: str) -> list[Example]:
        encoded = self.texts.encode(answers_of(frame), split)
        return [row | {"label": float(label)} for row, label in zip(encoded, frame["label"], strict=True)]

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        label = torch.tensor([row["label"] for row in examples])
        return pad(examples, self.texts.padding) | {"labels_regression": label}

    def report(self, frame, examples, outputs) -> tuple[dict, pl.DataFrame]:
        predicted = np.array([output.item() for output in outputs])
        found = answers.numbers(predicted, [row["label"] for row in examples])
        # A model that says one number for all rows ranks none: its correlation is not defined, and counts as none.
        found = {name: 0.0 if math.isnan(value) else value for name, value in found.items()}
        return found, frame.with_columns(predicted=pl.Series(predicted, dtype=pl.Float64))
