"""Rules: which tensor of a file is which of ours, moved without arithmetic, so that both ways are exact."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Rule", "computed", "fused", "layers", "linear", "same", "turned", "viewed", "zeros"]

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Rule:
    """Some tensors of a file and the tensors of ours that hold the same numbers; `here` and `back` move them."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    here: Callable[..., Tensors]
    back: Callable[..., Tensors]


def same(theirs: str, ours: str) -> Rule:
    """One tensor under two names."""
    return Rule((theirs,), (ours,), lambda x: (x,), lambda x: (x,))


def turned(theirs: str, ours: str) -> Rule:
    """A matrix that the file keeps as (in, out) and we, as nn.Linear, as (out, in)."""
    return Rule((theirs,), (ours,), lambda x: (x.mT.contiguous(),), lambda x: (x.mT.contiguous(),))


def viewed(theirs: str, ours: str, file: Sequence[int], model: Sequence[int]) -> Rule:
    """The same numbers in the same order in another shape; -1 stands for the one size that is not known.

    >>> rule = viewed("embeddings.cls_token", "embedding.patch.cls", (1, 1, -1), (-1,))
    >>> rule.here(torch.zeros(1, 1, 3))[0].shape, rule.back(torch.zeros(3))[0].shape
    (torch.Size([3]), torch.Size([1, 1, 3]))
    """
    return Rule((theirs,), (ours,), lambda x: (x.reshape(tuple(model)),), lambda x: (x.reshape(tuple(file)),))


def fused(theirs: str, ours: Sequence[str], heads: int | None = None, turn: bool = False) -> Rule:
    """Query, key and value as one tensor of a file: three blocks of rows, or, with `heads`, three blocks in each head.

    Args:
        heads: of the interleaved layout (BLOOM).
        turn: the file keeps (in, out) (GPT-2).
    """

    def here(x: Tensor) -> Tensors:
        x = x.mT if turn and x.dim() == 2 else x
        x = x.unflatten(0, (heads or 1, 3, -1))
        return tuple(x[:, i].flatten(0, 1).contiguous() for i in range(3))

    def back(*parts: Tensor) -> Tensors:
        x = torch.stack([part.unflatten(0, (heads or 1, -1)) for part in parts], 1).flatten(0, 2)
        return ((x.mT if turn and x.dim() == 2 else x).contiguous(),)

    return Rule((theirs,), tuple(ours), here, back)


def computed(theirs: str, make: Callable[[], Tensor]) -> Rule:
    """A table that the file spells out and we compute.

    Raises:
        ValueError: the file's numbers are others (on reading).
    """

    def here(x: Tensor) -> Tensors:
        if x.shape != (table := make()).shape or not torch.allclose(x.float(), table, rtol=0, atol=1e-4):
            raise ValueError(f"{theirs} {tuple(x.shape)} is not the fixed table of sinusoids {tuple(table.shape)}")
        return ()

    return Rule((theirs,), (), here, lambda: (make(),))


def zeros(theirs: str, shape: Sequence[int]) -> Rule:
    """A tensor of the file that ours has no place for, since it is nothing but zeros.

    Raises:
        ValueError: it is something else (on reading).
    """

    def here(x: Tensor) -> Tensors:
        if x.any():
            raise ValueError(f"{theirs} is not zero, and the recipe has no place for it")
        return ()

    return Rule((theirs,), (), here, lambda: (torch.zeros(*shape),))


def linear(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    """Weight and, if there is one, bias: of a linear layer or a norm."""
    return [same(f"{theirs}.{part}", f"{ours}.{part}") for part in (("weight", "bias") if bias else ("weight",))]


def layers(count: int, theirs: str, ours: str, table: Mapping[str, str], bias: bool = True) -> list[Rule]:
    """Linear layers and norms of `count` layers.

    Args:
        theirs: where the layers are, with {} for the number of one.
        ours: alike.
        table: our name in a layer -> the file's.
        bias: whether they have one.
    """
    return [
        rule
        for i in range(count)
        for mine, name in table.items()
        for rule in linear(f"{theirs.format(i)}.{name}", f"{ours.format(i)}.{mine}", bias)
    ]
