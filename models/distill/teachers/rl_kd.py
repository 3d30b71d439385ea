"""RL-KD: a policy learns which teachers to listen to on each row, rewarded by how well the student then does.

    average  L = alpha mean_k soft_k + (1 - alpha) hard
    policy   L = alpha mean_{i,k} a_ik soft_k,i + (1 - alpha) hard + L_policy,   a_ik ~ Bernoulli(pi_ik)
             pi_i = sigmoid(W_1 [c_i ; hard_1,i ... hard_K,i] + W_2 [z_1,i ; ... ; z_K,i])
             L_policy = -reward mean_i sum_k log pi(a_ik)    of the step before

c is the first token's last state in a separate encoder, if there is one. The reward of a step's choices is seen in the
next one: minus the student's hard loss there, in type 2 minus the teachers' mean as well (whose mean is ours). The
published code sums pi instead of log pi, which is no policy gradient. Means, not sums, over rows are ours.
Source: Yuan et al., 2020, arXiv:2012.06048; form as in Tan et al., 2023, arXiv:2306.06629.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.distill._signals import Shape, Signals
from models.distill.teachers._several import Choice, Several, check_share

__all__ = ["RLKD"]


class RLKD(Several):
    """Reinforced teacher selection: a scalar; its policy is part of its state, with the choices of the last step.

    Args:
        method: see Several. In the second stage it sees each teacher's rows together.
        alpha: weight of the teachers; the labels have the rest.
        reward: 1 or 2, see above.
        encoder: width of the separate encoder's states; 0 for none.
        stage: "average", then "policy".

    Raises:
        ValueError: another reward; alpha outside 0..1; no classes.
    """

    stages = ("average", "policy")

    def __init__(
        self,
        student: Shape,
        teachers: Sequence[Shape],
        method: Choice = "kd",
        alpha: float = 0.5,
        reward: int = 1,
        encoder: int = 0,
        stage: str | None = None,
    ):
        stage = self.choose_stage(stage)
        super().__init__(student, teachers, method, ("hard", "task") if stage == "policy" else ("hard",))
        if reward not in (1, 2):
            raise ValueError(f"there are rewards 1 and 2, not {reward}")
        self.uncut |= stage == "policy"  # it draws for a batch, and is rewarded by the next one
        self.alpha, self.reward, self.encoder = check_share("alpha", alpha), reward, encoder
        self.stage = stage
        self.teacher_reads_hard = self.stage == "policy"
        if self.stage == "policy":
            if not self.teacher.classes:
                raise ValueError("the policy reads the teachers' task logits, but they have no classes")
            count = len(teachers)
            self.by_state = nn.Linear(encoder + count, count)
            self.by_logits = nn.Linear(count * self.teacher.classes, count)
            self._before: tuple[Tensor, Tensor] | None = None  # what the policy saw (B, F), what was chosen (B, K)

    def hard_weight(self) -> float:
        return 1 - self.alpha

    def forward(self, student: Signals, teachers: Sequence[Signals], encoder: Signals | None = None) -> Tensor:
        """As for the others.

        Args:
            encoder: signals of the separate encoder, with its last hidden states.

        Raises:
            ValueError: a separate encoder is part of the policy, but its signals are missing.
        """
        if self.stage == "average":
            return self.alpha * self.each(student, teachers).mean()
        self.check(teachers)
        if self.encoder and encoder is None:
            raise ValueError("the policy reads a separate encoder, whose signals are missing; or set encoder: 0")
        seen_BF = self.seen(teachers, encoder)
        with torch.no_grad():
            draw_BK = torch.rand(len(seen_BF), len(self.methods), generator=self.generator()).to(seen_BF.device)
            chosen_BK = draw_BK < self.logits(seen_BF).sigmoid()
        loss = self.alpha * self.on_rows(student, teachers, chosen_BK) / len(self.methods)
        if self.training:
            loss = loss + self._policy_loss(student, teachers)
            self._before = seen_BF, chosen_BK
        return loss

    def seen(self, teachers: Sequence[Signals], encoder: Signals | None = None) -> Tensor:
        """What the policy reads of each row: (B, F)."""
        state = [encoder.hidden[-1][:, 0]] if self.encoder else []
        parts = [*state, *(t.hard[:, None] for t in teachers), *(t.task for t in teachers)]
        return torch.cat([part.detach().to(self.by_state.weight.dtype) for part in parts], -1)

    def logits(self, seen_BF: Tensor) -> Tensor:
        """log(pi / (1 - pi)): (B, K)."""
        state_BF, task_BF = seen_BF.split([self.by_state.in_features, self.by_logits.in_features], -1)
        return self.by_state(state_BF) + self.by_logits(task_BF)

    def get_extra_state(self) -> Tensor:
        """The last step's choices, which wait for their reward: (B, F + K), or (0, F + K) where there are none."""
        if self.stage != "policy" or self._before is None:
            return torch.zeros(0, 0)
        seen_BF, chosen_BK = self._before
        return torch.cat([seen_BF, chosen_BK.to(seen_BF.dtype)], -1)

    def set_extra_state(self, state: Tensor) -> None:
        """What `get_extra_state` gave."""
        if self.stage == "policy":
            seen_BF, chosen_BK = state[:, : -len(self.methods)], state[:, -len(self.methods) :].bool()
            self._before = (seen_BF, chosen_BK) if len(state) else None

    def _policy_loss(self, student: Signals, teachers: Sequence[Signals]) -> Tensor:
        if self._before is None:
            return self.by_state.weight.new_zeros(())
        seen_BF, chosen_BK = self._before
        reward = -student.hard.detach().float().mean()
        if self.reward == 2:
            reward = reward - torch.stack([teacher.hard.float().mean() for teacher in teachers]).mean()
        logits_BK = self.logits(seen_BF.to(self.by_state.weight.device))
        log_pi_BK = -F.binary_cross_entropy_with_logits(logits_BK, chosen_BK.to(logits_BK), reduction="none")
        return -reward * log_pi_BK.sum(-1).mean()
