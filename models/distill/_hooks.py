"""Collecting what a model shows: only what was asked for, from any transformers model and from our own components.

Layers and norms are read by forward hooks. Queries, keys and values are read where every transformers model hands them
over, its attention function, and in ours where Attention splits its heads; both after rotary turns. A layer whose
scores nobody wants keeps the fused kernel. The hooks live inside `watch`: wants may change from step to step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from models.components._attention import Attention
from models.components._model import Model
from models.distill._signals import LISTS, Signals

__all__ = ["Seen", "depth", "watch"]

ATTENTION = "rootstock"  # the name of our attention function in transformers
HEADS = ("query", "key", "value")


@dataclass(frozen=True)
class Places:
    """Where a family of models keeps what we read; paths from its body (transformers' base_model)."""

    layers: str  # a list of layers; a shared layer is called again and again
    embedding: str  # its output is level 0, unless norms come first
    norm: str | None = None  # within a layer: the norm before attention; None where norms come after
    final: str | None = None  # the norm at last, where norms come first


BERT = Places("encoder.layer", "embeddings")
FAMILIES = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "distilbert": Places("transformer.layer", "embeddings"),
    "albert": Places("encoder.albert_layer_groups.0.albert_layers", "encoder.embedding_hidden_mapping_in"),
    "gpt2": Places("h", "drop", "ln_1", "ln_f"),
    "llama": Places("layers", "embed_tokens", "input_layernorm", "norm"),
    "t5": Places("encoder.block", "encoder.embed_tokens", "layer.0.layer_norm", "encoder.final_layer_norm"),
}


class Seen:
    """What a forward pass inside `watch` left: attributes named as in Signals."""

    def __init__(self, depth: int):
        self.embedding: Tensor | None = None
        for name in LISTS:
            setattr(self, name, [None] * depth)

    def signals(self, mask: Tensor, **more: Any) -> Signals:
        """Everything seen; `mask` (B, T) bool, and what the caller knows besides: logits, task, hard."""
        kept = {name: getattr(self, name) for name in LISTS if any(x is not None for x in getattr(self, name))}
        return Signals(mask=mask, embedding=self.embedding, **kept, **more)


def depth(model: nn.Module) -> int:
    """Number of layers that are run, shared ones counted each time."""
    if isinstance(model, Model):
        return model.encoder.depth
    return model.config.num_hidden_layers


@contextmanager
def watch(model: nn.Module, wanted: Mapping[str, Sequence[int]]) -> Iterator[Seen]:
    """Collect signals of the forward passes inside the block; the last pass counts.

    Args:
        model: a transformers model of a family listed here, or ours with a transformer encoder.
        wanted: layer numbers from 0, by the name of a list of Signals; "embedding" with any.

    Raises:
        LookupError: this architecture does not show such a signal, or is not known.
        ValueError: a layer number it does not have.
    """
    layers = depth(model)
    wanted = {name: set(numbers) for name, numbers in wanted.items() if name in LISTS or name == "embedding"}
    for name, numbers in wanted.items():
        if name in LISTS and (wrong := sorted(n for n in numbers if not 0 <= n < layers)):
            raise ValueError(f"{name} of layers {wrong} was asked for, but the model has {layers} layers, from 0")
    seen = Seen(layers)
    with ExitStack() as hooks:
        ours = isinstance(model, Model)
        _watch_levels(model, wanted, seen, hooks, *(_our_places(model) if ours else _their_places(model)))
        if any(wanted.get(name) for name in (*HEADS, "scores")):
            (_watch_our_heads if ours else _watch_their_heads)(model, wanted, seen, layers, hooks)
        yield seen


