"""Retrieval: vectors of texts, close where the texts belong together (SimCSE, or the two towers of `dual`).

Three ways to train, by what the set holds: pairs (text, second) that belong together; with `negative`, triples of a
text, what belongs to it and what only seems to; and, where no pair is told to belong together, the same text twice,
whose two passes differ by dropout only (arXiv:2104.08821).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from tasks import answers
from tasks.kinds._kind import Example, Kind, Rejected, pad

__all__ = ["Retrieval"]

STREAMS = ("first_", "second_")


class Retrieval(Kind):
    """Reads text, second where there is one, and label.

    Evaluated by Spearman's correlation of cosine and label where all labels are numbers, else by the share of texts
    that find their partner among all partners of the split.

    Args:
        positive: the label of pairs that belong together; None: all pairs do, unless labels are numbers.
        negative: the label of hard negatives.
        alone: train on single texts, without partners, although there are pairs.
    """

    target = "contrast"
    loader = "AutoModel"

    def __init__(
        self, texts, rows, facts, positive: str | None = None, negative: str | None = None, alone: bool = False
    ):
        super().__init__(texts, rows, facts)
        labels = rows["dev"]["label"]
        number = labels.cast(pl.Float64, strict=False)
        self.graded = positive is None and labels.n_unique() > 1 and not number.null_count()
        self.positive, self.negative, self.alone = positive, negative, alone or self.graded
        if not self.graded and positive is None and labels.n_unique() > 1:
            raise Rejected(
                f"dev has {labels.n_unique()} labels; say which of them means that two texts belong together: "
                f"`positive: {labels[0]}`"
            )
        if empty := [name for name in rows if name != "train" and rows[name]["second"].null_count()]:
            raise Rejected(f"{', '.join(empty)} has rows without a second text: nothing could be looked for there")
        if not self.alone and rows["train"]["second"].null_count():
            self.alone = True
        if self.alone and negative is not None:
            raise Rejected("`negative` needs pairs, but this run trains on single texts")

    @property
    def metric(self) -> str:
        return "spearman" if self.graded else "mrr"

    def head(self) -> dict:
        # Means learned faster than first places in our runs, and did better in SBERT's (arXiv:1908.10084, table 6);
        # SimCSE's own is {pool: first, transform: true}.
        return {"pool": "last" if self.facts["causal"] else "mean"}

    def encode(self, frame: pl.DataFrame, split: str) -> list[Example]:
        rows = self._train_rows(frame) if split == "train" else [*frame.select("text", "second").iter_rows()]
        if len(rows) < 2:
            raise Rejected(f"{split} leaves {len(rows)} examples to compare; check `positive` and `negative`")
        parts = [self.texts.encode([(text,) for text in texts], split) for texts in zip(*rows, strict=True)]
        return [{"parts": list(row)} for row in zip(*parts, strict=True)]

    def _train_rows(self, frame: pl.DataFrame) -> list[tuple[str, ...]]:
        if self.alone:
            both = pl.concat([frame["text"], frame["second"].drop_nulls()]).unique(maintain_order=True)
            return [(text, text) for text in both]
        if self.positive is None:
            return list(frame.select("text", "second").iter_rows())
        partners: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for text, second, label in frame.select("text", "second", "label").iter_rows():
            partners[text][label].append(second)
        if self.negative is None:
            return [(text, one) for text, found in partners.items() for one in found[self.positive]]
        return [
            (text, one, other)
            for text, found in partners.items()
            for one, other in zip(found[self.positive], found[self.negative], strict=False)
        ]

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        views = list(zip(*(row["parts"] for row in examples), strict=True))
        if self.facts["dual"]:
            batch = {}
            for stem, rows in zip(STREAMS, views, strict=False):
                named = [{f"{stem}{name}": value for name, value in row.items()} for row in rows]
                batch |= pad(named, self.texts.padding, stem)
            return batch
        flat = [row for view in views for row in view]
        kinds = torch.arange(len(views)).repeat_interleave(len(examples))
        return pad(flat, self.texts.padding) | {"views": kinds}

    def outputs(self, predicted: Tensor | tuple[Tensor, Tensor], batch: Mapping[str, Tensor]) -> list:
        first, second = predicted if isinstance(predicted, tuple) else (predicted[batch["views"] == v] for v in (0, 1))
        return [torch.stack(pair).float().cpu() for pair in zip(first, second, strict=True)]

    def report(self, frame, examples, outputs) -> tuple[dict, pl.DataFrame]:
        vectors = torch.stack(outputs).numpy()
        cosine = (vectors[:, 0] * vectors[:, 1]).sum(-1)
        told = frame.with_columns(predicted=pl.Series(cosine, dtype=pl.Float64))
        if self.graded:
            found = answers.numbers(cosine, frame["label"].cast(pl.Float64).to_numpy())
            return {name: 0.0 if np.isnan(found[name]) else found[name] for name in ("spearman", "pearson")}, told
        asked = frame.with_row_index().filter(
            pl.lit(True) if self.positive is None else pl.col("label") == self.positive
        )
        rows = asked["index"].to_list()
        documents = {text: place for place, text in enumerate(dict.fromkeys(frame["second"]))}
        seen = [frame["second"].to_list().index(text) for text in documents]
        right = np.array([documents[text] for text in asked["second"]])
        return answers.retrieval(vectors[rows, 0] @ vectors[seen, 1].T, right), told

    def logits(self, output) -> Tensor:
        return output.last_hidden_state

    def ours(self, model, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.cat(model.predict(self.target, **batch)) if self.facts["dual"] else model.encode(**batch)[0]

    def places(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["mask"]
