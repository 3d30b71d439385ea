"""One class for each row: what classification of a text and of a pair of texts share."""

from collections import Counter
from collections.abc import Mapping, Sequence

import polars as pl
import torch
from torch import Tensor

from tasks import answers
from tasks.kinds._confusion import confusion_picture
from tasks.kinds._kind import Example, Kind, answers_of, labels_of, pad

__all__ = ["Classes", "pooling"]


def pooling(facts: Mapping) -> dict:
    """How a head of whole rows reads a model: BERT's way, or, where tokens see only what is before them, GPT-2's."""
    return {"pool": "last", "transform": False, "bias": False, "dropout": 0.0} if facts["causal"] else {}


class Classes(Kind):
    """A class for each row, by the labels that train has."""

    target = "cls"
    loader = "AutoModelForSequenceClassification"
    metric = "accuracy"

    def __init__(self, texts, rows, facts):
        super().__init__(texts, rows, facts)
        self.classes = labels_of(rows, {split: Counter(frame["label"]) for split, frame in rows.items()})

    def head(self) -> dict:
        return {"labels": len(self.classes), **pooling(self.facts)}

    def names(self) -> list[str]:
        return self.classes

    def encode(self, frame: pl.DataFrame, split: str) -> list[Example]:
        encoded = self.texts.encode(self.rows_of(frame), split)
        return [row | {"label": self.classes.index(label)} for row, label in zip(encoded, frame["label"], strict=True)]

    def rows_of(self, frame: pl.DataFrame) -> list[tuple]:
        """The texts of each row."""
        return answers_of(frame)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return pad(examples, self.texts.padding) | {"labels_cls": torch.tensor([row["label"] for row in examples])}

    def report(self, frame, examples, outputs) -> tuple[dict, pl.DataFrame]:
        share = torch.stack(outputs).softmax(-1)
        predicted, label = share.argmax(-1).tolist(), [row["label"] for row in examples]
        said = pl.Series("predicted", [self.classes[place] for place in predicted])
        sure = pl.Series("probability", share.max(-1).values.tolist())
        return answers.classes(predicted, label, len(self.classes)), frame.with_columns(said, sure)

    def picture(self, told: pl.DataFrame) -> bytes | None:
        place = {name: number for number, name in enumerate(self.classes)}
        said, was = ([place[name] for name in told[column]] for column in ("predicted", "label"))
        return confusion_picture(answers.confusion(said, was, len(self.classes)), self.classes)
