"""A causal language model that reads a prefix once: rows that go on from it share its keys and values, in one batch.

Tokens are appended as ids, and no text is tokenised again. Rows of different length are padded on the left, also where
they go on; the mask hides padding and positions count real tokens, so a row's answer does not depend on its neighbours.
A model that keeps a state in place of keys, or takes no positions, reads each row alone and anew.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor, nn

__all__ = ["Draws", "Reader", "Reading", "TooLong", "Written", "decode", "greedily"]

Choose = Callable[[Tensor, Sequence[int]], Tensor]  # (B, V) logits and the rows' numbers -> (B,) ids


class TooLong(ValueError):
    """A row has more tokens than the model has places for."""


class Reader:
    """What decoding needs of a causal language model, and what it has cost.

    Args:
        model: called as transformers' causal language models are, in evaluation mode: input_ids and attention_mask
            and, where its forward has them, position_ids, past_key_values and logits_to_keep.
        cached: False reads a whole row again for each of its tokens.

    Attributes:
        passes: calls of the model.
        tokens: real tokens that went through it.
    """

    def __init__(self, model: nn.Module, cached: bool = True):
        self.model, self.passes, self.tokens = model.eval(), 0, 0
        takes = signature(model.forward).parameters
        self.places, self.short, self.asks = "position_ids" in takes, "logits_to_keep" in takes, "use_cache" in takes
        # without positions, padding would move a row's tokens
        self.together = self.places and not getattr(model, "_is_stateful", False)
        self.cached = cached and self.together and "past_key_values" in takes
        outputs = getattr(model, "get_output_embeddings", None)
        self.head: nn.Module | None = outputs() if outputs else None
        config = getattr(model, "config", None)
        self.room: int | None = getattr(config, "max_position_embeddings", None)
        self.device = next(model.parameters(), torch.zeros(0)).device

    def read(self, rows: Sequence[Sequence[int]]) -> "Reading":
        """Read rows of ids from their beginning.

        Raises:
            ValueError: there is no row, or an empty one.
            TooLong: a row does not fit.
        """
        if not rows or not all(len(row) for row in rows):
            raise ValueError(f"{len(rows)} rows were given, each needs at least one token")
        reading = Reading(self, [[] for _ in rows])
        reading.extend(rows)
        return reading

    def call(self, ids_BT: Tensor, mask_BS: Tensor, past=None):
        """One pass over the last T of S places: (B, V) float32 logits, (B, D) what the head read or None, the cache."""
        more = {}
        if self.places:
            more["position_ids"] = (mask_BS.long().cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        if self.short:
            more["logits_to_keep"] = 1
        if self.cached:
            more |= {"past_key_values": past, "use_cache": True}
        elif self.asks:
            more["use_cache"] = False
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, given: caught.append(given[0])) if self.head else None
        try:
            with torch.no_grad():
                out = self.model(input_ids=ids_BT, attention_mask=mask_BS.long(), **more)
        finally:
            if hook:
                hook.remove()
        self.passes += 1
        self.tokens += int(mask_BS[:, -ids_BT.shape[1] :].sum())
        query = caught[-1][:, -1].float() if caught else None
        past = getattr(out, "past_key_values", None)
        self.cached = self.cached and hasattr(past, "batch_select_indices")  # else its rows cannot be shared
        return out.logits[:, -1].float(), query, past if self.cached else None


class Reading:
    """Rows that a model has read so far.

    Attributes:
        rows: B lists of ids.
        logits: (B, V) float32 of the token after each row.
        query: (B, D) float32, what the output head read there; None where the model shows no head.
    """

    def __init__(self, reader: Reader, rows: list[list[int]]):
        self.reader, self.rows = reader, rows
        self.logits = self.query = self._past = None
        self._mask = torch.zeros(len(rows), 0, dtype=torch.bool, device=reader.device)

    def __len__(self) -> int:
        return len(self.rows)

    def pick(self, places: Sequence[int]) -> "Reading":
        """Some of the rows, in this order and as often as named; this one stays as it is."""
        picked = Reading(self.reader, [list(self.rows[place]) for place in places])
        index = torch.tensor(list(places), device=self.reader.device)
        picked.logits = self.logits[index]
        picked.query = None if self.query is None else self.query[index]
        picked._mask = self._mask[index]
        if self._past is not None:
            picked._past = copy.copy(self._past)  # what it holds is replaced, never written into
            picked._past.layers = [copy.copy(layer) for layer in self._past.layers]
            picked._past.batch_select_indices(index)
        return picked

    def extend(self, rows: Sequence[Sequence[int]]) -> None:
        """Go on with these ids, one list a row; a row with none keeps its logits.

        Raises:
            TooLong: a row does not fit.
        """
        longest = max(len(old) + len(new) for old, new in zip(self.rows, rows, strict=True))
        if self.reader.room is not None and longest > self.reader.room:
            raise TooLong(f"a row of {longest} tokens does not fit a model with places for {self.reader.room}; "
                          f"ask for fewer or shorter answers, or shorten the prompt")  # fmt: skip
        going = [place for place, new in enumerate(rows) if len(new)]
        if not going:
            return
        for old, new in zip(self.rows, rows, strict=True):
            old += new
        if self.reader.cached:
            self._keep(range(len(rows)), *self._go_on(rows), has=torch.tensor([bool(len(new)) for new in rows]))
        elif self.reader.together:
            self._keep(going, *self._anew(going))
        else:
            for place in going:
                self._keep([place], *self._anew([place]))

    def _go_on(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        ids, mask = _padded(rows, self.reader.device)
        self._mask = torch.cat([self._mask, mask], 1)
        logits, query, self._past = self.reader.call(ids, self._mask, self._past)
        return logits, query

    def _anew(self, places: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        logits, query, _ = self.reader.call(*_padded([self.rows[place] for place in places], self.reader.device))
        return logits, query

    def _keep(self, places: Sequence[int], logits: Tensor, query: Tensor | None, has: Tensor | None = None) -> None:
        if self.logits is None:
            self.logits = logits.new_zeros(len(self.rows), logits.shape[1])
            self.query = None if query is None else query.new_zeros(len(self.rows), query.shape[1])
        has = torch.ones(len(places), dtype=torch.bool) if has is None else has
        chosen, index = has.to(logits.device), torch.tensor(list(places), device=logits.device)
        self.logits[index[chosen]] = logits[chosen]
        if self.query is not None:
            self.query[index[chosen]] = query[chosen]


@dataclass(frozen=True)
class Written:
    """What a row went on with: its ids, the one that ended it included."""

    ids: list[int]
    ended: bool


def greedily(logits: Tensor, numbers: Sequence[int]) -> Tensor:
    """The most likely token of each row."""
    return logits.argmax(-1)


class Draws:
    """Tokens drawn at a temperature, each row from random numbers of its own: neighbours do not change a text.

    Args:
        seeds: one for each row.
        temperature: greater than 0.
        top_p: the fewest tokens of which so much of the probability is.

    Raises:
        ValueError: one of them is out of range.
    """

    def __init__(self, seeds: Sequence[int], temperature: float = 1.0, top_p: float = 1.0):
        if not temperature > 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"drawing needs temperature > 0 and top_p in (0, 1]; got {temperature} and {top_p}. "
                f"For the most likely tokens, decode greedily"
            )
        self.random = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, logits: Tensor, numbers: Sequence[int]) -> Tensor:
        share, ids = (logits.double() / self.temperature).softmax(-1).sort(descending=True, stable=True)
        share = share.masked_fill(share.cumsum(-1) - share >= self.top_p, 0.0)
        until = share.cumsum(-1)
        chance = [torch.rand((), generator=self.random[number], dtype=torch.float64) for number in numbers]
        chance = torch.stack(chance).to(until)[:, None]
        last = (share > 0).sum(-1, keepdim=True) - 1  # where rounding would point behind the last token
        place = torch.searchsorted(until, chance * until[:, -1:], right=True).minimum(last)
        return ids.gather(1, place)[:, 0]


def decode(
    reading: Reading,
    places: Sequence[int],
    first: Sequence[int] | None,
    ends_V: Tensor,
    tokens: int,
    choose: Choose = greedily,
    banned_V: Tensor | None = None,
    batch: int = 64,
) -> list[Written]:
    """Go on from what was read, each text up to its first ending token.

    Args:
        places: rows of the reading, one for each text; a row may be named many times.
        first: the first token of each text, given; None leaves it to `choose`.
        ends_V: (V,) bool, tokens that end a text.
        tokens: at most so many are chosen for a text, besides the given first one.
        banned_V: (V,) bool, tokens never chosen.
        batch: texts at once.
    """
    texts: list[Written] = []
    for start in range(0, len(places), batch):
        part = slice(start, start + batch)
        begun = [[token] for token in first[part]] if first is not None else [[] for _ in places[part]]
        numbers = range(start, start + len(begun))
        texts += _decode(reading.pick(places[part]), begun, list(numbers), ends_V, tokens, choose, banned_V)
    return texts


def _decode(reading, texts, numbers, ends_V, tokens, choose, banned_V) -> list[Written]:
    ends = set(ends_V.nonzero()[:, 0].tolist())
    ended = [bool(text) and text[-1] in ends for text in texts]
    going = [place for place, over in enumerate(ended) if not over]
    new = [texts[place] for place in going]
    live = reading.pick(going) if len(going) < len(texts) else reading  # rows that are over cost nothing
    for step in range(tokens):
        if not going:
            break
        live.extend(new)
        logits = live.logits if banned_V is None else live.logits.masked_fill(banned_V, -torch.inf)
        chosen = choose(logits, [numbers[place] for place in going]).tolist()
        for place, token in zip(going, chosen, strict=True):
            texts[place].append(token)
            ended[place] = token in ends
        stay = [row for row, place in enumerate(going) if not ended[place]]
        if stay and len(stay) < len(going) and step + 1 < tokens:
            live, chosen = live.pick(stay), [chosen[row] for row in stay]
        going = [going[row] for row in stay]
        new = [[token] for token in chosen]
    return [Written(text, over) for text, over in zip(texts, ended, strict=True)]


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, T) ids and mask of rows padded on the left."""
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows], device=device)
    return ids, mask
