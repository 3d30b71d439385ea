"""Logits nobody has to form: a model's last states beside its head, or a teacher's most likely words.

Both stand where a (..., V) tensor of logits stands: `x[places]` selects, `x.shape` ends in V.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["TopK", "Words", "columns"]


@dataclass(frozen=True)
class Words:
    """Logits c tanh(z / c), z = scale (hidden W^T + b), not yet multiplied out; without a cap c they are z.

    Models with a capped or scaled head must say so here: a divergence of other logits looks fine and is wrong.
    """

    hidden: Tensor  # (..., D), what the head reads
    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    cap: float | None = None

    def __post_init__(self):
        if self.hidden.shape[-1] != self.weight.shape[1]:
            raise ValueError(
                f"states are {self.hidden.shape[-1]} wide, but the head reads {self.weight.shape[1]} features"
            )
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"a cap bounds logits on both sides and must be above 0; got {self.cap}")

    def __getitem__(self, places) -> "Words":
        return replace(self, hidden=self.hidden[places])

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.hidden.shape[:-1], len(self.weight))

    def detach(self) -> "Words":
        """The same without a gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=self.weight.detach(), bias=bias)

    def tensor(self) -> Tensor:
        """The logits (..., V): for few places only."""
        z = torch.nn.functional.linear(self.hidden, self.weight, self.bias)
        return finish(z, self.scale, self.cap)


@dataclass(frozen=True)
class TopK:
    """What is kept of a teacher that is not there: its k most likely words at each place.

    With `rest`, all other words are one more outcome, so that a divergence of k + 1 outcomes is a lower bound of the
    full one and equals it at k = V. Without, the k words are scaled up to sum to 1: simpler, but over-confident.
    """

    ids: Tensor  # (..., k) int64
    log_probs: Tensor  # (..., k) of softmax(logits / temperature) over the whole vocabulary
    vocabulary: int
    temperature: float = 1.0
    rest: bool = True

    def __post_init__(self):
        if self.ids.shape != self.log_probs.shape:
            raise ValueError(f"{tuple(self.ids.shape)} ids, but {tuple(self.log_probs.shape)} log-probabilities")

    @classmethod
    def of(cls, logits: Tensor | Words, k: int, temperature: float = 1.0, rest: bool = True, rows: int = 256) -> "TopK":
        """The k largest of (..., V) logits; of Words, `rows` tokens at a time."""
        if not 1 <= k <= logits.shape[-1]:
            raise ValueError(f"k must be in 1..{logits.shape[-1]}, the vocabulary; got {k}")
        if isinstance(logits, Words):
            flat = replace(logits.detach(), hidden=logits.hidden.detach().flatten(0, -2))
            parts = [cls.of(flat[i : i + rows].tensor(), k, temperature) for i in range(0, len(flat.hidden), rows)]
            whole = (torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "log_probs"))
            return cls(*(x.view(*logits.shape[:-1], k) for x in whole), logits.shape[-1], temperature, rest)
        wide = torch.promote_types(logits.dtype, torch.float32)
        best = (logits.detach().to(wide) / temperature).log_softmax(-1).topk(k)
        return cls(best.indices, best.values, logits.shape[-1], temperature, rest)

    def __getitem__(self, places) -> "TopK":
        return replace(self, ids=self.ids[places], log_probs=self.log_probs[places])

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.ids.shape[:-1], self.vocabulary)

    def detach(self) -> "TopK":
        """Itself: it has no gradient."""
        return self


def columns(logits: Tensor | Words, keep: Tensor | slice) -> Tensor | Words:
    """Logits of these words alone; of a head, its rows, so that the others are never formed.

    Raises:
        TypeError: a teacher's most likely words, of which the kept ones are not known.
    """
    if isinstance(logits, TopK):
        raise TypeError("of a teacher's most likely words none can be left out; keep more logits, or all words")
    if isinstance(logits, Words):
        bias = None if logits.bias is None else logits.bias[keep]
        return replace(logits, weight=logits.weight[keep], bias=bias)
    return logits[..., keep]


def finish(z: Tensor, scale: float, cap: float | None) -> Tensor:
    """What some models do to logits last."""
    z = z if scale == 1 else z * scale
    return z if cap is None else cap * torch.tanh(z / cap)
