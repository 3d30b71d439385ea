"""Attention behind one interface: who may look at whom is worked out once, then each layer looks.

    A = softmax(scale Q K^T + bias + mask),  output = A V

Vaswani et al., 2017, arXiv:1706.03762; grouped keys and values: Ainslie et al., 2023, arXiv:2305.13245; scores carried
from layer to layer: He et al., 2020 (RealFormer), arXiv:2012.11747; relative buckets: Raffel et al., 2019 (T5),
arXiv:1910.10683; ALiBi: Press et al., 2021, arXiv:2108.12409; rotary: Su et al., 2021, arXiv:2104.09864.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.components._dropout import dropout
from models.components._mixing import mix
from models.components._rows import Rows

__all__ = ["Attention", "View", "alibi", "buckets", "cross_view", "frequencies", "lowered", "rotate", "turns", "view"]

Heads = tuple[Tensor, Tensor, Tensor]  # queries (B, H, T, K), keys and values (B, H_kv, S, K)


@dataclass(frozen=True)
class View:
    """Which keys a query sees, and what is added to its logits; the same for all layers of a stack.

    Torch's attention reads `mask` and `causal`. What holds its scores adds `addend`, whose masked entries are finite so
    that softmax and its gradient are, and multiplies by `sighted`.
    """

    held: bool = False  # whether it is for attention that holds its scores
    mask: Tensor | None = None  # (B or 1, 1 or H, T or 1, S), bool, or float to add with -inf; None: all see all
    causal: bool = False  # no tensor needed: query t sees keys 0..t
    addend: Tensor | None = None  # (B or 1, 1 or H, T or 1, S) float
    sighted: Tensor | None = None  # (B, 1, T or 1, 1) bool, False at a query without keys; None: there are none

    def hold(self, length: int, device: torch.device) -> "View":
        """The same view for attention that holds its scores, where rows have this length."""
        if self.held:
            return self
        if self.causal:
            return _view(_lower(length, device)[None], None, True)
        if self.mask is None:
            return View(True)
        if self.mask.dtype == torch.bool:
            return _view(self.mask[:, 0], None, True)
        seen = self.mask > -math.inf
        sighted = seen.any(-1, keepdim=True)
        addend = self.mask.masked_fill(~seen, torch.finfo(torch.float32).min)
        return View(True, addend=addend, sighted=None if bool(sighted.all()) else sighted)


def view(rows: Rows, kind: str, bias_HTS: Tensor | None = None, held: bool = False) -> View:
    """Who sees whom within rows.

    Args:
        rows: real places, documents and the prefix; nothing crosses the border of a document.
        kind: "full"; "causal": keys up to the query's own; "prefix": causal, but all see the whole prefix.
        bias_HTS: added to the logits.
        held: for attention that holds its scores.
    """
    causal = kind != "full"
    whole_prefix = kind == "prefix" and rows.prefix is not None
    plain = causal and not whole_prefix and rows.documents is None and rows.tail  # end padding is later than all else
    if plain and bias_HTS is None and not held:
        return View(causal=True)
    allowed_BTS = _lower(rows.mask.shape[1], rows.mask.device)[None] if causal else None
    if whole_prefix:
        allowed_BTS = allowed_BTS | rows.prefix[:, None, :]
    if not plain:
        allowed_BTS = _both(allowed_BTS, rows, rows)
    return _view(allowed_BTS, bias_HTS, held)


def cross_view(rows: Rows, memory: Rows, held: bool = False) -> View:
    """What a decoder's rows see of the encoder's: every real place, of the same document where both are packed.

    Raises:
        ValueError: only one of the two is packed.
    """
    if (rows.documents is None) != (memory.documents is None):
        packed, other = ("source", "target") if rows.documents is None else ("target", "source")
        raise ValueError(f"the {packed} is packed but the {other} has no documents; give both the numbers of theirs")
    return _view(_both(None, rows, memory), None, held)


def _both(allowed_BTS: Tensor | None, rows: Rows, keys: Rows) -> Tensor | None:
    """What is allowed, of real keys and of the query's own document only."""
    limits = [] if allowed_BTS is None else [allowed_BTS]
    if rows.documents is not None:
        limits.append(rows.documents[:, :, None] == keys.documents[:, None, :])
    if not keys.full:
        limits.append(keys.mask[:, None, :])
    return reduce(and_, limits) if limits else None


