"""One shared encoder, a head for each task, and how they learn: what the training loop sees as a model."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from models import build
from models.components._model import Model, initialise
from models.components._pool import pooled
from models.distill.tasks._lesson import Lesson, TaskMethod

__all__ = ["Learner", "answers_of", "new_head"]


def new_head(target: str, width: int, settings: Mapping, std: float = 0.02) -> nn.Module:
    """A head of models/components/target with fresh weights."""
    head = build("components.target", target, width, **settings)
    initialise(head, std)
    return head


class Learner(nn.Module):
    """The loss of a batch of one task; heads and learned maps of other tasks get no gradient from it.

    A batch has, beside the encoder's fields: `task` () int64, `step` () int64, `gold` (B,), and of a task with teachers
    `taught` (B, M, C) and `feature_<m>` (B, D_m), as far as the method needs them.

    Args:
        body: a model of components; its own targets are left behind.
        heads: by task, in the order of the tasks' numbers.
        method: of models/distill/tasks.
    """

    def __init__(self, body: Model, heads: Mapping[str, nn.Module], method: TaskMethod):
        super().__init__()
        body.targets, body.ties = nn.ModuleDict(), []
        self.body, self.heads, self.method, self.names = body, nn.ModuleDict(heads), method, tuple(heads)

    def counts(self, **batch: Tensor) -> dict[str, Tensor]:
        """Rows: a task is divided by its own batch, not by the number of tasks."""
        return {"rows": torch.tensor(float(len(batch["gold"])), device=batch["gold"].device)}

    def forward(
        self,
        task: Tensor,
        gold: Tensor,
        step: Tensor | None = None,
        taught: Tensor | None = None,
        counts: Mapping[str, Tensor] | None = None,
        **batch: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the rows of the whole step, and the same under "loss_<task>"."""
        if step is not None:
            self.method.step.copy_(step)
        features = [batch.pop(name) for name in sorted(batch) if name.startswith("feature_")]
        name, head = self.names[int(task)], self.heads[self.names[int(task)]]
        hidden, rows = self.body.encode(**batch)
        told = None if taught is None else taught.transpose(0, 1)
        feature = pooled(hidden, rows, head.how) if features else None
        losses = self.method(Lesson(name, head.predict(hidden, rows), gold, told, feature, features))
        count = self.counts(gold=gold)["rows"] if counts is None else counts["rows"]
        loss = losses.sum() / count.clamp(min=1)
        return loss, {f"loss_{name}": loss.detach()}

    def one(self, task: str, target: str) -> SimpleNamespace:
        """The shared encoder under one head, in the form in which a single model is evaluated."""
        return SimpleNamespace(targets={target: self.heads[task]}, encode=self.body.encode)

    def state(self, task: str, target: str) -> dict[str, Tensor]:
        """Weights of a model of this task alone: no other head, no learned map."""
        state = {name: tensor for name, tensor in self.body.state_dict().items() if not name.startswith("targets.")}
        return state | {f"targets.{target}.{name}": tensor for name, tensor in self.heads[task].state_dict().items()}


def answers_of(model: Model, head: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """What a single-task model says of all batches, and the features it says it from: (N, C) and (N, D), float32."""
    said, seen = [], []
    model.eval()
    with torch.no_grad():
        for batch in batches:
            hidden, rows = model.encode(**batch)
            said.append(head.predict(hidden, rows).float().cpu())
            seen.append(pooled(hidden, rows, head.how).float().cpu())
    return torch.cat(said), torch.cat(seen)
