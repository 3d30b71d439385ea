"""Span: the words of a context that answer a question."""

from collections.abc import Iterator, Mapping, Sequence

import polars as pl
import torch
from torch import Tensor

from tasks import answers
from tasks.kinds._kind import Example, Kind, Rejected, pad

__all__ = ["Span"]

SPECIALS = 4  # tokens around question and context, at most


class Span(Kind):
    """Reads text, the question; second, the context; and spans, the answers ([]: it has none).

    A context longer than a row is read in windows that overlap by `stride` tokens (arXiv:1810.04805, section 4.2), a
    question longer than half a row is cut. A window without the whole answer is labelled with its first place. In
    training the first answer counts, in evaluation the best.

    Args:
        stride: tokens that two windows share; a quarter of the length where it is None.
        longest: tokens of an answer, at most.
    """

    target = "span"
    loader = "AutoModelForQuestionAnswering"
    metric = "f1"
    reads = ("text", "second", "spans")

    def __init__(self, texts, rows, facts, stride: int | None = None, longest: int = 30):
        super().__init__(texts, rows, facts)
        self.stride, self.longest = texts.length // 4 if stride is None else stride, longest
        if not 0 <= self.stride < texts.length // 2:
            raise Rejected(f"stride {self.stride} must be below half of the length, {texts.length // 2}")
        self.empty = any((frame["spans"].list.len() == 0).any() for frame in rows.values())

    def head(self) -> dict:
        return {}

    def encode(self, frame: pl.DataFrame, split: str) -> list[Example]:
        found = []
        for number, row in enumerate(frame.iter_rows(named=True)):
            found += self._windows(number, row, split)
        return found

    def _question(self, text: str, split: str) -> str:
        """The question, cut to half of a row: the windows of its context must move on."""
        most = self.texts.length // 2 - SPECIALS
        ends = self.texts.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if len(ends["offset_mapping"]) <= most:
            return text
        self.texts.cut[split] += 1
        return text[: ends["offset_mapping"][most - 1][1]]

    def _windows(self, number: int, row: dict, split: str) -> Iterator[Example]:
        encoded = self.texts.tokenizer(
            self._question(row["text"], split), row["second"], truncation="only_second", max_length=self.texts.length,
            stride=self.stride, return_overflowing_tokens=True, return_offsets_mapping=True, verbose=False,
        )  # fmt: skip
        answer = row["spans"][0] if row["spans"] else None
        for window in range(len(encoded["input_ids"])):
            context = [part == 1 for part in encoded.sequence_ids(window)]
            offsets = encoded["offset_mapping"][window]
            whole = {name: encoded[name][window] for name in ("input_ids", "token_type_ids") if name in encoded}
            label = self._label(offsets, context, answer)
            yield self.texts.example(whole) | {"row": number, "offsets": offsets, "context": context, "label": label}

    @staticmethod
    def _label(offsets: Sequence, context: Sequence[bool], answer: Mapping | None) -> tuple[int, int]:
        if answer is None:
            return 0, 0
        start, end = answer["start"], answer["start"] + len(answer["text"])
        first = next((t for t, (a, b) in enumerate(offsets) if context[t] and a <= start < b), None)
        last = next((t for t, (a, b) in enumerate(offsets) if context[t] and a < end <= b), None)
        return (first, last) if first is not None and last is not None else (0, 0)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return pad(examples, self.texts.padding) | {"labels_span": torch.tensor([row["label"] for row in examples])}

    def report(self, frame, examples, outputs) -> tuple[dict, pl.DataFrame]:
        best: dict[int, tuple[float, str]] = {}
        nothing: dict[int, float] = {}
        contexts = frame["second"].to_list()
        for row, output in zip(examples, outputs, strict=True):
            number = row["row"]
            score, start, end = self._best(row, output)
            nothing[number] = min(nothing.get(number, torch.inf), float(output[0].sum()))
            if number not in best or score > best[number][0]:
                best[number] = score, contexts[number][start:end]
        said = ["" if self.empty and nothing[n] > best[n][0] else best[n][1] for n in range(len(frame))]
        right = [[span["text"] for span in spans] for spans in frame["spans"]]
        return answers.spans(said, right), frame.with_columns(predicted=pl.Series(said, dtype=pl.String))

    def _best(self, row: Example, output: Tensor) -> tuple[float, int, int]:
        """(score, first character, end) of the best span of a window's context."""
        length, context = len(row["context"]), torch.tensor(row["context"])
        start, end = output[:length].unbind(-1)
        score = start[:, None] + end[None]
        allowed = torch.ones(length, length, dtype=torch.bool).triu().tril(self.longest - 1)
        score = score.masked_fill(~(allowed & context[:, None] & context[None]), -torch.inf)
        first, last = divmod(int(score.argmax()), length)
        return float(score[first, last]), row["offsets"][first][0], row["offsets"][last][1]

    def logits(self, output) -> Tensor:
        return torch.stack([output.start_logits, output.end_logits], -1)

    def places(self, batch) -> Tensor:
        return batch["mask"]
