"""CrossDistil: ranking teachers order the rows that a task labels alike by another task's label; a student listens.

For two tasks A and B, with x_{ab} a row of labels a and b, r the logit of A's teacher, l that of A's student:

    L_A+  = - b_1 ln s(r_++ - r_+-) - b_2 ln s(r_-+ - r_--) - sum over x_+, x_- of ln s(r_+ - r_-)      ranking teacher
    L_cal = BCE(y, s(r~)),  r~ = P sg(r) + Q                                                            only P, Q learn
    r^    = z max(z r~, m),  z = 1 where y = 1, else -1                                                 error correction
    L_stu = (1 - a) BCE(y, s(l)) + a BCE( s(sg(r^) / t), s(l / t) )
    L     = sum over A, B of  L_stu + L_+ + L_cal

s is the sigmoid, sg stops the gradient; B's teacher is the same with the two labels exchanged. Students and teachers
share all but their towers; students only are served.
Source: Yang et al., 2022, arXiv:2202.09852, of which only abstract and summaries were open to us: equations are as we
remember them, and all numbers ours. Ours too: the four pairs of a quadruplet, quadruplets out of the batch, P > 0, Q's
start at the base rate of the first batch, and the body's way (mean or sum) to weigh tasks.
Seen on made-up data: it helps where the plain network has few rows and learns their noise (AUC .722 to .750), and costs
about as much there if B is noise; predictions of a rare A come out too high, as r^ of its positives is seldom above m.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend._body import Taught, before_towers, quietly
from models.recommend._layers import Towers, bce_per_task, named
from models.recommend._quadruplets import draw, ranking_loss

__all__ = ["CrossDistil", "correct"]

RARE = 1e-3  # of the base rate at which Q starts: a first batch may have no positive


class CrossDistil(Taught):
    """A multi-task student, and a ranking teacher for each of two tasks.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        tasks: T, at least 2.
        embedding: width of a field's embedding.
        method: the student's: mmoe, omoe, ple, shared_bottom or stem.
        settings: of that method.
        pair: tasks A and B; the others learn as in the plain network.
        towers: hidden widths of each teacher's tower.
        between: b_1 and b_2: how much the other task's order counts among own positives and among own negatives.
        alpha: a, how much the student listens to the teacher.
        warmup: training steps with a = 0.
        temperature: t; its square does not scale the loss.
        margin: m, in logits.
        ranking: weight of L_+; 0, with alpha 0, is the plain network.
        quadruplets: drawn of each batch, at most.
        repeats: quadruplets for each row of the batch's smallest group, at most.
        calibration_rate: learning rate of P and Q, as a multiple of the network's.
        seed: of the draws.

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
        pair: Sequence[int] = (0, 1),
        towers: Sequence[int] = (128, 64),
        between: Sequence[float] = (0.5, 0.5),
        alpha: float = 0.5,
        warmup: int = 200,
        temperature: float = 1.0,
        margin: float = 1.0,
        ranking: float = 1.0,
        quadruplets: int = 1024,
        repeats: int = 8,
        calibration_rate: float = 10.0,
        seed: int = 0,
    ):
        super().__init__("crossdistil", method, sizes, dense, tasks, embedding, settings)
        wrong = []
        if len(set(pair)) != 2 or len(pair) != 2 or not all(0 <= task < tasks for task in pair):
            wrong.append(f"pair names two of the tasks 0..{tasks - 1}, got {list(pair)} of {tasks} tasks")
        if len(between) != 2 or min(between) < 0 or margin < 0 or ranking < 0:
            wrong.append(f"between is two weights, margin and ranking numbers, all >= 0, got {list(between)}, "
                         f"{margin}, {ranking}")  # fmt: skip
        if not 0 <= alpha <= 1 or (alpha and not ranking):
            wrong.append(f"alpha is a share, 0 to 1, and 0 where ranking is, or teachers never learn; got {alpha}")
        if temperature <= 0 or calibration_rate <= 0 or min(quadruplets, repeats) < 1 or warmup < 0:
            wrong.append(f"temperature and calibration_rate > 0, quadruplets and repeats >= 1, warmup >= 0; got "
                         f"{temperature}, {calibration_rate}, {quadruplets}, {repeats}, {warmup}")  # fmt: skip
        if wrong:
            raise ValueError("crossdistil: " + "; ".join(wrong))
        self.between, self.alpha, self.warmup, self.temperature = tuple(between), alpha, warmup, temperature
        self.margin, self.ranking, self.quadruplets, self.repeats = margin, ranking, quadruplets, repeats
        self.calibration_rate, self.seed = calibration_rate, seed
        dropout, norm = self.student.dropout, self.student.norm
        self.teachers = quietly(lambda: Towers(2, self.read, towers, dropout, norm))
        self.scale = nn.Parameter(torch.full((2,), 1.0).expm1().log())  # softplus of it is P = 1
        self.shift = nn.Parameter(torch.zeros(2))  # Q
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("pair", torch.tensor(list(pair)), persistent=False)

    def forward(
        self, categorical: Tensor, numerical: Tensor, labels: Tensor, quadruplets: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L and its terms; in training mode each call counts as one step.

        Args:
            categorical: (B, F) ids.
            numerical: (B, M) float.
            labels: (B, T) 1 or 0; NaN or negative where absent: such a row is in no quadruplet.
            quadruplets: (Q, 4) rows of this batch, of labels ++, +-, -+ and --; None draws them.
        """
        z_BTH, logit_BT = before_towers(self.student, categorical, numerical)
        hard_T = bce_per_task(logit_BT, labels)
        student_T, terms, teaching = hard_T, named(hard_T), 0
        if self.ranking:
            teacher_B2 = self.teachers(z_BTH[:, self.pair]).float()
            label_B2 = labels[:, self.pair]
            if quadruplets is None:
                random = torch.Generator(labels.device).manual_seed(self.seed * 1_000_003 + int(self.step))
                quadruplets = draw(label_B2, self.quadruplets, self.repeats, random)
            order_2 = torch.stack([ranking_loss(teacher_B2[:, t], quadruplets, t, self.between) for t in (0, 1)])
            self._start_at_base_rate(label_B2)
            calibration_2 = bce_per_task(self.calibrated(teacher_B2.detach()), label_B2)
            teaching = self.ranking * self.weigh(order_2) + self.weigh(calibration_2)
            soft_2 = self._listened(logit_BT[:, self.pair], teacher_B2, label_B2)
            alpha = self.alpha * (self.step >= self.warmup)
            student_T = hard_T.index_copy(0, self.pair, (1 - alpha) * hard_T[self.pair] + alpha * soft_2)
            for t, name in enumerate("ab"):
                terms |= {f"ranking_{name}": order_2[t], f"calibration_{name}": calibration_2[t],
                          f"distilled_{name}": soft_2[t]}  # fmt: skip
        if self.training:
            self.step += 1
        loss = self.weigh(student_T) + teaching
        return loss, {"loss": loss, **terms}

    def calibrated(self, logit_B2: Tensor) -> Tensor:
        """r~ of teachers' logits (B, 2)."""
        return F.softplus(self.scale) * logit_B2 + self.shift

    @torch.no_grad()
    def teacher_logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """r of both teachers, for evaluation only: (B, 2)."""
        z_BTH, _ = before_towers(self.student, categorical, numerical)
        return self.teachers(z_BTH[:, self.pair]).float()

    def optimizer(self, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        """Adam; P and Q with a rate of their own, and no decay."""
        two = [self.scale, self.shift]
        network = [each for name, each in self.named_parameters() if name not in ("scale", "shift")]
        groups = [{"params": network, "weight_decay": weight_decay},
                  {"params": two, "lr": learning_rate * self.calibration_rate}]  # fmt: skip
        return torch.optim.Adam(groups, lr=learning_rate, fused=True)

    def _listened(self, logit_B2: Tensor, teacher_B2: Tensor, label_B2: Tensor) -> Tensor:
        target_B2 = correct(self.calibrated(teacher_B2), label_B2, self.margin).detach() / self.temperature
        soft_B2 = target_B2.sigmoid().masked_fill(~(label_B2 >= 0), torch.nan)
        return bce_per_task(logit_B2 / self.temperature, soft_B2)

    @torch.no_grad()
    def _start_at_base_rate(self, label_B2: Tensor) -> None:
        if self.training and self.step == 0:
            here_B2 = label_B2 >= 0
            rate_2 = torch.where(here_B2, label_B2, 0).sum(0) / here_B2.sum(0).clamp(min=1)
            self.shift.copy_(rate_2.clamp(RARE, 1 - RARE).logit())


def correct(logit: Tensor, label: Tensor, margin: float) -> Tensor:
    """r^: a logit that never contradicts its label, and stays `margin` away from the boundary.

    >>> correct(torch.tensor([2.0, -3.0, -2.0, 3.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]), margin=1.0)
    tensor([ 2.,  1., -2., -1.])
    """
    sign = torch.where(label == 1, 1.0, -1.0)
    return sign * (sign * logit).clamp(min=margin)
