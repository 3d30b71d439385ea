"""A BERT with compactors in all its linear layers: which dimensions are one group, how it trains, what it merges to.

Source: Wu et al., 2023 (WID), arXiv:2305.09098.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from models.components._model import Model, assemble
from models.components.encoder.transformer import Transformer
from models.distill._compactor import CompactLinear, CompactNorm, Compactor, Group, multiply
from models.distill._signals import Shape

__all__ = ["READERS", "Compactors"]

LINEAR = {  # the group that a layer's linear map reads, and the one it writes
    "attention.query": ("states", "attention"),
    "attention.key": ("states", "attention"),
    "attention.value": ("states", "attention"),
    "attention.output": ("attention", "states"),
    "feedforward.inner": ("states", "inner"),
    "feedforward.outer": ("inner", "states"),
}
NORMS = ("attention_norm", "feedforward_norm")
READERS = ("attention_query", "attention_key", "attention_value", "feedforward_inner")  # of the states


class Compactors(nn.Module):
    """All compactors of a BERT and their groups; the states between layers are one group of the whole model.

    Args:
        shape: of the model; without a vocabulary it has no masked-word head.
        inner: width of its feed-forward layers.
        heads: of the narrow model; fewer than the model's where whole heads are lost.
        cut: whether lost dimensions leave the forward pass at once.
    """

    def __init__(self, shape: Shape, inner: int, heads: int, cut: bool):
        super().__init__()
        self.shape, self.inner, self.heads, width = shape, inner, heads, shape.width
        self.states = Group(width, cut)
        self.attention = nn.ModuleList(Group(width, cut) for _ in range(shape.layers))
        self.feedforward = nn.ModuleList(Group(inner, cut) for _ in range(shape.layers))
        self.words = Group(width, cut) if shape.vocabulary else None
        self.embedding = Compactor(writes=self.states)
        self.layers = nn.ModuleList(self._layer(number) for number in range(shape.layers))
        if self.words is not None:
            self.transform, self.head = Compactor(self.states, self.words), Compactor(reads=self.words)

    def _layer(self, number: int) -> nn.ModuleDict:
        groups = {"states": self.states, "attention": self.attention[number], "inner": self.feedforward[number]}
        return nn.ModuleDict(
            {name.replace(".", "_"): Compactor(*(groups[end] for end in ends)) for name, ends in LINEAR.items()}
        )

    def groups(self) -> Iterator[tuple[str, Group]]:
        """Each group once, after its kind."""
        yield "states", self.states
        yield from (("attention", group) for group in self.attention)
        yield from (("inner", group) for group in self.feedforward)
        if self.words is not None:
            yield "words", self.words

    def masks(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each compactor's matrices with a mask of what lasts, which broadcasts over them."""
        for module in self.modules():
            if isinstance(module, Compactor):
                yield from module.masks()

    def vectors(self, model: Model) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Biases, and weights and biases of norms, of the model, with masks of what lasts."""
        for _, linear, compactor in self._linears(model):
            if linear.bias is not None:
                yield linear.bias, compactor.groups[1].kept
        for name, group in self._norms():
            norm = model.get_submodule(name)
            yield from ((norm.weight, group.kept), (norm.bias, group.kept))

    def attach(self, model: Model) -> Model:
        """Put the compactors into the model, in place; see WID.attach."""
        self._refuse(model)
        for name, linear, compactor in list(self._linears(model)):
            _put(model, name, CompactLinear(linear, compactor))
        ends = {"embedding.norm": {"before": self.embedding}}
        if self.words is not None:
            ends["targets.mlm.norm"] = {"after": self.head}
        for name, group in self._norms():
            _put(model, name, CompactNorm(model.get_submodule(name), group, **ends.get(name, {})))
        if self.heads == self.shape.heads:
            for layer, group in zip(model.encoder.layers, self.attention, strict=True):
                layer.attention.register_forward_pre_hook(_HeadWidth(group, self.heads))
        return model

    def _linears(self, model: Model) -> Iterator[tuple[str, nn.Linear, Compactor]]:
        for number, compactors in enumerate(self.layers):
            for name in LINEAR:
                path = f"encoder.layers.{number}.{name}"
                yield path, model.get_submodule(path), compactors[name.replace(".", "_")]
        if self.words is not None:
            yield "targets.mlm.transform", model.get_submodule("targets.mlm.transform"), self.transform

    def _norms(self) -> Iterator[tuple[str, Group]]:
        yield "embedding.norm", self.states
        yield from ((f"encoder.layers.{i}.{name}", self.states) for i in range(self.shape.layers) for name in NORMS)
        if self.words is not None:
            yield "targets.mlm.norm", self.words

    def _refuse(self, model: Model) -> None:
        shape, stack = self.shape, model.encoder
        if not isinstance(stack, Transformer) or (len(stack.layers), stack.heads) != (shape.layers, shape.heads):
            raise ValueError(f"the encoder is not a Transformer of {shape.layers} layers with {shape.heads} heads each")
        if stack.layers[0].norm_first or stack.norm is not None or stack.positions != "none" or stack.residual:
            raise ValueError("WID narrows a BERT: norms after each layer, positions in the embedding, plain scores")
        if isinstance(model.embedding.norm, CompactNorm):
            raise ValueError("this model has compactors already; attach to a fresh copy of the teacher")
        if (self.words is None) == ("mlm" in model.targets):
            raise ValueError(
                f"the shape has a vocabulary of {shape.vocabulary} and the model the targets "
                f"{', '.join(model.targets)}; a masked-word head needs both, other targets neither"
            )
        wanted, other = self._shapes(), []
        for name, parameter in model.named_parameters(remove_duplicate=False):
            fits = tuple(parameter.shape) == wanted.pop(name, None)
            table = name in {f"embedding.{part}.weight" for part in model.embedding.names}
            if not fits and not (table and parameter.shape[1:] == (shape.width,)):
                other.append(f"{name} {tuple(parameter.shape)}")
        lacks = [name for name in wanted if not (name.endswith(".bias") and "norm" not in name)]
        if lacks or other:
            raise ValueError(
                f"WID narrows a BERT of width {shape.width} and {self.inner} in its feed-forward layers; this model "
                f"lacks {_listed(lacks)}, and has what would keep its width: {_listed(other)}"
            )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all parameters that get narrower, tables apart."""
        width = self.shape.width
        sizes = {"states": width, "attention": width, "inner": self.inner}
        shapes = {name: (width,) for name, _ in self._norms()}
        for layer in range(self.shape.layers):
            at = f"encoder.layers.{layer}"
            shapes |= {f"{at}.{name}": (sizes[writes], sizes[reads]) for name, (reads, writes) in LINEAR.items()}
        if self.words is not None:
            shapes["targets.mlm.transform"] = (width, width)
            shapes["targets.mlm.head"] = (self.shape.vocabulary, width)
        weights = {f"{name}.weight": shape for name, shape in shapes.items()}
        return weights | {f"{name}.bias": shape[:1] for name, shape in shapes.items()}

    @torch.no_grad()
    def merge(self, model: Model, recipe: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
        """The model of the kept dimensions, worked out in float64, and its recipe."""
        states, inner = (int(group.kept.sum()) for group in (self.states, self.feedforward[0]))
        told = deepcopy(dict(recipe)) | {"width": states, "tie": False}
        told["encoder"]["transformer"] |= {"heads": self.heads, "inner": inner}
        with torch.device("meta"):
            narrow = assemble(told)
        like = model.embedding.norm.weight
        narrow = narrow.to(like.dtype).to_empty(device=like.device)
        narrow.load_state_dict(self._merged(model))
        return narrow.train(model.training), told

    def _query_scale(self) -> float:
        """Scores were divided by the root of the wide head's width; the narrow model divides by that of its own."""
        narrow, wide = int(self.states.kept.sum()) / self.heads, self.shape.width / self.shape.heads
        return (narrow / wide) ** 0.5

    def _merged(self, model: Model) -> dict[str, Tensor]:
        state, merged = {name: tensor.double() for name, tensor in model.state_dict().items()}, {}
        embedding = self.embedding.right.double()[self.states.kept]
        for part in model.embedding.names:
            merged[f"embedding.{part}.weight"] = state[f"embedding.{part}.weight"] @ embedding.T
        for name, linear, compactor in self._linears(model):
            reads, writes = (group.kept for group in compactor.groups)
            right, left = compactor.right.double()[writes], compactor.left.double()[:, reads]
            right = right * self._query_scale() if name.endswith("attention.query") else right
            merged[f"{name}.weight"] = multiply(right, state[f"{name}.weight"], left)
            if linear.bias is not None:
                merged[f"{name}.bias"] = right @ state[f"{name}.bias"]
        for name, group in self._norms():
            merged |= {f"{name}.{one}": state[f"{name}.{one}"][group.kept] for one in ("weight", "bias")}
        if self.words is not None:
            head = self.head.left.double()[:, self.words.kept]
            merged["targets.mlm.head.weight"] = state["targets.mlm.head.weight"] @ head
            merged["targets.mlm.head.bias"] = state["targets.mlm.head.bias"]
        return merged


class _HeadWidth:
    """A hook that tells attention how wide its heads are, which follows the masks, also those of a resumed run."""

    def __init__(self, group: Group, heads: int):
        self.group, self.heads = group, heads

    def __call__(self, attention: nn.Module, inputs: tuple) -> None:
        flows = self.group.flows
        attention.head_width = (self.group.width if flows is None else len(flows)) // self.heads


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, module)


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
