"""A stack of Transformer layers, of an encoder or of a decoder.

after   x = norm(x + attend(x)),  x = norm(x + feed(x))                  Vaswani et al., 2017, arXiv:1706.03762
before  x = x + attend(norm(x)),  x = x + feed(norm(x)), a norm at last  Radford et al., 2019 (GPT-2)
"""

from collections.abc import Mapping

from torch import Tensor, nn

from models.components._attention import (
    Attention,
    View,
    alibi,
    buckets,
    cross_view,
    frequencies,
    lowered,
    turns,
    view,
)
from models.components._closest import refuse_unknown
from models.components._dropout import dropout
from models.components._feedforward import FeedForward
from models.components._norm import make_norm
from models.components._rows import Rows

__all__ = ["Layer", "Stack"]

POSITIONS = ("none", "relative", "rotary", "alibi")
MASKS = ("full", "causal", "prefix")
SCALING = ("factor", "low", "high", "length")


class Layer(nn.Module):
    """Self-attention, in a decoder cross-attention, and a feed-forward layer, each with its norm."""

    def __init__(
        self, attention: Attention, cross: Attention | None, feedforward: FeedForward, norms: list[nn.Module], **how
    ):
        super().__init__()
        self.attention, self.feedforward = attention, feedforward
        self.attention_norm, self.feedforward_norm = norms[0], norms[-1]
        if cross is not None:
            self.cross, self.cross_norm = cross, norms[1]
        self.norm_first, self.dropout, self.residual = how["norm_first"], how["dropout"], how["residual"]

    def forward(
        self,
        hidden: Tensor,
        sees: View,
        turn: tuple[Tensor, Tensor] | None = None,
        memory: Tensor | None = None,
        memory_sees: View | None = None,
        scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D), and the scores (B, H, T, T) for the next layer where they are carried."""

        def attend(x: Tensor) -> Tensor:
            nonlocal scores
            if not self.residual:
                return self.attention(x, sees, turn)
            x, scores = self.attention.carried(x, sees, turn, scores)
            return x

        hidden = self._add(hidden, attend, self.attention_norm)
        if memory is not None:
            hidden = self._add(hidden, lambda x: self.cross(x, memory_sees, memory=memory), self.cross_norm)
        return self._add(hidden, lambda x: self.feedforward(lowered(x)), self.feedforward_norm), scores

    def _add(self, hidden: Tensor, part, norm: nn.Module) -> Tensor:
        change = part(norm(hidden) if self.norm_first else hidden)
        change = dropout(change, self.dropout, self.training)
        return hidden + change if self.norm_first else norm(hidden + change)


class Stack(nn.Module):
    """Transformer layers.

    Args:
        width: D.
        layers: how many.
        heads: H, a divisor of D unless `head_width` is given.
        inner: width of the feed-forward layers.
        head_width: K; None for D / H.
        kv_heads: heads of keys and values, a divisor of H; None for H.
        mask: "full", "causal" or "prefix"; None for what this kind of stack needs.
        norm_first: norms before attention and feed-forward layers, not after.
        norm: "layer", "rms" or "t5".
        final_norm: a norm at last; None: where norms come first.
        gated: feed-forward layers with a gate.
        act: a name in `_feedforward.ACTIVATIONS`, such as "gelu", "gelu_tanh", "relu" or "silu".
        bias: of the linear layers.
        attention_bias: of attention's; None as `bias`.
        eps: of the norms.
        positions: "none", "relative" (T5), "rotary" or "alibi".
        buckets: of relative positions.
        distance: of relative positions: from here on all are one bucket.
        theta: base of rotary positions.
        scaling: of rotary positions: factor, low, high, length, as in LLaMA 3.1; None for none.
        scale: divide the logits by sqrt(K).
        layer_scale: divide those of layer i, from 1, by i as well (GPT-2 in Mistral's training).
        residual_attention: add each layer's scores to the next layer's (RealFormer); holds T x T scores.
        shared: one layer's weights for all (ALBERT: Lan et al., 2019, arXiv:1909.11942).
        dropout: of what each part adds.
        attention_dropout: None as `dropout`.
    """

    cross = False  # whether layers read a memory
    kind = "full"  # of mask, unless given

    def __init__(
        self,
        width: int,
        layers: int = 12,
        heads: int = 12,
        inner: int = 3072,
        head_width: int | None = None,
        kv_heads: int | None = None,
        mask: str | None = None,
        norm_first: bool = False,
        norm: str = "layer",
        final_norm: bool | None = None,
        gated: bool = False,
        act: str = "gelu",
        bias: bool = True,
        attention_bias: bool | None = None,
        eps: float = 1e-12,
        positions: str = "none",
        buckets: int = 32,
        distance: int = 128,
        theta: float = 10000.0,
        scaling: Mapping[str, float] | None = None,
        scale: bool = True,
        layer_scale: bool = False,
        residual_attention: bool = False,
        shared: bool = False,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
    ):
        super().__init__()
        self.mask = mask or self.kind
        refuse_unknown("mask", self.mask, MASKS, ValueError)
        refuse_unknown("positions", positions, POSITIONS, ValueError)
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        head_width, kv_heads = head_width or _divide(width, heads, "width"), kv_heads or heads
        _divide(heads, kv_heads, "heads")
        _refuse_illegal(self, positions, head_width, scaling, buckets, distance, shared and layer_scale)
        if attention_dropout is None:
            attention_dropout = dropout
        if attention_bias is None:
            attention_bias = bias
        for rate in (dropout, attention_dropout):
            if not 0 <= rate <= 1:
                raise ValueError(f"dropout must be in 0..1, got {rate}")
        self.residual, self.attention_dropout = residual_attention, attention_dropout
        self.depth, self.heads, self.positions = layers, heads, positions
        self.buckets, self.distance = buckets, distance

        def layer(number: int) -> Layer:
            factor = (head_width**-0.5 if scale else 1.0) / (number if layer_scale else 1)
            shape = (width, heads, kv_heads, head_width, attention_bias, attention_dropout, factor)
            return Layer(
                Attention(*shape),
                Attention(*shape) if self.cross else None,
                FeedForward(width, inner, act, gated, bias),
                [make_norm(norm, width, eps) for _ in range(2 + self.cross)],
                norm_first=norm_first,
                dropout=dropout,
                residual=residual_attention,
            )

        self.layers = nn.ModuleList(layer(number) for number in range(1, (1 if shared else layers) + 1))
        self.norm = make_norm(norm, width, eps) if (norm_first if final_norm is None else final_norm) else None
        self.relative = nn.Embedding(buckets, heads) if positions == "relative" else None
        self.rotary = (head_width, theta, scaling) if positions == "rotary" else None

    def run(self, hidden: Tensor, rows: Rows, memory: Tensor | None = None, memory_rows: Rows | None = None) -> Tensor:
        """(B, T, D) through all layers; a memory (B, S, D) for those that cross."""
        # with dropout torch's attention on CPU holds the scores as well, and drops them slowly
        held = self.residual or (self.training and self.attention_dropout > 0 and hidden.device.type == "cpu")
        sees = view(rows, self.mask, self._bias(rows), held)
        turn = None if self.rotary is None else turns(rows.places, frequencies(*self.rotary))
        memory_sees = scores = None
        if memory is not None:
            memory, memory_sees = lowered(memory), cross_view(rows, memory_rows, held)
        for number in range(self.depth):
            layer = self.layers[number % len(self.layers)]
            hidden, scores = layer(hidden, sees, turn, memory, memory_sees, scores)
        return hidden if self.norm is None else self.norm(hidden)

    def _bias(self, rows: Rows) -> Tensor | None:
        length, device = rows.mask.shape[1], rows.mask.device
        if self.positions == "alibi":
            return alibi(self.heads, length, device)
        if self.positions == "relative":
            both = self.mask != "causal"
            bucket_TS = buckets(length, length, self.buckets, self.distance, both, device)
            return self.relative(bucket_TS).permute(2, 0, 1)
        return None


def _divide(whole: int, part: int, what: str) -> int:
    if part < 1 or whole % part:
        name = "heads" if what == "width" else "kv_heads"
        raise ValueError(f"{name} {part} does not divide {what} {whole}")
    return whole // part


def _refuse_illegal(stack: Stack, positions: str, head_width: int, scaling, count: int, distance: int, both) -> None:
    if stack.cross and stack.mask != "causal":
        raise ValueError(f"a decoder writes from left to right: its mask is causal, not {stack.mask}")
    if both:
        raise ValueError("layer_scale divides by the layer's number, which shared layers do not have; drop one of them")
    if positions == "rotary" and head_width % 2:
        raise ValueError(f"rotary positions turn pairs, but a head is {head_width} wide")
    if scaling is not None:
        if positions != "rotary":
            raise ValueError(f"scaling stretches rotary positions, but positions is {positions}")
        if set(scaling) != set(SCALING):
            raise ValueError(f"scaling needs {', '.join(SCALING)}; got {', '.join(scaling) or 'none'}")
    ways = 2 if stack.mask != "causal" else 1
    if positions == "relative" and (count < 2 * ways or count % ways or distance <= count // ways // 2):
        raise ValueError(f"{count} buckets up to distance {distance} are too few, or more than there are distances")
