"""DIITO: the student's layers play the part of the teacher's, shown by changing both in the same way.

    L = 1/4 [KL(z_t, z_s) + KL(z'_t, z'_s) + (1 - cos(h_s, h_t)) + hard],   KL(t, s) = tau^2 KL(t / tau || s / tau)

z' are the logits after an interchange: at one student layer m, and at the teacher's layers g(m - 1) + 1 .. g(m), the
states of a run of tokens are overwritten by the states of as many tokens of the next row. Each row has its own two
starts. All of it is one pass over the batch twice on end: the second half is changed, by states of the first. Gradients
flow through the states that are put in, too (ours).
Source: Wu et al., 2022, arXiv:2112.02505; weights and layers ("full") as in Tan et al., 2023, arXiv:2306.06629.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.distill._maths import (
    check_temperature,
    check_widths,
    cosine_distance,
    layer_map,
    masked_mean,
    token_kl,
)
from models.distill._signals import Method, Shape, Signals

__all__ = ["DIITO", "interchange", "spans"]


class DIITO(Method):
    """Distillation with interchange interventions: a scalar >= 0, in nats per real token (plus the cosine distance).

    It asks for `edited`: both models run on the batch repeated (2B rows) inside `edits`; the first B rows are the
    signals, the last B are their `edited`.

    Args:
        interchanged: weight of the logits after the interchange.
        share: of a row's real tokens that are overwritten, rounded down; of the shorter of both rows.
        layer: the student's layer m, from 1; None draws one each step.

    Raises:
        ValueError: the widths differ while the cosine counts; the student is deeper, or has no such layer; a share
            outside 0..1.
    """

    needs = ("logits", "hidden", "hard", "edited")
    uncut = True

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        temperature: float = 2.0,
        soft: float = 0.25,
        hard: float = 0.25,
        cosine: float = 0.25,
        interchanged: float = 0.25,
        share: float = 0.3,
        layer: int | None = None,
    ):
        super().__init__(student, teacher)
        if cosine:
            check_widths("DIITO", student, teacher, "set cosine: 0")
        if not 0 < share <= 1:
            raise ValueError(f"share is a part of a row's tokens, above 0 and at most 1; got {share}")
        if layer is not None and not 1 <= layer <= student.layers:
            raise ValueError(f"layer {layer} was asked for, but the student has layers 1 to {student.layers}")
        self.temperature, self.soft, self.hard, self.cosine = check_temperature(temperature), soft, hard, cosine
        self.interchanged, self.share, self.layer = interchanged, share, layer
        self.map = [0, *layer_map(student.layers, teacher.layers)]

    def layers(self) -> dict[str, dict[str, list[int]]]:
        last = lambda shape: {"hidden": [shape.layers - 1] if self.cosine else []}
        return {"student": last(self.student), "teacher": last(self.teacher)}

    def hard_weight(self) -> float:
        return self.hard

    def drawn(self) -> int:
        """The student's layer of this step, from 1."""
        if self.layer is not None:
            return self.layer
        return 1 + int(torch.randint(self.student.layers, (), generator=self.generator()))

    def edits(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """The interchange at a student's layer and at the teacher's layers that belong to it."""
        layer, step = self.drawn(), self.step.item()

        def change(state: Tensor, mask: Tensor) -> Tensor:
            # 1: not the numbers that drew the layer
            return interchange(state, *spans(mask[: len(mask) // 2], self.share, self.generator(-1 - step)))

        theirs = {f"teacher.output.{g}": change for g in range(self.map[layer - 1], self.map[layer])}
        return {f"student.output.{layer - 1}": change} | theirs

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        loss = self.soft * token_kl(student.logits, teacher.logits, student.mask, self.temperature)
        if self.cosine:
            apart = cosine_distance(student.hidden[-1], teacher.hidden[-1])
            loss = loss + self.cosine * masked_mean(apart, student.mask)
        changed = token_kl(student.edited.logits, teacher.edited.logits, student.mask, self.temperature)
        return loss + self.interchanged * changed


def spans(mask_BT: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where each row is overwritten and by what: two (B, T) bool, with equally many places in each row.

    The second belongs to the next row, the first one after the last. A function of the mask and the generator alone,
    so that student and teacher change alike.
    """
    mask_BT = mask_BT.cpu()
    lengths = mask_BT.sum(1)
    count = (torch.minimum(lengths, lengths.roll(-1)) * share + 1e-9).long()  # 1e-9: .3 * 10 is 3
    draws = torch.rand(2, len(mask_BT), generator=generator)
    order_BT = mask_BT.cumsum(1) - 1  # of each real token within its row

    def run(lengths: Tensor, draw: Tensor, order_BT: Tensor, mask_BT: Tensor) -> Tensor:
        start = (draw * (lengths - count + 1)).long()
        return mask_BT & (order_BT >= start[:, None]) & (order_BT < (start + count)[:, None])

    into = run(lengths, draws[0], order_BT, mask_BT)
    source = run(lengths.roll(-1), draws[1], order_BT.roll(-1, 0), mask_BT.roll(-1, 0))
    return into, source


def interchange(state_CTD: Tensor, into_BT: Tensor, source_BT: Tensor) -> Tensor:
    """States of 2B rows: the second half is overwritten at `into` by the first half's next row at `source`.

    Raises:
        ValueError: the rows are not the batch twice on end.
    """
    if len(state_CTD) != 2 * len(into_BT):
        raise ValueError(
            f"an interchange needs the batch twice on end: {2 * len(into_BT)} rows of states, got {len(state_CTD)}"
        )
    plain_BTD, changed_BTD = state_CTD.chunk(2)
    into_BT, source_BT = into_BT.to(state_CTD.device), source_BT.to(state_CTD.device)
    changed_BTD = changed_BTD.masked_scatter(into_BT[..., None], plain_BTD.roll(-1, 0)[source_BT])
    return torch.cat([plain_BTD, changed_BTD])
