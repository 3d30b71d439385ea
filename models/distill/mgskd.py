"""MGSKD: the student copies the geometry of tokens and phrases in lower layers, and of whole samples in upper ones.

    inner   L = sum_{m < 3} (1 token + 1 span) + sum_{m >= 3} 4 sample
    token   MSE of head-wise dot products / sqrt(d) + smooth-L1 of the angles at i between j and k
    span    the same between phrases, each the mean of its tokens
    sample  smooth-L1 of the head-wise angles between rows, each the mean of its tokens
    logits  L = KL(z_t || z_s)

Levels are 0 (the embedding) to N_s with the layer map, cut into 64 heads whatever the attention's. Angles are taken at
the 20 tokens i that the teacher's own dot products, softmaxed, attend to most, between the 20 tokens that i attends to
most; they are averaged over three different real places (ours: an angle with itself is 1 for any model).
Phrases must be given: cut at random, they are no units of meaning. Pre-training is TinyBERT's.
Source: Liu et al., 2022 (Multi-Granularity Structural Knowledge Distillation, ACL); values as in Tan et al., 2023,
arXiv:2306.06629.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.distill._geometry import all_corners, corners_at, dots, pairs_of
from models.distill._maths import kl, layer_map, wide
from models.distill._relations import relation
from models.distill._signals import Method, Shape, Signals

__all__ = ["MGSKD", "attended", "pair_error", "pooled", "sample_loss", "span_means", "token_loss"]


class MGSKD(Method):
    """Multi-granularity structural distillation: a scalar >= 0.

    Args:
        lower: levels below this one compare tokens and spans, the others samples.
        heads: into which states are cut.
        anchors: tokens at which angles are taken.
        neighbours: tokens between which they are.
        stage: "inner", then "logits".

    Raises:
        ValueError: heads that do not divide a width; the student is deeper; fewer than one anchor or two neighbours.
    """

    stages = ("inner", "logits")

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        token: float = 1.0,
        span: float = 1.0,
        sample: float = 4.0,
        lower: int = 3,
        heads: int = 64,
        anchors: int = 20,
        neighbours: int = 20,
        stage: str | None = None,
    ):
        super().__init__(student, teacher)
        self.stage = self.choose_stage(stage)
        for who, shape in (("student", student), ("teacher", teacher)):
            if heads < 1 or shape.width % heads:
                raise ValueError(f"MGSKD: {heads} heads do not divide the {who}'s width {shape.width}; set heads")
        if anchors < 1 or neighbours < 2:
            raise ValueError(f"an angle needs an anchor and two neighbours; got {anchors} and {neighbours}")
        self.token, self.span, self.sample, self.lower = token, span, sample, lower
        self.heads, self.anchors, self.neighbours = heads, anchors, neighbours
        self.needs = ("task",) if self.stage == "logits" else ("hidden", "embedding", *(("spans",) if span else ()))
        self.uncut = self.stage != "logits"
        self.map = [0, *layer_map(student.layers, teacher.layers)]

    def layers(self) -> dict[str, dict[str, list[int]]]:
        if self.stage == "logits":
            return {"student": {}, "teacher": {}}
        return {
            "student": {"hidden": list(range(self.student.layers))},
            "teacher": {"hidden": [m - 1 for m in self.map[1:]]},
        }

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """As for every method.

        Raises:
            ValueError: spans count, but the student's signals have none.
        """
        if self.stage == "logits":
            return kl(student.task, teacher.task).mean()
        if self.span and student.spans is None:
            raise ValueError("MGSKD compares phrases, but the batch does not say where they are; set span: 0")
        levels = [(wide(student.level(m)), wide(teacher.level(g))) for m, g in enumerate(self.map)]
        loss = sum(self._near(*pair, student) for pair in levels[: self.lower])
        return loss + self.sample * sum(sample_loss(*pair, student.mask, self.heads) for pair in levels[self.lower :])

    def _near(self, student_BTD: Tensor, teacher_BTD: Tensor, seen: Signals) -> Tensor:
        how = (self.heads, self.anchors, self.neighbours)
        loss = self.token * token_loss(student_BTD, teacher_BTD, seen.mask, *how)
        if self.span:
            ours, there_BS = span_means(student_BTD, seen.spans, seen.mask)
            theirs, _ = span_means(teacher_BTD, seen.spans, seen.mask)
            loss = loss + self.span * token_loss(ours, theirs, there_BS, *how)
        return loss


def token_loss(
    student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor, heads: int, anchors: int, neighbours: int
) -> Tensor:
    """Pairs of states, and angles at the most attended of them: a scalar."""
    pair = pair_error(*(_cut(x, heads, mask_BT) for x in (student_BTD, teacher_BTD))) / (
        heads * mask_BT.sum(1).square().sum().clamp(min=1)
    )
    anchors_BK, others_BKY, there_BKY = attended(_cut(teacher_BTD, heads, mask_BT), mask_BT, anchors, neighbours)
    angles = [corners_at(dots(x, mask_BT), anchors_BK, others_BKY).angles() for x in (student_BTD, teacher_BTD)]
    return pair + smooth_l1(*angles, pairs_of(there_BKY))


def pair_error(student_BHTK: Tensor, teacher_BHTK: Tensor) -> Tensor:
    """Sum over rows, heads and pairs of ((s_i . s_j) / sqrt(K_s) - (t_i . t_j) / sqrt(K_t))^2: a scalar.

    sum_ij (s_i . s_j)(t_i . t_j) = ||S^T T||^2, so products are K x K, of few features, not T x T; in float64, as what
    is left of three large sums is small.
    """
    student, teacher = (x.double() * x.shape[-1] ** -0.25 for x in (student_BHTK, teacher_BHTK))
    with torch.autocast(student.device.type, enabled=False):
        square = lambda x, y: (x.mT @ y).square().sum()
        error = square(student, student) + square(teacher, teacher) - 2 * square(student, teacher)
    return error.to(student_BHTK.dtype)


@torch.no_grad()
def attended(state_BHTK: Tensor, mask_BT: Tensor, anchors: int, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places most attended to (B, X), those each of them attends to most (B, X, Y), and which are real (B, X, Y)."""
    places = mask_BT.shape[1]
    share_BTT = sum(relation(one, one, mask_BT).softmax(-1).sum(1) for one in state_BHTK.split(8, 1))  # heads by eights
    received_BT = share_BTT.masked_fill(~mask_BT[:, :, None], 0).sum(1).masked_fill(~mask_BT, -1)
    anchors_BX = received_BT.topk(min(anchors, places)).indices
    itself = torch.eye(places, dtype=torch.bool, device=mask_BT.device)
    given_BTT = share_BTT.masked_fill(~mask_BT[:, None, :] | itself, -1)
    best = given_BTT.take_along_dim(anchors_BX[..., None], 1).topk(min(neighbours, places))
    return anchors_BX, best.indices, (best.values >= 0) & mask_BT.gather(1, anchors_BX)[..., None]


