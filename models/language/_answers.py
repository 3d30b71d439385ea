"""Lists of answers in ids: a prompt that ends with an open slot, where an answer ends, and how the next slot opens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from models.language._reader import Written

__all__ = ["Answer", "Form", "Found", "Task", "Tokens"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenizer as decoding sees it.

    Args:
        texts: each token alone, with its leading space; the model may have more, padded rows, which are never chosen.
        ends: ids that end a text, such as the end of sequence.
        hidden: ids that begin no answer: special and reserved tokens.
        encode: text that goes on from others -> ids, without special ones.
        decode: ids -> text.
    """

    texts: Sequence[str]
    ends: frozenset[int]
    hidden: frozenset[int]
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Form:
    """How a list of answers is written, behind a prompt that ends with an open slot.

    Args:
        between: from the end of an answer to the next open slot, such as '"\\n{number}. "'.
        stop: ends an answer, wherever a token has it; None leaves that to the tokens that end a text.
    """

    between: str
    stop: str | None


@dataclass(frozen=True)
class Task:
    """What answers are asked for with: ids up to the first open slot, and how answers are written."""

    prompt: Sequence[int]
    form: Form
    tokens: Tokens

    def marks(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """(V,) bool each: tokens that end an answer, that may begin one, that only pad the table.

        Raises:
            ValueError: no token has the form's stop, or the tokenizer writes what stands between two answers as none.
        """
        return _marks(self.tokens, self.form, size)

    def answer(self, written: Written) -> tuple[str, list[int]]:
        """The text of an answer, and the ids under which it is listed: without what ended it."""
        if not written.ended:
            return self.tokens.decode(written.ids).strip(), list(written.ids)
        body, tail = list(written.ids[:-1]), ""
        if self.form.stop is not None and written.ids[-1] not in self.tokens.ends:
            tail = self.tokens.texts[written.ids[-1]].split(self.form.stop)[0]
        text = (self.tokens.decode(body) if body else "") + tail
        return text.strip(), body + (self.tokens.encode(tail) if tail.strip() else [])

    def listed(self, answers: Sequence[Sequence[int]], number: int = 0) -> list[int]:
        """Ids of the prompt with a list of answers and the next open slot, from answer `number` of those on."""
        ids = list(self.prompt)
        for place, answer in enumerate(answers[number:], start=2):
            ids += [*answer, *_between(self.tokens, self.form, place)]
        return ids


@dataclass(frozen=True)
class Answer:
    """One answer, and how it was come by."""

    token: int  # its first one
    token_text: str
    text: str
    ids: list[int]  # as they are listed
    round: int  # from 1
    rank: int  # of the first token in its round, from 1, tokens that may not begin an answer left out
    logit: float
    ended: bool  # False: cut where its tokens were used up
    generated: int  # tokens, the first and the ending one included
    cluster: int = -1


@dataclass
class Found(Sequence):
    """Answers in the order in which they were found."""

    answers: list[Answer] = field(default_factory=list)
    left_out: int = 0  # answers that a list had no place for, summed over rounds

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, place):
        return self.answers[place]

    @property
    def generated(self) -> int:
        """Tokens written, those inside lists not counted again."""
        return sum(answer.generated for answer in self.answers)


@lru_cache(maxsize=8)
def _marks(tokens: Tokens, form: Form, size: int) -> tuple[Tensor, Tensor, Tensor]:
    texts, stop = tokens.texts[:size], form.stop
    stops = [stop is not None and stop in text for text in texts]
    if stop is not None and not any(stops):
        raise ValueError(f"no token of this tokenizer has {stop!r}, which ends an answer; choose another form")
    if not _between(tokens, form, 2):
        raise ValueError(f"the tokenizer writes {form.between!r}, which stands between two answers, as no token; "
                         f"choose another form")  # fmt: skip
    ends, begins = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    ends[: len(texts)] = torch.tensor(stops, dtype=torch.bool)
    ends[[end for end in tokens.ends if end < size]] = True
    # an answer that its first token ends before it began would be empty (ours)
    starts = [
        bool(text) and not (over and not text.split(stop)[0].strip()) for text, over in zip(texts, stops, strict=True)
    ]
    begins[: len(texts)] = torch.tensor(starts, dtype=torch.bool)
    begins[[token for token in tokens.hidden | tokens.ends if token < size]] = False
    return ends, begins, torch.arange(size) >= len(texts)


@lru_cache(maxsize=1024)
def _between(tokens: Tokens, form: Form, number: int) -> tuple[int, ...]:
    """Ids from the end of an answer to the open slot of this number."""
    return tuple(tokens.encode(form.between.format(number=number)))
