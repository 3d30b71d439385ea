"""PoDiRe: a teacher of each task learns what actions are worth in the long run; one small policy is distilled from all.

On logged choices (x, a, r, p), for each task t, with A actions:

    y    = r_t + gamma alive Q'_t(x', argmax_a Q_t(x', a))                  x' follows x; Q' is an old copy of Q
    L_Q  = sum_i rho_i (y_i - Q_t(x_i, a_i))^2 / sum_i rho_i                rho = min(1 / (A p), clip)
    T    = softmax_a( (Q_t(x, a) - mean_a Q_t) / (tau spread) )             spread: of Q between actions
    V_DR = mean of sum_a pi_t(a | x) Q_t(x, a) + w (y - Q_t(x, a_i))        w = min(pi_t(a_i | x) / p, clip)
    L_pi = sum_t KL(T || pi_t) - eta V_DR / spread

First the teachers learn, then they are frozen and the student listens: one trunk, a head for each task. Served: pi.
Source: Liu et al., 2020, arXiv:2001.09595, of which only the abstract was open to us: deep Q-teachers for long-term
rewards, distilled into one small multi-task policy. Distillation by a KL of a softmax over values is Rusu et al., 2015,
arXiv:1511.06295; the copy and the argmax van Hasselt et al., 2015, arXiv:1509.06461. Ours: all that makes it offline
(rho, w, the value V_DR in the student's loss), tau in units of the spread, and every number. Without x' it is a
contextual bandit.
Seen on made-up choices that positions bias: of 20,000 rows the student earned more than the best of a click model in
three logs of three (.395 to .408 against .381 to .391), of 4,000 in two of three: Q is learned of few, weighted rows.
"""

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.recommend.bandit._policies import shown_alike

__all__ = ["PoDiRe", "Policy", "target"]

TINY = 1e-6


