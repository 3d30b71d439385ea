"""What the kinds share: texts cut to length and counted, padding, and the form that a kind has."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor

__all__ = ["Example", "Examples", "Kind", "Rejected", "Texts", "answers_of", "labels_of", "pad"]

Example = dict[str, Any]
IGNORED = -100


class Rejected(ValueError):
    """A labelled set cannot be learned from; nothing was written."""


class Texts:
    """Texts -> token ids of at most `length`, special tokens included; what is cut is counted.

    Args:
        tokenizer: of transformers, a fast one.
        length: of the longest row.
    """

    def __init__(self, tokenizer, length: int):
        self.tokenizer, self.length, self.cut = tokenizer, length, Counter()

    def encode(self, rows: Sequence[tuple], split: str, keep: str = "longest_first", **more) -> list[Example]:
        """(text,) or (text, second) of each row -> ids and segments.

        Args:
            split: under which too long rows are counted.
            keep: "longest_first", "only_first" or "only_second": which text is cut.
            more: what else the tokenizer is to return, for example return_offsets_mapping=True.
        """
        whole = self._call(rows, **more)
        long = [place for place, ids in enumerate(whole["input_ids"]) if len(ids) > self.length]
        self.cut[split] += len(long)
        if long:
            short = self._call([rows[place] for place in long], truncation=keep, max_length=self.length, **more)
            for name, values in short.items():
                for place, value in zip(long, values, strict=True):
                    whole[name][place] = value
        return [self.example({name: whole[name][place] for name in whole}) for place in range(len(rows))]

    def _call(self, rows: Sequence[tuple], **how) -> dict[str, list]:
        first, *second = ([row[part] for row in rows] for part in range(len(rows[0])))
        return dict(self.tokenizer(first, *second, verbose=False, **how))

    def example(self, encoded: Mapping[str, list]) -> Example:
        """A row of the tokenizer in the names of a batch."""
        names = {"input_ids": "ids", "token_type_ids": "segments", "offset_mapping": "offsets"}
        return {names[name]: value for name, value in encoded.items() if name in names}

    @property
    def padding(self) -> int:
        """The token that fills rows; 0 where the tokenizer has none, since the mask hides it."""
        return self.tokenizer.pad_token_id or 0


class Examples:
    """Tokenised examples as a source of rows: a new order every epoch, a pure function of the seed and the numbers.

    Args:
        kind: collates.
        examples: of one epoch.
        seed: of the order.
        fingerprint: changes with the data, the tokenizer and the settings.
    """

    def __init__(self, kind: "Kind", examples: list[Example], seed: int, fingerprint: str):
        self.kind, self.examples, self.seed, self.fingerprint = kind, examples, seed, fingerprint
        self._order: dict[int, Tensor] = {}  # of the epoch at hand, which is worked out anew when it is not kept

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these examples, numbered from 0 without end."""
        return self.kind.collate([self._at(index) for index in indices])

    def _at(self, index: int) -> Example:
        epoch, place = divmod(index, len(self.examples))
        if epoch not in self._order:
            order = torch.randperm(
                len(self.examples), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            )
            self._order = {**dict(list(self._order.items())[-1:]), epoch: order}  # a batch may end in the next epoch
        return self.examples[int(self._order[epoch][place])]


