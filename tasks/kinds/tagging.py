"""Tagging: entities in a text, as a B-, I- or O for each of its words."""

from collections import Counter
from collections.abc import Sequence

import polars as pl
import torch
from torch import Tensor

from tasks import answers
from tasks.kinds._kind import IGNORED, Example, Kind, labels_of, pad

__all__ = ["Tagging"]


class Tagging(Kind):
    """Reads text, words with one space between them, and labels, a tag for each.

    The first sub-token of a word is labelled and read. A word that was cut off, or has no token, is answered by O.
    """

    target = "tagging"
    loader = "AutoModelForTokenClassification"
    metric = "f1"
    reads = ("text", "labels")

    def __init__(self, texts, rows, facts):
        super().__init__(texts, rows, facts)
        found = {split: Counter(tag for tags in frame["labels"] for tag in tags) for split, frame in rows.items()}
        self.tags = labels_of(rows, found)

    def head(self) -> dict:
        return {"classes": len(self.tags)}

    def names(self) -> list[str]:
        return self.tags

    def encode(self, frame: pl.DataFrame, split: str) -> list[Example]:
        rows = [(text,) for text in frame["text"]]
        encoded = self.texts.encode(rows, split, return_offsets_mapping=True)
        return [self._labelled(*row) for row in zip(encoded, frame["text"], frame["labels"], strict=True)]

    def _labelled(self, encoded: Example, text: str, tags: Sequence[str]) -> Example:
        """`words` is the word that begins at each token, or -1."""
        starts = {}
        place = 0
        for number, word in enumerate(text.split(" ")):
            starts[place] = number
            place += len(word) + 1
        words, seen = [], set()
        for start, end in encoded.pop("offsets"):
            start += text[start:end].startswith(" ")  # byte-level tokens may hold the space before their word
            word = starts.get(start, -1) if end > start and start not in seen else -1
            seen |= {start} if word >= 0 else set()
            words.append(word)
        label = [self.tags.index(tags[word]) if word >= 0 else IGNORED for word in words]
        return encoded | {"words": words, "label": label}

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = pad(examples, self.texts.padding)
        longest = batch["ids"].shape[1]
        label = [row["label"] + [IGNORED] * (longest - len(row["label"])) for row in examples]
        return batch | {"labels_tagging": torch.tensor(label)}

    def report(self, frame, examples, outputs) -> tuple[dict, pl.DataFrame]:
        said = []
        for row, tags, output in zip(examples, frame["labels"], outputs, strict=True):
            answer, best = ["O"] * len(tags), output.argmax(-1).tolist()
            for place, word in enumerate(row["words"]):
                if word >= 0:
                    answer[word] = self.tags[best[place]]
            said.append(answer)
        right = frame["labels"].to_list()
        pairs = [pair for a, b in zip(said, right, strict=True) for pair in zip(a, b, strict=True)]
        found = answers.entity_f1(said, right) | {"accuracy": sum(a == b for a, b in pairs) / len(pairs)}
        return found, frame.with_columns(predicted=pl.Series(said, dtype=pl.List(pl.String)))

    def places(self, batch) -> Tensor:
        return batch["mask"]