class PoDiRe(nn.Module):
    """Teachers and the student policy.

    Args:
        width: D of a context.
        actions: A.
        tasks: T, rewards of a choice.
        teacher: hidden widths of each task's teacher.
        student: hidden widths of the trunk that all tasks share.
        temperature: tau; small is greedy.
        value: eta; 0 distils only.
        gamma: what the next step's worth counts; where no next step is given, nothing.
        clip: largest importance weight.
        teach: steps in which the teachers learn.
        copy_every: of those steps, Q' is renewed.

    Raises:
        ValueError: a setting outside of its range; names all of them.
    """

    def __init__(
        self,
        width: int,
        actions: int,
        tasks: int = 1,
        teacher: Sequence[int] = (128, 64),
        student: Sequence[int] = (32,),
        temperature: float = 0.2,
        value: float = 0.1,
        gamma: float = 0.9,
        clip: float = 20.0,
        teach: int = 1000,
        copy_every: int = 100,
    ):
        super().__init__()
        wrong = [f"{name} must be >= 1, got {least}" for name, least in
                 (("width", width), ("actions", actions), ("tasks", tasks), ("copy_every", copy_every))
                 if least < 1]  # fmt: skip
        wrong += [] if temperature > 0 and clip > 0 else [f"temperature and clip > 0, got {temperature}, {clip}"]
        if value < 0 or not 0 <= gamma < 1 or teach < 0:
            wrong.append(f"value >= 0, gamma in [0, 1), teach >= 0; got {value}, {gamma}, {teach}")
        if wrong:
            raise ValueError("podire: " + "; ".join(wrong))
        self.actions, self.tasks, self.temperature, self.value = actions, tasks, temperature, value
        self.gamma, self.clip, self.teach, self.copy_every = gamma, clip, teach, copy_every
        self.teachers = nn.ModuleList(_perceptron(width, [*teacher, actions]) for _ in range(tasks))
        self.old = deepcopy(self.teachers).requires_grad_(False)  # Q'
        self.policy = Policy(width, actions, tasks, student)
        self.register_buffer("step", torch.tensor(0))

    def forward(
        self,
        context: Tensor,
        action: Tensor,
        reward: Tensor,
        propensity: Tensor,
        following: Tensor | None = None,
        alive: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The teachers' loss, or the student's once they are frozen; in training mode each call counts as one step.

        Args:
            context: (B, D) float.
            action: (B,) int64.
            reward: (B, T) float.
            propensity: (B,) in (0, 1].
            following: (B, D) the context after each choice; None for a bandit.
            alive: (B,) 1 where there was one, else 0; None for all.
        """
        if reward.shape != (len(action), self.tasks):
            raise ValueError(f"reward must be ({len(action)}, {self.tasks}), a column for each task; "
                             f"got {tuple(reward.shape)}")  # fmt: skip
        learn = bool(self.step < self.teach)
        if self.training and learn and self.step % self.copy_every == 0:
            self.old.load_state_dict(self.teachers.state_dict())
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
            q_BTA = self._worth(self.teachers, context)
        chosen_BT = q_BTA.gather(2, action[:, None, None].expand(-1, self.tasks, 1)).squeeze(2)
        y_BT = self._returns(reward, following, alive)
        if learn:
            rho_B = shown_alike(propensity, self.actions, self.clip)
            error_T = (rho_B[:, None] * (y_BT - chosen_BT).square()).sum(0) / rho_B.sum()
            loss, terms = error_T.sum(), {f"teacher_{t}": each for t, each in enumerate(error_T)}
        else:
            loss, terms = self._listen(context, action, propensity, q_BTA, chosen_BT, y_BT)
        if self.training:
            self.step += 1
        return loss, {"loss": loss, **terms}

    @torch.no_grad()
    def values(self, context: Tensor) -> Tensor:
        """Q of every action, as the teachers see it: (B, T, A)."""
        return self._worth(self.teachers, context)

    @torch.no_grad()
    def score(self, context: Tensor) -> Tensor:
        """The student's probabilities of every action: (B, T, A), float32."""
        return self.policy(context).float().softmax(-1)

    def _worth(self, nets: nn.ModuleList, context: Tensor) -> Tensor:
        return torch.stack([net(context).float() for net in nets], 1)

    @torch.no_grad()
    def _returns(self, reward: Tensor, following: Tensor | None, alive: Tensor | None) -> Tensor:
        if following is None or not self.gamma:
            return reward
        best_BT1 = self._worth(self.teachers, following).argmax(-1, keepdim=True)
        later_BT = self._worth(self.old, following).gather(2, best_BT1).squeeze(2)
        return reward + self.gamma * (later_BT if alive is None else later_BT * alive[:, None])

    def _listen(self, context, action, propensity, q_BTA, chosen_BT, y_BT) -> tuple[Tensor, dict[str, Tensor]]:
        log_BTA = self.policy(context).float().log_softmax(-1)
        target_BTA, spread_T = target(q_BTA, self.temperature)
        distilled_T = (target_BTA * (target_BTA.clamp(min=TINY).log() - log_BTA)).sum(-1).mean(0)
        loss, terms = distilled_T.sum(), {f"distilled_{t}": each for t, each in enumerate(distilled_T)}
        if self.value:
            policy_BTA = log_BTA.exp()
            own_BT = policy_BTA.gather(2, action[:, None, None].expand(-1, self.tasks, 1)).squeeze(2)
            weight_BT = (own_BT / propensity[:, None]).clamp(max=self.clip)
            value_T = ((policy_BTA * q_BTA).sum(-1) + weight_BT * (y_BT - chosen_BT)).mean(0)
            loss = loss - self.value * (value_T / spread_T).sum()
            terms |= {f"value_{t}": each for t, each in enumerate(value_T)}
        return loss, terms


class Policy(nn.Module):
    """What is served: a shared trunk and a head for each task: (B, D) -> logits (B, T, A)."""

    def __init__(self, width: int, actions: int, tasks: int, widths: Sequence[int]):
        super().__init__()
        self.shape = tasks, actions
        self.net = _perceptron(width, [*widths, tasks * actions])

    def forward(self, context: Tensor) -> Tensor:
        return self.net(context).unflatten(-1, self.shape)


def target(q_BTA: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T of every row and task (B, T, A), and the spread of values between actions (T,).

    >>> target(torch.tensor([[[1.0, 3.0]]]), temperature=1.0)[0]  # centred: -1, 1; spread 1
    tensor([[[0.1192, 0.8808]]])
    """
    centred_BTA = q_BTA - q_BTA.mean(-1, keepdim=True)
    spread_T = centred_BTA.square().mean((0, 2)).sqrt().clamp(min=TINY)
    return (centred_BTA / (temperature * spread_T[:, None])).softmax(-1), spread_T


def _perceptron(width: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise([width, *widths]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
