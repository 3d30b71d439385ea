"""What a policy showed and what came of it: contexts, actions, rewards, and how likely each action was."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Logged", "LoggedError"]


class LoggedError(ValueError):
    """A log that no estimate can be made of."""


@dataclass(frozen=True)
class Logged:
    """N logged choices of one of A actions.

    Attributes:
        context: (N, D) float32: what the policies may read.
        action: (N,) int64, 0..A-1: what was shown.
        reward: (N, T) float32, of T tasks.
        propensity: (N,) float32 in (0, 1]: how likely the logging policy was to show it there.
        actions: A.
    """

    context: Tensor
    action: Tensor
    reward: Tensor
    propensity: Tensor
    actions: int

    @classmethod
    def of(cls, context, action, reward, propensity, actions: int) -> "Logged":
        """Check and convert; a reward (N,) is that of one task.

        Raises:
            LoggedError: names everything that is wrong, and in how many rows.
        """
        context, reward = (torch.as_tensor(part, dtype=torch.float32) for part in (context, reward))
        action, propensity = torch.as_tensor(action), torch.as_tensor(propensity, dtype=torch.float32)
        reward = reward.unsqueeze(-1) if reward.dim() == 1 else reward
        lengths = {len(part) for part in (context, action, reward, propensity)}
        if len(lengths) != 1 or not lengths.pop() or context.dim() != 2 or reward.dim() != 2:
            raise LoggedError(f"a log has one row of each for every choice, and at least one; got context "
                              f"{tuple(context.shape)}, action {tuple(action.shape)}, reward {tuple(reward.shape)}, "
                              f"propensity {tuple(propensity.shape)}")  # fmt: skip
        outside = (action < 0) | (action >= actions)
        unlikely = ~((propensity > 0) & (propensity <= 1))
        odd = ~(reward.isfinite().all(-1) & context.isfinite().all(-1))
        found = {f"actions outside 0..{actions - 1}": outside, "propensities not in (0, 1]": unlikely,
                 "rewards or contexts that are no number": odd}  # fmt: skip
        if wrong := [f"{int(rows.sum())} {name}" for name, rows in found.items() if rows.any()]:
            raise LoggedError(f"of {len(action)} logged choices: " + ", ".join(wrong) + "; drop those rows")
        return cls(context, action.long(), reward, propensity, actions)

    def __len__(self) -> int:
        return len(self.action)

    def rows(self, chosen: Tensor) -> "Logged":
        """The choices of some rows, by number or mask."""
        parts = (part[chosen] for part in (self.context, self.action, self.reward, self.propensity))
        return Logged(*parts, self.actions)

    def batch(self, chosen: Tensor) -> dict[str, Tensor]:
        """Some rows as a model's `forward` takes them."""
        part = self.rows(chosen)
        return {"context": part.context, "action": part.action, "reward": part.reward, "propensity": part.propensity}
