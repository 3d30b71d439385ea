"""LRC-BERT: a student's state points where the teacher's does for the same row, and away from other rows'.

    inner  L = sum_m mean_i 1 - 1/(2K) sum_{j != i} (g_ij - g_ii) + g_ii,   g_ij = 1 - cos(W h_s,i^m, h_t,j^g(m))
    all    L = 1 inner + 1 tau^2 KL(z_t / tau || z_s / tau) + 3 hard

Rows are compared place by place, g is taken where both rows have a real token, and the mean is over real tokens; K is
the number of other rows that reach the place (ours: with padding it is not B - 1; without other rows their sum is 0).
One W without bias serves all layers.

Each step has two passes: the first one finds the loss's gradient by the embedding's output, the second one runs on
their sum, with the gradient scaled to length 1 at each place, and alone is learned from.
Source: Fu et al., 2021, arXiv:2012.07335; values and the map as in Tan et al., 2023, arXiv:2306.06629.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.distill._maths import check_temperature, kl, layer_map, masked_mean, new_map, wide
from models.distill._signals import Method, Shape, Signals

__all__ = ["LRCBERT"]


class LRCBERT(Method):
    """Latent contrastive distillation: a scalar. It contrasts rows: not 0 at the teacher.

    With `perturbed`, run a pass inside `edits`, call `perturb` with the loss, run it again and learn from that.

    Args:
        stage: "inner", then "all".
        perturbed: whether steps have two passes.

    Raises:
        ValueError: the student is deeper.
    """

    stages = ("inner", "all")

    uncut = True

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        inner: float = 1.0,
        soft: float = 1.0,
        hard: float = 3.0,
        temperature: float = 1.1,
        perturbed: bool = True,
        stage: str | None = None,
    ):
        super().__init__(student, teacher)
        self.inner, self.soft, self.hard, self.temperature = inner, soft, hard, check_temperature(temperature)
        self.stage, self.perturbed = self.choose_stage(stage), perturbed
        self.needs = ("hidden",) if self.stage == "inner" else ("hidden", "task", "hard")
        self.map = layer_map(student.layers, teacher.layers)
        self.project = new_map(student.width, teacher.width, bias=False)
        self._state: Tensor | None = None  # the embedding's output in the first pass
        self._change: Tensor | None = None  # what the second pass adds to it

    def layers(self) -> dict[str, dict[str, list[int]]]:
        return {
            "student": {"hidden": list(range(self.student.layers))},
            "teacher": {"hidden": [m - 1 for m in self.map]},
        }

    def hard_weight(self) -> float:
        return self.hard if self.stage == "all" else 0.0

    def edits(self) -> dict[str, object]:
        """What the embedding's output goes through in both passes."""
        return {"student.embedding": self._embed} if self.perturbed else {}

    def perturb(self, loss: Tensor) -> None:
        """Between the passes: the loss of the first one, of which no parameter keeps a gradient.

        Raises:
            RuntimeError: there was no first pass inside `edits`.
        """
        if self._state is None:
            raise RuntimeError("LRC-BERT perturbs a second pass; run the first one inside its edits")
        (gradient,) = torch.autograd.grad(loss, self._state)
        self._state, self._change = None, F.normalize(gradient.float(), dim=-1).to(gradient.dtype)

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        pairs = [(student.hidden[m], teacher.hidden[g - 1]) for m, g in enumerate(self.map)]
        loss = self.inner * sum(contrast(self.project(s), t, student.mask) for s, t in pairs)
        if self.stage == "inner":
            return loss
        return loss + self.soft * kl(student.task, teacher.task, self.temperature).mean()

    def _embed(self, state: Tensor, mask: Tensor | None) -> Tensor:
        if self._change is None:
            # a frozen embedding has no graph of its own to take the gradient by
            self._state = state if state.requires_grad else state.requires_grad_()
            return self._state
        change, self._change = self._change, None
        return state + change


def contrast(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The inner loss of one layer, averaged over real tokens: a scalar in [0, 4]."""
    student_BTD, teacher_BTD = (F.normalize(wide(x), dim=-1) for x in (student_BTD, teacher_BTD))
    apart_BBT = 1 - torch.einsum("itd,jtd->ijt", student_BTD, teacher_BTD)
    own_BT = apart_BBT.diagonal().T
    other_BBT = mask_BT[None] & ~torch.eye(len(mask_BT), dtype=torch.bool, device=mask_BT.device)[..., None]
    count_BT = other_BBT.sum(1).clamp(min=1)
    further_BT = (apart_BBT - own_BT[:, None]).masked_fill(~other_BBT, 0).sum(1) / count_BT
    return masked_mean(1 - further_BT / 2 + own_BT, mask_BT)
