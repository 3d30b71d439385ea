"""Texts to distil language models on: which places count, sampling, a buffer of what was sampled, and the loss's frame.

A place t predicts token t + 1, so a Signals.mask of these methods is `Text.predicts(end)`: True where the next token is
of a completion, up to its first end token, which counts, also where padding is the same token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.distill._divergence import Divergence, check_temperature, word_divergence
from models.distill._signals import Method, Shape, Signals
from models.distill._words import TopK, Words, columns

__all__ = ["NextWords", "Replay", "Sampling", "SequenceMethod", "Text", "mixed", "sample"]

NextWords = Callable[[Tensor, Tensor], Tensor]  # (B, T) ids and mask -> (B, V) logits of the token after the last place


@dataclass(frozen=True)
class Text:
    """Prompts with completions. Prompts are padded on the left, completions on the right."""

    ids: Tensor  # (B, T) int64
    mask: Tensor  # (B, T) bool, True at real tokens
    completion: Tensor  # (B, T) bool, True from each completion's first token on

    @property
    def positions(self) -> Tensor:
        """(B, T) place of each token in its own text, whatever the padding before it."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    def prompts(self) -> "Text":
        """Without the completions, padded on the left."""
        real = self.mask & ~self.completion
        order = real.int().argsort(dim=-1, stable=True)[:, -max(1, int(real.sum(-1).max())) :]
        real = real.gather(1, order)
        ids = self.ids.gather(1, order).masked_fill(~real, 0)
        return Text(ids, real, torch.zeros_like(real))

    def predicts(self, end: int) -> Tensor:
        """(B, T) bool: the places whose next token counts."""
        over = ((self.ids == end) & self.completion).int()
        counts = self.completion & (over.cumsum(-1) - over == 0)
        return torch.cat([counts[:, 1:], torch.zeros_like(counts[:, :1])], 1)

    def truncated(self, end: int) -> Tensor:
        """(B,) bool: completions without an end; their share is worth watching while a student is weak."""
        return ~((self.ids == end) & self.completion).any(-1)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Args:
        new_tokens: at most so many.
        temperature: of sampling alone, not of the loss.
        top_k: the most likely words only; 0 for all.
        top_p: the fewest words of which so much of the probability is.

    Raises:
        ValueError: one of them is out of range.
    """

    new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        check_temperature(self.temperature)
        if self.new_tokens < 1 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"sampling needs new_tokens >= 1, top_k >= 0, top_p in (0, 1]; got {self}")

    def choose(self, logits: Tensor, chance: Tensor) -> Tensor:
        """The word (B,) at `chance` (B,) in [0, 1) of the cumulated probabilities of (B, V) logits."""
        share, words = (logits.double() / self.temperature).softmax(-1).sort(descending=True, stable=True)
        share = share.masked_fill(share.cumsum(-1) - share >= self.top_p, 0.0)
        if self.top_k:
            share[:, self.top_k :] = 0
        until = share.cumsum(-1)
        # a rounded chance may reach the very top, where no word is: the last one that has a share then
        last = (share > 0).sum(-1, keepdim=True) - 1
        place = torch.searchsorted(until, chance.to(until)[:, None] * until[:, -1:], right=True)
        return words.gather(1, place.minimum(last))[:, 0]


def sample(next_words: NextWords, prompts: Text, how: Sampling, end: int, pad: int, generator: torch.Generator) -> Text:
    """Prompts with sampled completions, each up to its first end token. No gradient runs through the choice.

    Raises:
        ValueError: a prompt that is not padded on the left: its completion would follow padding.
    """
    if not bool(prompts.mask[:, -1].all()):
        raise ValueError("prompts must be padded on the left: some do not end at the last place")
    ids, mask = prompts.ids, prompts.mask
    going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    with torch.no_grad():
        for _ in range(how.new_tokens):
            # drawn for all rows, on the CPU: a row's text depends neither on when others end nor on the device
            chance = torch.rand(len(ids), generator=generator, dtype=torch.float64)
            word = how.choose(next_words(ids, mask), chance.to(ids.device))
            ids = torch.cat([ids, torch.where(going, word, pad)[:, None]], 1)
            mask = torch.cat([mask, going[:, None]], 1)
            going = going & (word != end)
            if not bool(going.any()):
                break
    completion = mask.clone()
    completion[:, : prompts.ids.shape[1]] = False
    return Text(ids, mask, completion)


def mixed(student: NextWords, teacher: NextWords, share: float) -> NextWords:
    """Words by `share` of the teacher's probabilities and the rest of the student's."""

    def next_words(ids: Tensor, mask: Tensor) -> Tensor:
        q, p = student(ids, mask).double().softmax(-1), teacher(ids, mask).double().softmax(-1)
        return (share * p + (1 - share) * q).log()

    return next_words if share else student


class Replay(nn.Module):
    """The last `capacity` texts that were put in; they are part of the state, so a resumed run draws the same ones.

    Args:
        capacity: texts.
        length: tokens of the longest text it takes.
    """

    ids: Tensor
    mask: Tensor
    completion: Tensor
    count: Tensor

    def __init__(self, capacity: int, length: int):
        super().__init__()
        if capacity < 1 or length < 1:
            raise ValueError(f"a buffer holds at least one text of one token, got {capacity} of {length}")
        self.register_buffer("ids", torch.zeros(capacity, length, dtype=torch.int32))
        self.register_buffer("mask", torch.zeros(capacity, length, dtype=torch.bool))
        self.register_buffer("completion", torch.zeros(capacity, length, dtype=torch.bool))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # ever put in

    def __len__(self) -> int:
        return min(int(self.count), len(self.ids))

    @property
    def full(self) -> bool:
        return len(self) == len(self.ids)

    def push(self, text: Text) -> None:
        """Put texts in; the oldest make room.

        Raises:
            ValueError: they are longer than the buffer is.
        """
        rows, length = text.ids.shape
        if length > self.ids.shape[1]:
            raise ValueError(f"texts of {length} tokens do not fit a buffer of length {self.ids.shape[1]}")
        places = ((self.count + torch.arange(rows, device=self.count.device)) % len(self.ids))[-len(self.ids) :]
        for name in ("ids", "mask", "completion"):
            kept, new = getattr(self, name), getattr(text, name)[-len(self.ids) :]
            kept[places] = nn.functional.pad(new, (0, kept.shape[1] - length)).to(kept)
        self.count += rows

    def draw(self, rows: int, generator: torch.Generator) -> Text:
        """Texts at random, without the columns that none of them uses.

        Raises:
            LookupError: it is empty.
        """
        if not len(self):
            raise LookupError("the buffer holds no text yet")
        places = torch.randint(len(self), (rows,), generator=generator).to(self.ids.device)
        mask = self.mask[places]
        used = slice(0, max(1, int(mask.any(0).nonzero().max()) + 1))
        return Text(self.ids[places][:, used].long(), mask[:, used], self.completion[places][:, used])


class SequenceMethod(Method):
    """A divergence of next words, on texts that the method chooses.

    Args:
        which: the divergence.
        how: completions are sampled.
        words: how many words the two share, where tables of different sizes pad one vocabulary.

    Raises:
        ValueError: vocabularies of different size, and nobody said how many words are true.
    """

    needs = ("logits",)
    uncut = True  # whose text a step learns on, and its chances, are drawn for the step

    def __init__(self, student: Shape, teacher: Shape, which: Divergence, how: Sampling, words: int | None):
        super().__init__(student, teacher)
        self.which, self.how, self.words = which, how, words
        known = (student.vocabulary, teacher.vocabulary)
        if words is None and known[0] != known[1]:
            raise ValueError(
                f"the student has {known[0]} logits and the teacher {known[1]}. If both have one tokenizer and padded "
                "tables, give `words`, its true size; otherwise train on the teacher's texts"
            )
        if words is not None and not 0 < words <= min(known):
            raise ValueError(f"words must be in 1..{min(known)}, what both have logits for; got {words}")

    def forward(self, student: Signals, teacher: Signals, count: Tensor | int | None = None) -> Tensor:
        """`count`: the tokens of the whole step, over micro-batches and ranks, by which sums are divided."""
        return self.compare(student, teacher, count)

    def compare(self, student: Signals, teacher: Signals, count: Tensor | int | None = None) -> Tensor:
        """The divergence of the next words, over the places of the student's mask, per token."""
        total = word_divergence(self.true(student.logits), self.true(teacher.logits), self.which, student.mask)
        return total / self.share(student.mask, count)

    def true(self, logits: Tensor | Words | TopK) -> Tensor | Words | TopK:
        """Without the columns that only pad the table."""
        return logits if self.words in (None, logits.shape[-1]) else columns(logits, slice(0, self.words))

    @staticmethod
    def share(mask: Tensor, count: Tensor | int | None) -> Tensor | int:
        """What sums over tokens are divided by."""
        return mask.sum().clamp(min=1) if count is None else count

    def draws(self, rank: int = 0) -> tuple[float, torch.Generator]:
        """A number in [0, 1) that all ranks share, and random numbers of this rank alone; both of this step."""
        shared = self.generator()
        number = torch.rand((), generator=shared, dtype=torch.float64).item()
        seeds = torch.randint(2**62, (rank + 1,), generator=shared)
        return number, torch.Generator().manual_seed(seeds[rank].item())
