"""A training run of weight-inherited distillation: the teacher itself, rebuilt, and what narrows it.

The masks follow the number of the step, so that a resumed run loses what the unbroken one loses, when it does. What is
lost and has not faded by the last tenth of the run leaves the forward pass then (ours), so that what is merged is what
was trained at last.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.components._model import Model
from models.distill._signals import Method

__all__ = ["Inheriting"]

INHERITED = 0.02  # rate of the teacher's weights by that of the compactors, 1e-6 / 5e-5 in the paper's code
NEVER = 10**6  # updates: more than any width has dimensions
LAST = 0.9  # share of the run after which nothing lost flows


class Inheriting(nn.Module):
    """The teacher with compactors; trained on the gold labels of running text.

    Args:
        teacher: a masked language model; it is copied.
        method: WID, built for its shape.
        steps: of the run.

    Raises:
        ValueError: another kind of model; the run ends before the student's width is reached.
    """

    def __init__(self, teacher: Model, method: Method, steps: int):
        super().__init__()
        self.method, self.steps = method, steps
        self.student = method.attach(deepcopy(teacher).float().requires_grad_(True))
        method.set_total(steps)
        if (reached := updates(method) * method.every) > LAST * steps:
            raise ValueError(
                f"WID reaches the student's width of {method.student.width} after {reached} steps, {updates(method)} "
                f"updates of its masks, but the run has {steps}, whose last tenth is for that width; give more "
                f"steps, or lower `every`, which is {method.every}"
            )

    def counts(self, **batch: Tensor) -> dict[str, Tensor]:
        """Labels by target."""
        return self.student.counts(**batch)

    def forward(
        self, counts: Mapping[str, Tensor] | None = None, step: Tensor | None = None, **batch: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The gold labels' loss; the masks are brought to this step first."""
        if self.training and step is not None:
            self.reach(int(step))
        return self.student(counts=counts, **batch)

    def reach(self, step: int) -> None:
        """Do what is due between the updates before `step`: masks lose more, and at last nothing lost flows."""
        while self.method.step < step:
            self.method.advance()
            if self.method.step >= LAST * self.steps and self.method.reached and not self.method.settled:
                self.method.settle()

    def parameter_groups(self, rate: float, decay: float) -> list[dict[str, Any]]:
        """For the optimizer: compactors learn at `rate`, what is inherited at a fiftieth of it."""
        return self.method.parameter_groups(self.student, rate, INHERITED * rate, decay)

    def hook_optimizer(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Let what is lost be pulled to zero before each of the optimizer's steps."""
        return self.method.hook(optimizer, self.student)

    @torch.no_grad()
    def finish(self, recipe: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
        """The narrow model, which is a plain one, and its recipe; `recipe` is the teacher's."""
        self.reach(self.steps)
        return self.method.merge(self.student.eval(), recipe)


def updates(method: Method) -> int:
    """Updates of the masks until all that is to be lost is lost."""
    most = method.lost(NEVER)
    return next(number for number in range(NEVER) if method.lost(number) == most)
