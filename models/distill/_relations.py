"""Relations between the places of a row: softmax of scaled dot products, compared place by place."""

import torch
from torch import Tensor

from models.distill._maths import score_kl, wide
from models.distill._relation_kl import relation_kl
from models.distill._signals import Shape
from models.distill._step import weight

__all__ = ["compared", "divergence", "relation", "split", "teacher_layer", "ungrouped"]


def relation(x_BHTK: Tensor, y_BHTK: Tensor, mask_BT: Tensor, causal: bool = False) -> Tensor:
    """Scores x y^T / sqrt(K), at the dtype's minimum where the key is padding, or later if causal: (B, H, T, T).

    In float32: halves lose what small differences between relations are made of.
    """
    x_BHTK, y_BHTK = wide(x_BHTK), wide(y_BHTK)
    scores_BHTT = (x_BHTK * x_BHTK.shape[-1] ** -0.5) @ y_BHTK.mT
    seen_BHTT = mask_BT[:, None, None, :]
    if causal:
        seen_BHTT = seen_BHTT & torch.ones_like(scores_BHTT[0, 0], dtype=torch.bool).tril()
    return scores_BHTT.masked_fill(~seen_BHTT, torch.finfo(scores_BHTT.dtype).min)


def divergence(student_BHTT: Tensor, teacher_BHTT: Tensor, mask_BT: Tensor) -> Tensor:
    """KL(teacher || student) of softmaxed scores, averaged over heads and real places; 0 where there is none."""
    kl_BHT = score_kl(student_BHTT, teacher_BHTT)
    kept = kl_BHT.mean(1)[mask_BT]
    return kept.mean() * weight(mask_BT) if kept.numel() else kept.sum()


def compared(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask_BT: Tensor, causal: bool = False
) -> Tensor:
    """`divergence` of `relation`, without ever holding the relations of more than one row."""
    count = mask_BT.sum() * student[0].shape[1]
    return relation_kl(student, teacher, mask_BT, causal) / count.clamp(min=1) * weight(mask_BT)


def split(x_BHTK: Tensor, heads: int) -> Tensor:
    """The same features cut into another number of heads: (B, H, T, K) -> (B, heads, T, H K / heads).

    The heads are put side by side behind each place before the cut; cutting them as they lie would mix places.

    Raises:
        ValueError: they cannot be cut so; keys and values of grouped heads have fewer features than the queries.
    """
    features = x_BHTK.shape[1] * x_BHTK.shape[3]
    if features % heads:
        raise ValueError(f"{heads} relation heads do not divide the {features} features of {x_BHTK.shape[1]} heads; "
                         f"where heads share keys and values these are fewer than the width: set relation_heads to a "
                         f"divisor of both")  # fmt: skip
    return x_BHTK.transpose(1, 2).flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2)


def ungrouped(x_BGTK: Tensor, heads: int) -> Tensor:
    """Keys or values once for each of the queries' heads, also where several heads share them: (B, heads, T, K)."""
    return x_BGTK if x_BGTK.shape[1] == heads else x_BGTK.repeat_interleave(heads // x_BGTK.shape[1], 1)


def teacher_layer(layer: int | None, teacher: Shape) -> int:
    """The number from 0 of a layer that is given from 1."""
    layer = teacher.layers if layer is None else layer
    if not 1 <= layer <= teacher.layers:
        raise ValueError(f"layer {layer} was asked for, but the teacher has layers 1 to {teacher.layers}")
    return layer - 1