def _watch_levels(
    model: nn.Module, wanted: Mapping, seen: Seen, hooks: ExitStack, body: nn.Module, places: Places
) -> None:
    """Hooks for level 0 and the levels after each wanted layer, see Signals."""
    layers, first = body.get_submodule(places.layers), places.norm is not None
    numbers = {n + 1 for n in wanted.get("hidden", ())} | ({0} if "embedding" in wanted else set())

    def keep(level: int, output) -> None:
        state = output[0] if isinstance(output, tuple) else output
        if level:
            seen.hidden[level - 1] = state
        else:
            seen.embedding = state

    total = len(seen.hidden)
    at: dict[nn.Module, list[int]] = {}  # module -> the level that each of its calls leaves
    if first:
        for number in range(total):
            at.setdefault(layers[number % len(layers)].get_submodule(places.norm), []).append(number)
        at[body.get_submodule(places.final)] = [total]
    else:
        at[body.get_submodule(places.embedding)] = [0]
        for number in range(total):
            at.setdefault(layers[number % len(layers)], []).append(number + 1)
    for module, levels in at.items():
        if numbers & set(levels):
            hooks.callback(module.register_forward_hook(_counted(levels, numbers, keep)).remove)


def _counted(levels: list[int], numbers: set[int], keep: Callable[[int, Any], None]) -> Callable:
    """A hook that knows which call of a shared module it sees."""
    calls = 0

    def hook(module, inputs, output) -> None:
        nonlocal calls
        level = levels[calls % len(levels)]
        calls += 1
        if level in numbers:
            keep(level, output)

    return hook


def _our_places(model: Model) -> tuple[nn.Module, Places]:
    stack = model.encoder
    if not hasattr(stack, "layers"):
        raise LookupError(
            f"a {type(stack).__name__} encoder shows no layers; distil from a transformer, or use its logits"
        )
    first = stack.layers[0].norm_first
    return model, Places("encoder.layers", "embedding", *(("attention_norm", "encoder.norm") if first else ()))


def _their_places(model: nn.Module) -> tuple[nn.Module, Places]:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise LookupError(f"{kind} is not known here; add its places to FAMILIES, which has: {', '.join(FAMILIES)}")
    return model.base_model, FAMILIES[kind]


def _watch_our_heads(model: Model, wanted: Mapping, seen: Seen, layers: int, hooks: ExitStack) -> None:
    at: dict[Attention, list[int]] = {}
    for number in range(layers):
        at.setdefault(model.encoder.layers[number % len(model.encoder.layers)].attention, []).append(number)
    for attention, numbers in at.items():
        if any(wanted.get(name, set()) & set(numbers) for name in (*HEADS, "scores")):
            hooks.callback(attention.watch(_head_keeper(numbers, wanted, seen)))


def _watch_their_heads(model: nn.Module, wanted: Mapping, seen: Seen, layers: int, hooks: ExitStack) -> None:
    _register()
    kept = _head_keeper(list(range(layers)), wanted, seen)
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        hooks.callback(setattr, config, "_attn_implementation", config._attn_implementation)
        config._attn_implementation = ATTENTION
    KEEPERS.append(kept)
    hooks.callback(KEEPERS.pop)


def _head_keeper(numbers: list[int], wanted: Mapping, seen: Seen) -> Callable:
    """Called for each attention in order; returns where to put this layer's scores, None where nobody wants them."""
    calls = 0

    def keep(heads: tuple[Tensor, Tensor, Tensor]) -> Callable[[Tensor], None] | None:
        nonlocal calls
        number = numbers[calls % len(numbers)]
        calls += 1
        for name, tensor in zip(HEADS, heads, strict=True):
            if number in wanted.get(name, ()):
                getattr(seen, name)[number] = tensor
        if number in wanted.get("scores", ()):
            return lambda scores: seen.scores.__setitem__(number, scores)
        return None

    return keep


KEEPERS: list[Callable] = []  # of the models being watched, the innermost last


@cache
def _register() -> None:
    """Make our attention function known to transformers; it needs the same masks as torch's."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **more):
    """transformers' attention, showing its heads; scores (B, H, T, T) are formed only where they are wanted."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    put = KEEPERS[-1]((query, key, value))
    if put is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **more
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.mT
    if (bias := more.get("position_bias")) is not None:
        scores = scores + bias
    lowest = torch.finfo(scores.dtype).min
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if attention_mask is None and causal and query.shape[2] > 1:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None:
        boolean = attention_mask.dtype == torch.bool
        scores = scores.masked_fill(~attention_mask, lowest) if boolean else scores + attention_mask
    put(scores)
    share = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    mixed = nn.functional.dropout(share, dropout, module.training) @ value
    return mixed.transpose(1, 2).contiguous(), None