class Kind:
    """One kind of fine-tuning on one labelled set.

    Attributes:
        target: file of models/components/target.
        loader: class of transformers that loads the result.
        metric: what the best epoch is chosen by; larger is better.
        reads: columns of the examples that must not be null.
        answers_in_batches: the target's outputs are the answers; otherwise the exported model writes them.

    Args:
        texts: the tokenizer and the length.
        rows: split -> examples, at least train and dev; see tasks/datasets/_examples.py.
        facts: of the model: "causal", "decoder", "dual", and ids of special tokens.

    Raises:
        Rejected: the set is empty, lacks a column, or dev and test have labels that train has not.
    """

    target: str
    loader: str | None
    metric: str
    reads: tuple[str, ...] = ("text",)
    answers_in_batches = True

    def __init__(self, texts: Texts, rows: Mapping[str, pl.DataFrame], facts: Mapping[str, Any]):
        self.texts, self.facts = texts, dict(facts)
        for split in ("train", "dev"):
            if split not in rows or not len(rows[split]):
                raise Rejected(f"the set has no {split} rows; bring some, or let ingestion cut them from the others")
        for split, frame in rows.items():
            if absent := [name for name in self.reads if name not in frame.columns or frame[name].null_count()]:
                raise Rejected(
                    f"{split} has rows without {', '.join(absent)}, which {type(self).__name__.lower()} reads; choose "
                    f"another kind, or map the columns when the set is fetched"
                )

    def head(self) -> dict[str, Any]:
        """Settings of the target that follow from the data and the model."""
        raise NotImplementedError

    def encode(self, frame: pl.DataFrame, split: str) -> list[Example]:
        """The examples of a split, in order: one a row, or several that carry their row's number as `row`."""
        raise NotImplementedError

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """A batch with its labels."""
        raise NotImplementedError

    def outputs(self, predicted: Tensor, batch: Mapping[str, Tensor]) -> list:
        """What the target says of each example of a batch, on the CPU."""
        return list(predicted.float().cpu())

    def report(self, frame: pl.DataFrame, examples: Sequence[Example], outputs: list) -> tuple[dict, pl.DataFrame]:
        """Metrics of a split, and its rows with what was predicted."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Names of the head's classes, for config.json; [] where it has none."""
        return []

    def picture(self, told: pl.DataFrame) -> bytes | None:
        """A PNG of what `report` told; None where the kind has none."""
        return None

    # How the exported model is compared with ours.

    def ours(self, model, batch: Mapping[str, Tensor]) -> Tensor:
        """What our model says."""
        return model.predict(self.target, **batch)

    def theirs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch in transformers' names."""
        named = {"ids": "input_ids", "mask": "attention_mask", "segments": "token_type_ids"}
        return {named[name]: value.long() for name, value in batch.items() if name in named}

    def logits(self, output) -> Tensor:
        """What the class of transformers says, in the order of `ours`."""
        return output.logits

    def places(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Which rows or places of the two count: bool, of their first dimensions. Padding does not."""
        return torch.ones(len(batch["ids"]), dtype=torch.bool)


def pad(examples: Sequence[Example], filler: int, stem: str = "") -> dict[str, Tensor]:
    """ids, mask and, where the examples have them, segments, padded on the right.

    >>> {k: v.tolist() for k, v in pad([{"ids": [5, 6]}, {"ids": [7]}], 0).items()}
    {'ids': [[5, 6], [7, 0]], 'mask': [[True, True], [True, False]]}
    """
    longest = max(1, *(len(example[f"{stem}ids"]) for example in examples))  # rows without a token are padding
    batch = {}
    for name, fill in (("ids", filler), ("segments", 0)):
        if f"{stem}{name}" in examples[0]:
            rows = [list(example[f"{stem}{name}"]) for example in examples]
            batch[f"{stem}{name}"] = torch.tensor([row + [fill] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(example[f"{stem}ids"]) for example in examples])
    batch[f"{stem}mask"] = torch.arange(longest) < lengths[:, None]
    return batch


def answers_of(frame: pl.DataFrame) -> list[tuple]:
    """(text,) or (text, second) of each row."""
    return list(
        zip(*(frame[name] for name in ("text", "second") if frame[name].null_count() < len(frame)), strict=True)
    )


def labels_of(rows: Mapping[str, pl.DataFrame], found: Mapping[str, Counter]) -> list[str]:
    """The labels of train in order.

    Args:
        found: split -> how often each label occurs.

    Raises:
        Rejected: train has fewer than two, or another split has one that train has not.
    """
    known = sorted(found["train"])
    if len(known) < 2:
        raise Rejected(f"train has one label only ({', '.join(known)}); nothing can be told apart")
    for split, counts in found.items():
        if strange := {label: count for label, count in counts.items() if label not in found["train"]}:
            listed = ", ".join(f"{label!r} ({count} rows)" for label, count in sorted(strange.items())[:10])
            raise Rejected(
                f"{split} has {len(strange)} labels that train has not: {listed}; a head of {len(known)} classes "
                f"could never say them. Mend the set, or bring training rows"
            )
    return known
