"""Choice: one option of several, such as the answer to a question about a dialogue."""

from collections.abc import Mapping, Sequence

import polars as pl
import torch
from torch import Tensor

from tasks import answers
from tasks.kinds._kind import Example, Kind, Rejected, pad

__all__ = ["Choice"]


class Choice(Kind):
    """Reads text, second where there is one, choices, and label, the right one's place.

    A row of the model is `text second` against one option; of too long ones only the former is cut. Questions may have
    different numbers of options.
    """

    target = "choice"
    loader = "AutoModelForMultipleChoice"
    metric = "accuracy"
    reads = ("text", "choices", "label")

    def __init__(self, texts, rows, facts):
        super().__init__(texts, rows, facts)
        if facts["causal"]:
            raise Rejected(
                "a model that reads from left to right has no head for choices in transformers; use kind: generation"
            )
        for split, frame in rows.items():
            place, count = frame["label"].cast(pl.Int64, strict=False), frame["choices"].list.len().cast(pl.Int64)
            if wrong := int((place.is_null() | (place < 0) | (place >= count)).sum()):
                raise Rejected(f"{split} has {wrong} rows whose label is not the place of one of their choices")

    def head(self) -> dict:
        return {}

    def encode(self, frame: pl.DataFrame, split: str) -> list[Example]:
        second = frame["second"].fill_null("").to_list()
        asked = [f"{a} {b}".strip() for a, b in zip(frame["text"], second, strict=True)]
        flat = [(text, option) for text, options in zip(asked, frame["choices"], strict=True) for option in options]
        encoded = iter(self.texts.encode(flat, split, keep="only_first"))
        return [
            {"options": [next(encoded) for _ in options], "label": int(label)}
            for options, label in zip(frame["choices"], frame["label"], strict=True)
        ]

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = pad([option for row in examples for option in row["options"]], self.texts.padding)
        counts = torch.tensor([len(row["options"]) for row in examples])
        right = [place == row["label"] for row in examples for place in range(len(row["options"]))]
        questions = torch.arange(len(examples)).repeat_interleave(counts)
        return batch | {"labels_choice": torch.tensor(right).long(), "questions": questions}

    def outputs(self, predicted: Tensor, batch: Mapping[str, Tensor]) -> list:
        counts = batch["questions"].bincount().tolist()
        return list(predicted.float().squeeze(-1).cpu().split(counts))

    def report(self, frame, examples, outputs) -> tuple[dict, pl.DataFrame]:
        predicted, label = [int(output.argmax()) for output in outputs], [row["label"] for row in examples]
        count = max(len(output) for output in outputs)
        found = answers.classes(predicted, label, count)["accuracy"]
        return {"accuracy": found}, frame.with_columns(predicted=pl.Series(list(map(str, predicted))))

    def theirs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """transformers wants (questions, options, T): every option as a question's only one has the same logit."""
        return {name: value.unsqueeze(1) for name, value in super().theirs(batch).items()}
