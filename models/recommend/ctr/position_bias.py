"""Position-bias distillation: a teacher that sees positions teaches a click model that never does.

    teacher   l_T = f_T(x) + g(x, pos),  L_T = BCE(y, sigmoid(l_T))
    student   l_S = f_S(x),  L_S = (1 - a) BCE(y, sigmoid(l_S)) + a t^2 BCE( sg(sigmoid(l~/t)), sigmoid(l_S/t) )
    factual          l~ = l_T                              less noise, the same bias
    counterfactual   l~ = f_T(x) + mean over p of g(x, p)  every item as if shown at the same places

The idea is of Liu et al., 2022, arXiv:2204.00270; of its body only the abstract was open to us, so the equations are
those of distillation with privileged features (Xu et al., 2019, arXiv:1907.05171), and all numbers ours. f_T and f_S
are any click model of this folder; `joint` lets both read one table of embeddings.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models import build
from models.recommend.ctr._ctr import Click, click_loss
from models.recommend.ctr._position import PositionEffect, between, check_position

__all__ = ["PositionBias"]

TEACH, REFERENCE = ("counterfactual", "factual"), ("uniform", "first")


class PositionBias(Click):
    """A click model, served alone, and its teacher.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        embedding: width of a field's vector.
        method: click model of both.
        settings: of that method.
        positions: P; a row's position is 1..P.
        teach: "counterfactual" or "factual".
        reference: of the counterfactual: "uniform", the mean over all positions, or "first", the best one.
        joint: student and teacher share the embeddings.
        alpha: a, how much the student listens to the teacher.
        warmup: training steps over which a rises from 0.
        temperature: t.
        dropout: share of rows whose position the teacher does not see (g = 0), so that f_T learns the content.
        context: categorical fields that the position's effect depends on.
        width: of the vectors of that dependence.
        decorrelate: weight of the share of f_T's variance that lies between positions; 0 where a good ranker placed
            the items, since then it should not be 0.

    Raises:
        ValueError: a setting outside of its range; names all of them.
    """

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        embedding: int = 16,
        method: str = "dcnv2",
        settings: Mapping | None = None,
        positions: int = 10,
        teach: str = "counterfactual",
        reference: str = "uniform",
        joint: bool = True,
        alpha: float = 0.5,
        warmup: int = 0,
        temperature: float = 1.0,
        dropout: float = 0.15,
        context: Sequence[int] = (),
        width: int = 8,
        decorrelate: float = 0.0,
    ):
        super().__init__()
        wrong = [] if teach in TEACH else [f"teach is {' or '.join(TEACH)}, got {teach!r}"]
        wrong += [] if reference in REFERENCE else [f"reference is {' or '.join(REFERENCE)}, got {reference!r}"]
        wrong += [f"{name} is a share, 0 to 1, got {share}" for name, share in (("alpha", alpha), ("dropout", dropout))
                  if not 0 <= share <= 1]  # fmt: skip
        if positions < 1 or temperature <= 0 or method == "position_bias":
            wrong.append(f"positions >= 1, temperature > 0, and a method other than this one; got {positions}, "
                         f"{temperature} and {method}")  # fmt: skip
        if wrong:
            raise ValueError("position_bias: " + "; ".join(wrong))
        self.teach, self.reference, self.joint = teach, reference, joint
        self.alpha, self.warmup, self.temperature = alpha, warmup, temperature
        self.dropout, self.decorrelate, self.positions = dropout, decorrelate, positions
        make = lambda: build("recommend.ctr", method, sizes, dense, embedding, **(settings or {}))
        self.student, self.content = make(), make()
        self.effect = PositionEffect(sizes, positions, context, width)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if joint:
            self.content.fields.inputs = self.student.fields.inputs
            # Saved once: two names of one tensor are no safetensors file.
            self.register_state_dict_post_hook(_forget)
            self.register_load_state_dict_pre_hook(_recall)

    def forward(
        self, categorical: Tensor, numerical: Tensor, position: Tensor, label: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of teacher and student, and its terms.

        Args:
            categorical: (B, F) ids.
            numerical: (B, M) float.
            position: (B,) integer, 1..P.
            label: (B,) 1 or 0; NaN or negative where absent: such a row teaches nothing.
        """
        place = check_position(position, self.positions, len(categorical))
        content = self.content.logits(categorical, numerical).float()
        effect_BP = self.effect(categorical).float()
        own = effect_BP.gather(1, place[:, None]).squeeze(1)
        kept = torch.rand(len(own), device=own.device) >= self.dropout if self.training else torch.ones_like(own)
        teacher = click_loss(content + own * kept, label)
        student = self.logits(categorical, numerical).float()
        hard = click_loss(student, label)
        shown = content + (own if self.teach == "factual" else self._reference(effect_BP))
        soft = (shown.detach() / self.temperature).sigmoid().masked_fill(~(label >= 0), torch.nan)
        listened = self.temperature**2 * click_loss(student / self.temperature, soft)
        alpha = self.alpha * (self.step / self.warmup).clamp(max=1) if self.warmup else self.alpha
        if self.training:
            self.step += 1
        loss = teacher + (1 - alpha) * hard + alpha * listened
        terms = {"teacher": teacher, "click": hard, "distilled": listened}
        if self.decorrelate:
            terms["between"] = between(content, place, self.positions)
            loss = loss + self.decorrelate * terms["between"]
        return loss, {"loss": loss, **terms}

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """The student's: (B,). No position."""
        return self.student.logits(categorical, numerical)

    @torch.no_grad()
    def teacher_logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """What the teacher says of every row at every position, for evaluation only: (B, P)."""
        return self.content.logits(categorical, numerical)[:, None].float() + self.effect(categorical).float()

    def _reference(self, effect_BP: Tensor) -> Tensor:
        return effect_BP.mean(1) if self.reference == "uniform" else effect_BP[:, 0]


OWN, SHARED = "student.fields.inputs.", "content.fields.inputs."


def _forget(module: nn.Module, state: dict, prefix: str, _) -> None:
    for key in [key for key in state if key.startswith(prefix + SHARED)]:
        del state[key]


def _recall(module: nn.Module, state: dict, prefix: str, *_) -> None:
    own = {key: value for key, value in state.items() if key.startswith(prefix + OWN)}
    state.update({prefix + SHARED + key[len(prefix + OWN) :]: value for key, value in own.items()})