def _view(allowed_BTS: Tensor | None, bias_HTS: Tensor | None, held: bool) -> View:
    bias = None if bias_HTS is None else bias_HTS[None]
    if allowed_BTS is None:
        return View(held, addend=bias) if held else View(mask=bias)
    allowed = allowed_BTS[:, None]
    if not held:
        return View(mask=allowed if bias is None else bias.masked_fill(~allowed, -math.inf))
    lowest = torch.finfo(torch.float32).min
    addend = torch.zeros(allowed.shape, device=allowed.device) if bias is None else bias
    sighted = allowed.any(-1, keepdim=True)
    return View(True, addend=addend.masked_fill(~allowed, lowest), sighted=None if bool(sighted.all()) else sighted)


def _lower(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def lowered(hidden: Tensor) -> Tensor:
    """What autocast's products would turn it into; done once where several products read the same tensor."""
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden


class Attention(nn.Module):
    """Multi-head attention; a query that sees no key gets zeros.

    Args:
        width: D.
        heads: H of the queries.
        kv_heads: of keys and values; a divisor of H, each serves H / kv_heads queries.
        head_width: K.
        bias: of the four layers.
        dropout: of the attention.
        scale: of the logits.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_width: int, bias: bool, dropout: float, scale: float
    ):
        super().__init__()
        self.head_width, self.dropout, self.scale = head_width, dropout, scale
        self.grouped = kv_heads != heads
        self.query = nn.Linear(width, heads * head_width, bias)
        self.key = nn.Linear(width, kv_heads * head_width, bias)
        self.value = nn.Linear(width, kv_heads * head_width, bias)
        self.output = nn.Linear(heads * head_width, width, bias)
        self.watcher: Callable[[Heads], Callable[[Tensor], None] | None] | None = None

    def watch(self, watcher: Callable[[Heads], Callable[[Tensor], None] | None]) -> Callable[[], None]:
        """Show each call's heads to `watcher`, and its scores to what that returns; the result ends the watching.

        Scores (B, H, T, S) are shown scaled, with their bias, and at float32's minimum where a query may not look.
        """
        self.watcher = watcher
        return lambda: setattr(self, "watcher", None)

    def forward(
        self, hidden: Tensor, sees: View, turn: tuple[Tensor, Tensor] | None = None, memory: Tensor | None = None
    ) -> Tensor:
        """(B, T, D), and a memory (B, S, D) where keys and values are not the hidden states' own -> (B, T, D).

        A view that was made to be held holds the scores.
        """
        heads = self._heads(hidden, turn, memory)
        show = None if self.watcher is None else self.watcher(heads)
        if sees.held or show:
            sees = sees.hold(heads[1].shape[2], hidden.device)
            return self._dropped(heads, sees) if self._drops(sees, show) else self._held(heads, sees, None, show)[0]
        mixed_BHTK = F.scaled_dot_product_attention(
            *heads,
            attn_mask=sees.mask if sees.mask is None or sees.mask.dtype == torch.bool else sees.mask.to(heads[0].dtype),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=sees.causal,
            scale=self.scale,
            enable_gqa=self.grouped,
        )
        return self.output(mixed_BHTK.transpose(1, 2).flatten(2))

    def carried(
        self, hidden: Tensor, sees: View, turn: tuple[Tensor, Tensor] | None, scores: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same with the last layer's scores (B, H, T, T) added to the logits; also returns this layer's."""
        heads = self._heads(hidden, turn, None)
        return self._held(heads, sees, scores, None if self.watcher is None else self.watcher(heads))

    def _held(
        self, heads: Heads, sees: View, scores: Tensor | None, show: Callable[[Tensor], None] | None
    ) -> tuple[Tensor, Tensor]:
        query, key, value = self._repeated(heads)
        scores_BHTS = (query * self.scale) @ key.mT
        if scores is not None:
            scores_BHTS = scores_BHTS + scores
        logit_BHTS = scores_BHTS if sees.addend is None else scores_BHTS + sees.addend
        if show:
            show(logit_BHTS)
        share_BHTS = dropout(logit_BHTS.softmax(-1, dtype=torch.float32), self.dropout, self.training)
        mixed_BHTK = share_BHTS.to(value.dtype) @ value
        if sees.sighted is not None:
            mixed_BHTK = mixed_BHTK * sees.sighted
        return self.output(mixed_BHTK.transpose(1, 2).flatten(2)), scores_BHTS

    def _drops(self, sees: View, show: Callable[[Tensor], None] | None) -> bool:
        """Whether `_mixing.mix` may: nobody looks at the scores, and their bias has no gradient."""
        learned = sees.addend is not None and sees.addend.requires_grad
        on_cpu = self.query.weight.device.type == "cpu" and not torch.compiler.is_compiling()
        return self.training and 0 < self.dropout < 0.999 and on_cpu and not show and not learned

    def _dropped(self, heads: Heads, sees: View) -> Tensor:
        query, key, value = self._repeated(heads)
        mixed_BTHK = mix(*(x.transpose(1, 2) for x in (query, key, value)), sees.addend, self.scale, self.dropout)
        if sees.sighted is not None:
            mixed_BTHK = mixed_BTHK * sees.sighted.transpose(1, 2)
        return self.output(mixed_BTHK.flatten(2))

    def _repeated(self, heads: Heads) -> Heads:
        query, key, value = heads
        if self.grouped:
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        return query, key, value

    def _heads(self, hidden: Tensor, turn: tuple[Tensor, Tensor] | None, memory: Tensor | None) -> Heads:
        hidden = lowered(hidden)
        memory = hidden if memory is None else memory
        query, key, value = (
            layer(source).unflatten(-1, (-1, self.head_width))
            for layer, source in ((self.query, hidden), (self.key, memory), (self.value, memory))
        )
        if turn is not None:
            query, key = rotate(query, turn), rotate(key, turn)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def buckets(length: int, keys: int, count: int, distance: int, both: bool, device: torch.device | str) -> Tensor:
    """T5's bucket of each pair of places: (length, keys) int64.

    Half of the buckets are single distances, the other half grow by a factor up to `distance`; where a query looks
    both ways, each way has half of them. Distances are counted in places of the row, which within a document are those
    of its positions.

    >>> buckets(1, 6, count=4, distance=8, both=True, device="cpu")
    tensor([[0, 3, 3, 3, 3, 3]])
    """
    offset_TS = torch.arange(keys, device=device)[None] - torch.arange(length, device=device)[:, None]
    first = torch.zeros_like(offset_TS)
    if both:
        count //= 2
        first, offset_TS = (offset_TS > 0) * count, offset_TS.abs()
    else:
        offset_TS = (-offset_TS).clamp(min=0)
    single = count // 2
    ratio_TS = (offset_TS.clamp(min=single).float() / single).log() / math.log(distance / single)
    grown_TS = (single + (ratio_TS * (count - single)).long()).clamp(max=count - 1)
    return first + offset_TS.where(offset_TS < single, grown_TS)


def alibi(heads: int, length: int, device: torch.device | str) -> Tensor:
    """ALiBi's bias, minus a slope for each head times the distance: (heads, length, length).

    For a power of two H the slopes are 2^(-8/H), 2^(-16/H) ... 2^-8; otherwise those of the power below, then every
    second of the power above.

    >>> alibi(2, 2, "cpu")[:, 1]
    tensor([[-0.0625, -0.0000],
            [-0.0039, -0.0000]])
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2 ** (-4 * i / power) for i in range(1, 2 * (heads - power), 2)]
    place = torch.arange(length, device=device)
    return -torch.tensor(slopes, device=device)[:, None, None] * (place[None] - place[:, None]).abs()


def frequencies(head_width: int, theta: float, scaling: Mapping[str, float] | None = None) -> Tensor:
    """Radians a place of each of the K/2 pairs of a rotary head: theta^(-2i/K).

    Args:
        head_width: K.
        theta: base.
        scaling: as in LLaMA 3.1 (Grattafiori et al., 2024, arXiv:2407.21783): waves longer than `length` / `low` are
            stretched by `factor`, those shorter than `length` / `high` kept, those between interpolated.
    """
    radians = theta ** -(torch.arange(0, head_width, 2).float() / head_width)
    if scaling is None:
        return radians
    waves = scaling["length"] * radians / (2 * math.pi)  # in the original context
    kept = ((waves - scaling["low"]) / (scaling["high"] - scaling["low"])).clamp(0, 1)
    return radians * (kept + (1 - kept) / scaling["factor"])


def turns(positions_BT: Tensor, radians_I: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of a rotary head's angles, float32: (B, T, 1, K/2) each."""
    angle = positions_BT[:, :, None, None].float() * radians_I.to(positions_BT.device)
    return angle.cos(), angle.sin()


def rotate(heads_BTHK: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pair i, which is entries i and i + K/2 (the halves of transformers, not neighbours), by its angle."""
    cos, sin = turn
    first, second = heads_BTHK.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(heads_BTHK.dtype)
