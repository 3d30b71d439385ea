"""KD-MTL: a multi-task network's features, seen through one adaptor a task, imitate those of single-task teachers.

    n(v) = v / sqrt(|v|^2 + 1e-6)
    d_t  = mean over rows of | n(A_t phi(x)) - n(phi_t(x)) |^2            in [0, 4], 2 - 2 cos
    L    = sum_t w_t BCE(y_t) + sum_t lambda_t d_t

phi is what the task's tower reads, phi_t the same of a network that learned task t alone; A_t is linear, without bias,
and learns faster than the network, which it must follow. Distances have one scale for all tasks, so none drowns others.
Source: Li and Bilen, 2020, arXiv:2007.06889 and the code of VICO-UoE/KD4MTL (images; for tables, the features, the
adaptor's rate and lambda are ours). Teachers there come from runs of their own: `teach` takes them. Ours: without them,
they learn in the first part of this run, beside the plain multi-task network; then they are frozen, in eval mode, and
the network listens. Rows whose teacher shows nothing (all but zero) have no direction and do not count.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models import build
from models.recommend._body import Taught, before_towers, quietly
from models.recommend._layers import bce_per_task, named

__all__ = ["KDMTL", "distances", "normalise"]

TINY = 1e-6


class KDMTL(Taught):
    """A multi-task student, its single-task teachers and their adaptors.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        tasks: T.
        embedding: width of a field's embedding, of student and teachers.
        method: the student's: mmoe, omoe, ple, shared_bottom or stem.
        settings: of that method.
        teacher: settings of single_task, for the teachers.
        weight: lambda, one for all tasks or one for each; 0 for all is the plain network.
        loss_weight: w, likewise.
        share: of the run's steps in which teachers learn, where none were given.
        adaptor_rate: learning rate of the adaptors, as a multiple of the network's.
        adaptor_decay: their weight decay.

    The trainer sets the buffer `total` to the number of steps of the whole run before the first one. In a run of
    unknown length, teachers learn and the student listens at once.

    Raises:
        ValueError: a setting outside of its range; names all of them.
    """

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        tasks: int,
        embedding: int = 128,
        method: str = "mmoe",
        settings: Mapping | None = None,
        teacher: Mapping | None = None,
        weight: float | Sequence[float] = 1.0,
        loss_weight: float | Sequence[float] = 1.0,
        share: float = 0.5,
        adaptor_rate: float = 10.0,
        adaptor_decay: float = 5e-4,
    ):
        super().__init__("kd_mtl", method, sizes, dense, tasks, embedding, settings)
        each = lambda given: [float(given)] * tasks if isinstance(given, (int, float)) else [float(v) for v in given]
        weights, losses = each(weight), each(loss_weight)
        wrong = [f"{name} is one number >= 0, or one for each of {tasks} tasks, got {given}" for name, given, all_ in
                 (("weight", weight, weights), ("loss_weight", loss_weight, losses))
                 if len(all_) != tasks or min(all_) < 0]  # fmt: skip
        if not 0 <= share < 1 or adaptor_rate <= 0 or adaptor_decay < 0:
            wrong.append(f"share in [0, 1), adaptor_rate > 0 and adaptor_decay >= 0; got {share}, {adaptor_rate}, "
                         f"{adaptor_decay}")  # fmt: skip
        if wrong:
            raise ValueError("kd_mtl: " + "; ".join(wrong))
        self.share, self.adaptor_rate, self.adaptor_decay = share, adaptor_rate, adaptor_decay
        self.distils = any(weights)
        self.teacher = quietly(
            lambda: build(
                "recommend", "single_task", sizes, dense, tasks, **{"embedding": embedding, **(teacher or {})}
            )
        )
        seen = self.teacher.towers.layers[0].weight.shape[1]
        self.adaptor = nn.Parameter(quietly(lambda: _xavier(tasks, self.read, seen)))
        self.register_buffer("weight", torch.tensor(weights), persistent=False)
        self.register_buffer("loss_weight", torch.tensor(losses), persistent=False)
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("total", torch.tensor(0))
        self.register_buffer("given", torch.tensor(False))

    def teach(self, teacher: nn.Module) -> None:
        """Take the weights of trained single-task networks: they never change again, and teach from the first step.

        Args:
            teacher: a `single_task` model of the same tables and tasks, and of the settings in `teacher`.

        Raises:
            ValueError: it is of another shape; names what differs.
        """
        try:
            self.teacher.load_state_dict(teacher.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"kd_mtl: these teachers are not the single_task that `teacher` describes: {error}"
            ) from None
        self.given.fill_(True)

    def forward(self, categorical: Tensor, numerical: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L and its terms; in training mode each call counts as one step.

        Args:
            categorical: (B, F) ids.
            numerical: (B, M) float.
            labels: (B, T) 1 or 0; NaN or negative where absent. Features are compared on all rows.
        """
        phi_BTH, logit_BT = before_towers(self.student, categorical, numerical)
        hard_T = bce_per_task(logit_BT, labels)
        loss, terms = self.weigh(self.loss_weight * hard_T), named(hard_T)
        if self.distils:
            learn, listen = self.phase()
            taught_BTH, own_T = self._taught(categorical, numerical, labels, learn)
            distance_T = distances(self.adapt(phi_BTH if listen else phi_BTH.detach()), taught_BTH)
            loss = loss + (self.weight * distance_T).sum()
            terms |= {f"distance_{t}": each for t, each in enumerate(distance_T)}
            if learn:
                loss = loss + own_T.sum()
                terms |= {f"teacher_{t}": each for t, each in enumerate(own_T)}
        if self.training:
            self.step += 1
        return loss, {"loss": loss, **terms}

    def phase(self) -> tuple[bool, bool]:
        """Whether the teachers still learn, and whether the student listens to them."""
        if self.given:
            return False, True
        first = bool(self.step < self.share * self.total)
        return first or not self.total, not first

    def adapt(self, phi_BTH: Tensor) -> Tensor:
        """A_t phi of every task: (B, T, H')."""
        return torch.bmm(phi_BTH.transpose(0, 1), self.adaptor).transpose(0, 1)

    def optimizer(self, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        """Adam; the adaptors with a rate and a decay of their own."""
        network = [each for name, each in self.named_parameters() if name != "adaptor"]
        groups = [
            {"params": network, "weight_decay": weight_decay},
            {"params": [self.adaptor], "lr": learning_rate * self.adaptor_rate, "weight_decay": self.adaptor_decay},
        ]
        return torch.optim.Adam(groups, lr=learning_rate, fused=True)

    def _taught(self, categorical: Tensor, numerical: Tensor, labels: Tensor, learn: bool) -> tuple[Tensor, Tensor]:
        """Features of the teachers, without a gradient, and their own losses (T,)."""
        self.teacher.train(self.training and learn)  # frozen means eval: batch statistics would move too
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
            taught_BTH, logit_BT = before_towers(self.teacher, categorical, numerical)
            return taught_BTH.detach(), bce_per_task(logit_BT, labels)


def normalise(v: Tensor) -> Tensor:
    """n(v): vectors of length 1, or almost 0 where v is; float32."""
    v = v.float()
    return v / (v.square().sum(-1, keepdim=True) + TINY).sqrt()


def distances(adapted_BTH: Tensor, taught_BTH: Tensor) -> Tensor:
    """d of every task: (T,) float32 in [0, 4]; rows with an all but empty teacher feature are left out.

    >>> ahead, aside = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])
    >>> [round(distances(ahead, each).item(), 4) for each in (ahead, aside, -ahead)]
    [0.0, 2.0, 4.0]
    """
    shown_BT = taught_BTH.float().square().sum(-1) > TINY
    gap_BT = (normalise(adapted_BTH) - normalise(taught_BTH)).square().sum(-1)
    return torch.where(shown_BT, gap_BT, 0).sum(0) / shown_BT.sum(0).clamp(min=1)


def _xavier(tasks: int, width: int, out: int) -> Tensor:
    return torch.randn(tasks, width, out) * (2 / (width + out)) ** 0.5
