"""A student drawn from its teacher's recipe: fewer layers, narrower, and what it starts from.

    cut         the teacher's first layers; of wider tensors the leading entries along each axis
    [2, 4, 6]   these layers of the teacher, counted from 1; the rest as in a cut
    random      weights drawn anew

Source: Tan et al., 2023, arXiv:2306.06629 (the cut); chosen layers: Sanh et al., 2019, arXiv:1910.01108.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from models.components._model import Model, assemble
from models.distill._signals import Shape

__all__ = ["STARTS", "new_student", "shape_of", "student_recipe"]

STARTS = ("cut", "random")
LAYERS = "encoder.layers."  # how the state's names of a layer begin


def shape_of(recipe: Mapping[str, Any]) -> Shape:
    """Sizes of a model of components.

    Raises:
        LookupError: its encoder is no transformer, so it has no layers to distil from or into.
    """
    encoder = _encoder(recipe)
    words = {"mlm", "lm"} & set(recipe["target"])
    classes = (recipe["target"].get("cls") or {}).get("labels", 2) if "cls" in recipe["target"] else 0
    return Shape(encoder["layers"], recipe["width"], encoder["heads"], recipe["vocabulary"] if words else 0, classes)


def student_recipe(
    recipe: Mapping[str, Any],
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    inner: int | None = None,
) -> dict[str, Any]:
    """The teacher's recipe with other sizes.

    Args:
        recipe: of the teacher.
        layers: of the student; None for as many as the teacher has.
        width: of its states; None for the teacher's.
        heads: None for as many as the teacher has.
        inner: width of its feed-forward layers; None for the teacher's, in proportion to the width.

    Raises:
        LookupError: see `shape_of`.
        ValueError: a size that is no whole number; more layers than the teacher has, or wider; heads that do not divide
            the width.
    """
    encoder, own = _encoder(recipe), recipe["width"]
    given = {"layers": layers, "width": width, "heads": heads, "inner": inner}
    if wrong := [f"{name} {size!r}" for name, size in given.items()
                 if size is not None and (not isinstance(size, int) or size < 1)]:  # fmt: skip
        raise ValueError(f"a student's sizes are whole numbers from 1 on; got {', '.join(wrong)}")
    layers, width, heads = layers or encoder["layers"], width or own, heads or encoder["heads"]
    if layers > encoder["layers"]:
        raise ValueError(f"the student is to have {layers} layers, the teacher has {encoder['layers']}: 1 to as many")
    if width > own:
        raise ValueError(f"the student is to be {width} wide, the teacher is {own}: 1 to as wide")
    if width % heads:
        raise ValueError(f"{heads} heads do not divide the student's width {width}; set heads, or another width")
    small = deepcopy(dict(recipe))
    small["width"] = width
    sizes = {"layers": layers, "heads": heads}
    if inner or "inner" in encoder:
        sizes["inner"] = inner or max(1, round(encoder["inner"] * width / own))
    small["encoder"] = {"transformer": {**encoder, **sizes}}
    return small


def new_student(recipe: Mapping[str, Any], start: str | Sequence[int], teacher: Mapping[str, Tensor]) -> Model:
    """Assemble the student, and give it what it starts from.

    Args:
        recipe: of the student.
        start: one of STARTS, or as many of the teacher's layers as the student has, counted from 1 and rising.
        teacher: the teacher's state.

    Raises:
        ValueError: there is no such start; the cut needs a tensor that the teacher does not have, or a larger one.
    """
    if start not in STARTS and not isinstance(start, list | tuple | range):
        raise ValueError(f"a student starts as one of {', '.join(STARTS)}, or as a list of its teacher's layers, such "
                         f"as [2, 4, 6]; got {start!r}")  # fmt: skip
    model = assemble(recipe)
    if start == "random":
        return model
    if start != "cut":
        teacher = _with_layers(teacher, start, _encoder(recipe)["layers"])
    own = model.state_dict()
    if odd := [name for name, tensor in own.items() if not _fits(tensor, teacher.get(name))]:
        raise ValueError(f"the teacher has no tensors to cut {', '.join(odd[:5])} from ({len(odd)} in all)")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(teacher[name][tuple(slice(size) for size in tensor.shape)])
    return model


def _with_layers(state: Mapping[str, Tensor], chosen: Sequence[int], wanted: int) -> dict[str, Tensor]:
    """A teacher's state with these of its layers alone, numbered anew.

    Raises:
        ValueError: not `wanted` different layers that the teacher has, in rising order.
    """
    there = 1 + max((int(name.split(".")[2]) for name in state if name.startswith(LAYERS)), default=-1)
    rising = all(type(number) is int for number in chosen) and list(chosen) == sorted(set(chosen))
    if len(chosen) != wanted or not rising or not 1 <= chosen[0] <= chosen[-1] <= there:
        raise ValueError(
            f"student.start names {len(chosen)} layers, {list(chosen)}; it takes {wanted} of the teacher's layers 1 to "
            f"{there}, one for each of the student's, in rising order and none twice; name others, or write cut"
        )
    new = {str(old - 1): str(place) for place, old in enumerate(chosen)}
    kept = {}
    for name, tensor in state.items():
        number, _, rest = name.removeprefix(LAYERS).partition(".")
        if not name.startswith(LAYERS):
            kept[name] = tensor
        elif number in new:
            kept[f"{LAYERS}{new[number]}.{rest}"] = tensor
    return kept


def _fits(small: Tensor, large: Tensor | None) -> bool:
    return (
        large is not None
        and small.ndim == large.ndim
        and all(a <= b for a, b in zip(small.shape, large.shape, strict=True))
    )


def _encoder(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the transformer encoder."""
    ((kind, settings),) = recipe["encoder"].items()
    if kind != "transformer" or "decoder" in recipe:
        what = "a decoder beside its encoder" if kind == "transformer" else f"a {kind} encoder"
        raise LookupError(f"this model has {what}; distil from and into models of one transformer encoder")
    return {"layers": 12, "heads": 12} | dict(settings)  # what a transformer has that says nothing
