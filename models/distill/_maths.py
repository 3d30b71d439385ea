"""Pieces that several methods share: layer maps, soft targets, means over real tokens. All sums are in float32."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.distill._divergence import Divergence, check_temperature, word_divergence
from models.distill._signals import Shape
from models.distill._step import weight
from models.distill._words import TopK, Words

__all__ = [
    "check_heads",
    "check_temperature",
    "check_widths",
    "cosine_distance",
    "kl",
    "layer_map",
    "masked_mean",
    "masked_mse",
    "mask_scores",
    "new_map",
    "score_kl",
    "score_mse",
    "soft_cross_entropy",
    "token_kl",
    "wide",
]


def wide(x: Tensor) -> Tensor:
    """Halves become float32, in which sums over a vocabulary hold; what is wider stays."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def layer_map(student: int, teacher: int) -> list[int]:
    """The teacher layer, from 1, that each student layer 1..student follows: the last one of its segment.

    Where the layers divide, segments are equal. Otherwise a greedy cut: each takes the rounded-up share, as long as one
    layer is left for each that follows.

    >>> layer_map(5, 12)
    [3, 6, 9, 11, 12]

    Raises:
        ValueError: the student is deeper than the teacher.

    Source: Tan et al., 2023, arXiv:2306.06629 (the even case: Sun et al., 2019, arXiv:1908.09355).
    """
    if student > teacher:
        raise ValueError(f"the student has {student} layers, more than the teacher's {teacher}: none is left to follow")
    share, ends = -(-teacher // student), [0]
    for following in range(student - 1, -1, -1):
        ends.append(min(ends[-1] + share, teacher - following))
    return ends[1:]


def check_widths(method: str, student: Shape, teacher: Shape, instead: str) -> None:
    """Raise ValueError if states cannot be compared feature by feature; `instead`: what to use then."""
    if student.width != teacher.width:
        raise ValueError(
            f"{method} compares states feature by feature, but the student is {student.width} wide and the teacher "
            f"{teacher.width}; give both one width, or {instead}"
        )


def check_heads(method: str, student: Shape, teacher: Shape, instead: str) -> None:
    """Raise ValueError if attention cannot be compared head by head; `instead`: what to use then."""
    if student.heads != teacher.heads:
        raise ValueError(
            f"{method} compares head by head, but the student has {student.heads} heads and the teacher "
            f"{teacher.heads}; give both the same number, or {instead}"
        )


def new_map(student: int, teacher: int, bias: bool = True) -> nn.Linear:
    """A learned linear map; where both sides are equally wide it starts as the identity (ours)."""
    map_ = nn.Linear(student, teacher, bias)
    if student == teacher:
        nn.init.eye_(map_.weight)
    if bias:
        nn.init.zeros_(map_.bias)
    return map_


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """tau^2 CE(softmax(teacher / tau), softmax(student / tau)) over the last axis: (...,) in nats.

    The square keeps gradients of one size whatever the temperature (Hinton et al., 2015, arXiv:1503.02531).
    """
    target = (wide(teacher) / temperature).softmax(-1)
    return -(temperature**2) * (target * (wide(student) / temperature).log_softmax(-1)).sum(-1)


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)) over the last axis: (...,) in nats."""
    return temperature**2 * score_kl(wide(student) / temperature, wide(teacher) / temperature)


def score_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the last axis: (...,); masked scores are the dtype's minimum."""
    log_student, log_teacher = wide(student).log_softmax(-1), wide(teacher).log_softmax(-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


def token_kl(student: Tensor | Words, teacher: Tensor | Words | TopK, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean of `kl` over the real tokens of (B, T, V) logits; padded ones are never computed.

    Where either side is not a tensor, no more than a chunk of the student's logits is formed, and only it learns.
    """
    if not isinstance(student, Tensor) or not isinstance(teacher, Tensor):
        total = word_divergence(student[mask], teacher[mask], Divergence(temperature=temperature))
        return total * weight(mask)
    return _mean(kl(student[mask], teacher[mask], temperature), mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of (B, T, ...) values; 0 where there is none."""
    return _mean(values[mask], mask)


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of (B, T, D) states over real tokens and features; 0 where there is no token."""
    if not bool(mask.all()):
        student, teacher = student[mask], teacher[mask]
    off = F.mse_loss(wide(student), wide(teacher), reduction="sum")
    return off / max(student.numel(), 1) * weight(mask)


def score_mse(student_BHTT: Tensor, teacher_BHTT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean squared difference of scores over heads and pairs of real tokens; 0 where there is none."""
    pairs_BTT = mask_BT[:, :, None] & mask_BT[:, None, :]
    student, teacher = student_BHTT, teacher_BHTT
    if not bool(mask_BT.all()):  # filled, not picked: picking copies what is spread over memory, twice
        student, teacher = (s.masked_fill(~pairs_BTT[:, None], 0) for s in (student, teacher))
    off = F.mse_loss(wide(student), wide(teacher), reduction="sum")
    return off / (pairs_BTT.sum() * student.shape[1]).clamp(min=1) * weight(pairs_BTT)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine over the last axis: (...,) in [0, 2]."""
    return 1 - F.cosine_similarity(wide(student), wide(teacher), dim=-1)


def mask_scores(scores_BHTT: Tensor, mask_BT: Tensor) -> Tensor:
    """Scores with padded keys at the dtype's minimum: not -inf, as 0 * (inf - inf) is NaN in a KL."""
    return scores_BHTT.masked_fill(~mask_BT[:, None, None, :], torch.finfo(scores_BHTT.dtype).min)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Of what stands at the real places of a mask, which may be part of a larger step's."""
    return values.mean() * weight(mask) if values.numel() else values.sum()
