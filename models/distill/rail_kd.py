"""RAIL-KD: intermediate layers are matched with teacher layers drawn at random, anew in each epoch.

    L = 1/3 tau^2 CE(z_t / tau, z_s / tau) + 1/3 hard + 1/3 mean_b ||u_s - u_t||^2
    u = unit vector of a linear map of [mean_tokens h^l1 ; mean_tokens h^l2 ; ...]

N_s - 1 of the teacher's N_t - 1 inner layers are drawn, sorted, against the student's inner layers. The published code
sums over the batch; this is a mean, so its scale does not grow with it.
Source: Haidar et al., 2022, arXiv:2109.10164; weights of Tan et al., 2023, arXiv:2306.06629.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.distill._maths import check_temperature, soft_cross_entropy
from models.distill._signals import Method, Shape, Signals

__all__ = ["RAILKD"]


class RAILKD(Method):
    """Random intermediate layer distillation: a scalar.

    Args:
        width: of the space where both meet.
        layerwise: one map and one distance a layer, averaged, instead of one for all layers on end.

    Raises:
        ValueError: the student has no inner layer, or more than the teacher.
    """

    needs = ("task", "hard", "hidden")

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        temperature: float = 10.0,
        soft: float = 1 / 3,
        hard: float = 1 / 3,
        inner: float = 1 / 3,
        width: int = 128,
        layerwise: bool = False,
    ):
        super().__init__(student, teacher)
        if not 2 <= student.layers <= teacher.layers:
            raise ValueError(
                f"RAIL-KD draws the student's {student.layers - 1} inner layers from the teacher's "
                f"{teacher.layers - 1}; it needs at least one, and no more than the teacher has"
            )
        self.temperature, self.soft, self.hard, self.inner = check_temperature(temperature), soft, hard, inner
        self.layerwise, inner_layers = layerwise, student.layers - 1
        count, each = (inner_layers, 1) if layerwise else (1, inner_layers)
        maps = lambda shape: nn.ModuleList(nn.Linear(each * shape.width, width) for _ in range(count))
        self.student_maps, self.teacher_maps = maps(student), maps(teacher)
        if student.width == teacher.width:  # equal models start at a distance of 0 (ours)
            self.student_maps.load_state_dict(self.teacher_maps.state_dict())

    def drawn(self) -> list[int]:
        """The teacher's layers of this epoch, from 0, sorted; the last one is never among them."""
        order = torch.randperm(self.teacher.layers - 1, generator=self.generator(self.epoch))
        return sorted(order[: self.student.layers - 1].tolist())

    def layers(self) -> dict[str, dict[str, list[int]]]:
        return {"student": {"hidden": list(range(self.student.layers - 1))}, "teacher": {"hidden": self.drawn()}}

    def hard_weight(self) -> float:
        return self.hard

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        soft = soft_cross_entropy(student.task, teacher.task, self.temperature).mean()
        ends = (
            (self.student_maps, student, range(self.student.layers - 1)),
            (self.teacher_maps, teacher, self.drawn()),
        )
        ours, theirs = (self._units(maps, seen, numbers) for maps, seen, numbers in ends)
        inner = sum((s - t).square().sum(-1).mean() for s, t in zip(ours, theirs, strict=True)) / len(ours)
        return self.soft * soft + self.inner * inner

    def _units(self, maps: nn.ModuleList, seen: Signals, numbers) -> list[Tensor]:
        pooled = [_mean_token(seen.hidden[number], seen.mask) for number in numbers]
        pooled = pooled if self.layerwise else [torch.cat(pooled, -1)]
        return [F.normalize(map_(x.to(map_.weight.dtype)), dim=-1) for map_, x in zip(maps, pooled, strict=True)]


def _mean_token(state_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    kept_BTD = state_BTD.masked_fill(~mask_BT[..., None], 0)
    return kept_BTD.sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)
