"""CKD: the student keeps how tokens lie to each other within a layer, and how one token moves through the layers.

    L = .9 tau^2 CE(z_t / tau, z_s / tau) + .1 hard + 1 WR_d + 1 LTR_d + 10 WR_a + 10 LTR_a
    WR_d   each level and token i:  KL of softmax_{j != i}(cos(h_i, h_j)) over the row's tokens
    LTR_d  each token and level m:  KL of softmax_{n != m}(cos(h^m, h^n)) over levels
    WR_a   each level and token i:  (cos(h_i - h_j, h_i - h_k)_t - cos(..)_s)^2, j and k in a window of 21 about i
    LTR_a  each token and level m:  the same over levels n and o

Levels are 0 (the embedding) to N_s with the layer map. Each term is a mean over its anchors, angles also over pairs
j != k of real tokens other than i (an angle with itself is 1 whatever the model). Widths and heads are free.
Source: Park et al., 2021, arXiv:2109.08359; weights as in Tan et al., 2023, arXiv:2306.06629.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.distill._geometry import all_corners, corners_at, dots, pairs_of
from models.distill._maths import check_temperature, layer_map, score_kl, soft_cross_entropy, wide
from models.distill._signals import Method, Shape, Signals

__all__ = ["CKD", "angle_error", "distance_kl", "windows"]


class CKD(Method):
    """Contextual distillation: a scalar, in nats and squared cosines.

    Args:
        window: tokens in a window, the anchor among them; odd.

    Raises:
        ValueError: the student is deeper; the window is even or of one token.
    """

    needs = ("task", "hard", "hidden", "embedding")
    uncut = True

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        soft: float = 0.9,
        hard: float = 0.1,
        temperature: float = 3.0,
        word_distance: float = 1.0,
        layer_distance: float = 1.0,
        word_angle: float = 10.0,
        layer_angle: float = 10.0,
        window: int = 21,
    ):
        super().__init__(student, teacher)
        if window < 3 or window % 2 == 0:
            raise ValueError(f"a window reaches equally far to both sides of a token: 3, 5, 7, ..., not {window}")
        self.soft, self.hard, self.temperature = soft, hard, check_temperature(temperature)
        self.word_distance, self.layer_distance = word_distance, layer_distance
        self.word_angle, self.layer_angle, self.window = word_angle, layer_angle, window
        self.map = [0, *layer_map(student.layers, teacher.layers)]

    def layers(self) -> dict[str, dict[str, list[int]]]:
        return {
            "student": {"hidden": list(range(self.student.layers))},
            "teacher": {"hidden": [m - 1 for m in self.map[1:]]},
        }

    def hard_weight(self) -> float:
        return self.hard

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        mask = student.mask
        ours_MBTD = torch.stack([wide(student.level(m)) for m in range(len(self.map))])
        theirs_MBTD = torch.stack([wide(teacher.level(g)) for g in self.map])
        loss = self.soft * soft_cross_entropy(student.task, teacher.task, self.temperature).mean()
        levels = len(self.map)
        if self.word_distance:
            others_MBTT = _others(mask).expand(levels, -1, -1, -1)
            loss = loss + self.word_distance * distance_kl(ours_MBTD, theirs_MBTD, others_MBTT)
        if self.word_angle:
            loss = loss + self.word_angle * self._word_angles(ours_MBTD, theirs_MBTD, mask)
        # of each real token, its states through the levels: (N, M, D)
        paths = [x[:, mask].transpose(0, 1) for x in (ours_MBTD, theirs_MBTD)]
        others_NMM = ~torch.eye(levels, dtype=torch.bool, device=mask.device).expand(len(paths[0]), -1, -1)
        if self.layer_distance:
            loss = loss + self.layer_distance * distance_kl(*paths, others_NMM)
        if self.layer_angle:
            there_NM = others_NMM.any(-1)
            angles = [all_corners(dots(x, there_NM)).angles() for x in paths]
            loss = loss + self.layer_angle * angle_error(*angles, others_NMM)
        return loss

    def _word_angles(self, ours_MBTD: Tensor, theirs_MBTD: Tensor, mask_BT: Tensor) -> Tensor:
        anchors_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        at_TW, there_BTW = windows(mask_BT, self.window)
        shape = (*ours_MBTD.shape[:-1], at_TW.shape[-1])
        at_MBTW, anchors_MBT = at_TW.expand(shape), anchors_T.expand(shape[:-1])
        there_MBT = mask_BT.expand(len(ours_MBTD), -1, -1)
        angles = [corners_at(dots(x, there_MBT), anchors_MBT, at_MBTW).angles() for x in (ours_MBTD, theirs_MBTD)]
        return angle_error(*angles, there_BTW.expand(shape))


def distance_kl(student_NXD: Tensor, teacher_NXD: Tensor, others_NXX: Tensor) -> Tensor:
    """KL(teacher || student) of softmaxed cosines between states, averaged over anchors that have others: a scalar.

    Args:
        others_NXX: (..., X, X) bool, what each anchor is compared with.
    """
    scores = [_cosines(x).masked_fill(~others_NXX, torch.finfo(x.dtype).min) for x in (student_NXD, teacher_NXD)]
    kept = score_kl(*scores)[others_NXX.any(-1)]
    return kept.sum() / max(len(kept), 1)


def angle_error(student_NXYY: Tensor, teacher_NXYY: Tensor, others_NXY: Tensor) -> Tensor:
    """Mean squared difference of angles; others_NXY (..., X, Y) bool says which others of an anchor are there."""
    pairs_NXYY = pairs_of(others_NXY)
    error = (student_NXYY - teacher_NXYY).square().masked_fill(~pairs_NXYY, 0)
    return error.sum() / pairs_NXYY.sum().clamp(min=1)


def windows(mask_BT: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Places about each place (T, W - 1), and whether both are real tokens (B, T, W - 1)."""
    places = mask_BT.shape[1]
    reach = min(window // 2, places - 1)
    offsets = torch.arange(-reach, reach + 1, device=mask_BT.device)
    at_TW = torch.arange(places, device=mask_BT.device)[:, None] + offsets[offsets != 0]
    inside_TW = (at_TW >= 0) & (at_TW < places)
    at_TW = at_TW.clamp(0, places - 1)
    return at_TW, mask_BT[:, at_TW] & inside_TW & mask_BT[:, :, None]


def _cosines(x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # cosines of neighbours differ by less than halves tell apart
        x = F.normalize(x, dim=-1)
        return x @ x.mT


def _others(mask_BT: Tensor) -> Tensor:
    """(B, T, T) bool: for each real token the other real tokens of its row."""
    both_BTT = mask_BT[:, :, None] & mask_BT[:, None, :]
    return both_BTT & ~torch.eye(mask_BT.shape[1], dtype=torch.bool, device=mask_BT.device)