def sample_loss(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor, heads: int) -> Tensor:
    """Head-wise angles between rows with real tokens: a scalar, 0 for fewer than three rows."""
    there_B = mask_BT.any(1)
    others_BB = there_B[:, None] & there_B & ~torch.eye(len(there_B), dtype=torch.bool, device=there_B.device)
    there_HB = there_B.expand(heads, -1)
    angles = [
        all_corners(dots(pooled(x, mask_BT).unflatten(-1, (heads, -1)).transpose(0, 1), there_HB)).angles()
        for x in (student_BTD, teacher_BTD)
    ]
    return smooth_l1(*angles, pairs_of(others_BB).expand_as(angles[0]))


def smooth_l1(student: Tensor, teacher: Tensor, counted: Tensor) -> Tensor:
    """Mean smooth-L1 distance where `counted`; 0 where nothing is."""
    return F.smooth_l1_loss(student, teacher, reduction="none").masked_fill(~counted, 0).sum() / counted.sum().clamp(1)


def pooled(state_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean of each row's real tokens: (B, D), 0 for a row without any."""
    kept_BTD = state_BTD.masked_fill(~mask_BT[..., None], 0)
    return kept_BTD.sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)


def span_means(state_BTD: Tensor, spans_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each span's tokens (B, S, D), S the most spans of a row, and which spans there are (B, S)."""
    kept_BT = mask_BT & (spans_BT >= 0)
    count = int(spans_BT.where(kept_BT, -1).max()) + 1
    member_BST = (spans_BT[:, None, :] == torch.arange(max(count, 1), device=spans_BT.device)[:, None]) & kept_BT[
        :, None
    ]
    size_BS = member_BST.sum(-1)
    total_BSD = member_BST.to(state_BTD.dtype) @ state_BTD.masked_fill(~mask_BT[..., None], 0)
    return total_BSD / size_BS.clamp(min=1)[..., None], size_BS > 0


def _cut(x_BTD: Tensor, heads: int, mask_BT: Tensor) -> Tensor:
    return x_BTD.masked_fill(~mask_BT[..., None], 0).unflatten(-1, (heads, -1)).transpose(1, 2)
