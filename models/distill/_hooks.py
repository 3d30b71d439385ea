"""Collecting what a model shows: only what was asked for, from any transformers model and from our own components.

Layers and norms are read by forward hooks. Queries, keys and values are read where every transformers model hands them
over, its attention function, and in ours where Attention splits its heads; both after rotary turns. A layer whose
scores nobody wants keeps the fused kernel. The hooks live inside `watch`: wants may change from step to step. `inside`
is its counterpart for methods that change what flows through a model.
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

__all__ = ["Seen", "depth", "edits_of", "inside", "watch"]

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


def edits_of(edits: Mapping[str, Any], who: str) -> dict[str, Any]:
    """The edits of one model, "student" or "teacher", by place within it."""
    return {place.removeprefix(f"{who}."): edit for place, edit in edits.items() if place.startswith(f"{who}.")}


@contextmanager
def inside(
    model: nn.Module, edits: Mapping[str, Any], mask: Tensor | None = None, lender: nn.Module | None = None
) -> Iterator[None]:
    """Act inside the forward passes of the block; what `watch` sees within it is what the edits left.

    Args:
        model: as for `watch`.
        edits: by place. "embedding" and "output.<i>", the state that leaves the embedding and layer i from 0 (where
            norms come first: not yet normalised): a function of that state (B, T, D) and the mask, which returns
            another. "layer.<i>": numbers of the lender's layers that are run, one after the other, in place of it.
        mask: (B, T) bool, for these functions.
        lender: of the same family and width.

    Raises:
        LookupError: no such place; layers to be borrowed, but nobody lends them; an architecture not known, or one
            whose layers hand each other more than states.
        ValueError: a layer number that model or lender does not have.
    """
    body, places = _our_places(model) if isinstance(model, Model) else _their_places(model)
    layers, count = body.get_submodule(places.layers), depth(model)
    outputs, borrowed = {}, {}
    for place, edit in edits.items():
        kind, _, number = place.partition(".")
        if place != "embedding" and (kind not in ("layer", "output") or not number.isdecimal()):
            raise LookupError(f"no place {place!r} inside a model; there are embedding, layer.<i> and output.<i>")
        if number and int(number) >= count:
            raise ValueError(f"{place} is to be changed, but the model has {count} layers, from 0")
        if kind != "embedding":
            (borrowed if kind == "layer" else outputs)[int(number)] = edit
    with ExitStack() as hooks:
        if borrowed:
            _lend(model, layers, borrowed, lender, hooks)
        for index, layer in enumerate(layers):
            numbers = list(range(index, count, len(layers)))
            if set(numbers) & set(outputs):
                hooks.callback(layer.register_forward_hook(_changer(numbers, outputs, mask)).remove)
        if "embedding" in edits:
            at = body.get_submodule(places.embedding)
            hooks.callback(at.register_forward_hook(_changer([0], {0: edits["embedding"]}, mask)).remove)
        yield


def _changer(numbers: list[int], edits: Mapping[int, Callable], mask: Tensor | None) -> Callable:
    """A hook that changes the state a module leaves; a shared module is known by how often it was called."""
    calls = 0

    def hook(module, inputs, output):
        nonlocal calls
        edit = edits.get(numbers[calls % len(numbers)])
        calls += 1
        if edit is None:
            return None
        return (edit(output[0], mask), *output[1:]) if isinstance(output, tuple) else edit(output, mask)

    return hook


def _lend(model: nn.Module, layers, borrowed: Mapping[int, Sequence[int]], lender, hooks: ExitStack) -> None:
    """Run the lender's layers where the model's would run; hooks of the model's layers still see what leaves."""
    if lender is None:
        raise LookupError(f"layers {sorted(borrowed)} are to be borrowed, but no model lends its layers")
    kinds = ["ours" if isinstance(one, Model) else one.config.model_type for one in (model, lender)]
    if kinds[0] != kinds[1]:
        raise LookupError(f"a {kinds[0]} model cannot run the layers of a {kinds[1]} model; take one family for both")
    if kinds[0] == "t5" or getattr(layers[0], "residual", False):
        raise LookupError("these layers hand each other their scores or positions, so that none can be replaced")
    body, places = _our_places(lender) if kinds[0] == "ours" else _their_places(lender)
    theirs, count = body.get_submodule(places.layers), depth(lender)
    for numbers in borrowed.values():
        if wrong := sorted(n for n in numbers if not 0 <= n < count):
            raise ValueError(f"layers {wrong} are to be borrowed, but the lender has {count} layers, from 0")
    if kinds[0] != "ours" and getattr(model.config, "use_cache", False):
        hooks.callback(setattr, model.config, "use_cache", True)
        model.config.use_cache = False  # a cache goes by layer number, which two models' layers share
    for index, layer in enumerate(layers):
        numbers = list(range(index, depth(model), len(layers)))
        if set(numbers) & set(borrowed):
            lent = {i: [theirs[n % len(theirs)] for n in borrowed[i]] for i in numbers if i in borrowed}
            layer.forward = _borrower(layer.forward, numbers, lent)
            hooks.callback(delattr, layer, "forward")


def _borrower(own: Callable, numbers: list[int], lent: Mapping[int, list[nn.Module]]) -> Callable:
    calls = 0

    def forward(hidden, *rest, **more):
        nonlocal calls
        number = numbers[calls % len(numbers)]
        calls += 1
        if number not in lent:
            return own(hidden, *rest, **more)
        for layer in lent[number]:
            output = layer(hidden, *rest, **more)
            hidden = output[0] if isinstance(output, tuple) else output
        return output

    return forward


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
