"""MiniLLM: the reverse KL of whole texts, whose gradient is in part exact and in part that of a policy.

    L = KL(q || p) over texts,   r_t = log p(y_t) - log q(y_t)
    single   1/N sum_t KL(q_t || p_t)                              the word at t, exactly, over the vocabulary
    long    -1/N sum_t w_t R_{t+1} log q(y_t)                      what follows from it, by policy gradient
    R_{t+1} = 1/(T - t) sum_{t' > t} r_t'                          per remaining word: short texts gain nothing
    y ~ m = a p + (1 - a) q,   w_t = q(y_t) / m(y_t),   a = 0.2    the teacher helps to write; constants

and the loss of a plain corpus' own words. Several steps learn from one roll-out; the ratio of q to what it was then is
clipped to 1 +- 0.2, on the side where it would run away.
Source: Gu et al., 2023, arXiv:2306.08543, sections 2.1 to 2.3. Rewards are neither whitened nor centred, and w is
outside the clipping, unlike in the published code (ours: the gradient is then that of the equations).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.distill._divergence import Divergence, chosen_log_probs
from models.distill._sequences import NextWords, Sampling, SequenceMethod, Text, mixed, sample
from models.distill._signals import Shape, Signals

__all__ = ["MiniLLM", "Rollout"]


@dataclass(frozen=True)
class Rollout:
    """Sampled texts as they were when sampled: (B, T) each, 0 at places that do not count; constants."""

    chosen: Tensor  # int64, the word after each place
    old: Tensor  # log q of it
    gain: Tensor  # R_{t+1}
    weight: Tensor  # w_t


class MiniLLM(SequenceMethod):
    """Reverse KL by policy gradient: a scalar, in nats per predicted token. Masks are those of Text.predicts.

    Without a roll-out, on any text, the loss is its exact part alone.

    Args:
        share: a, of the teacher in what is written, in [0, 1).
        clip: of the ratio.
        reward_clip: largest size of one r_t.
        sampling_temperature, new_tokens, top_k, top_p: of sampling, see _sequences.
        words: see _sequences.
        hard: weight of the plain corpus' own loss, which the student shows as its hard loss.

    Raises:
        ValueError: a setting out of range.
    """

    needs = ("logits", "hard")

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        share: float = 0.2,
        clip: float = 0.2,
        reward_clip: float = 100.0,
        sampling_temperature: float = 1.0,
        new_tokens: int = 256,
        top_k: int = 0,
        top_p: float = 1.0,
        words: int | None = None,
        hard: float = 1.0,
    ):
        how = Sampling(new_tokens, sampling_temperature, top_k, top_p)
        super().__init__(student, teacher, Divergence("reverse"), how, words)
        if not 0 <= share < 1 or not clip > 0 or not reward_clip > 0:
            raise ValueError(
                f"share must be in [0, 1), clip and reward_clip above 0; got {share}, {clip} and {reward_clip}"
            )
        self.mixture, self.clip, self.reward_clip, self.hard = share, clip, reward_clip, hard

    def hard_weight(self) -> float:
        return self.hard

    def texts(self, data: Text, student: NextWords, teacher: NextWords, end: int, pad: int, rank: int = 0) -> Text:
        """Texts of student and teacher together, for the prompts of `data`."""
        writer = mixed(student, teacher, self.mixture)
        return sample(writer, data.prompts(), self.how, end, pad, self.draws(rank)[1])

    def measure(self, student: Signals, teacher: Signals, text: Text) -> Rollout:
        """What the policy gradient needs to know of new texts, before the first step on them."""
        chosen, mask = text.ids.roll(-1, 1), student.mask
        with torch.no_grad():
            q, p = (self._chosen(seen, mask, chosen) for seen in (student, teacher))
            written = q
            if self.mixture:
                written = torch.logaddexp(p + math.log(self.mixture), q + math.log1p(-self.mixture))
            gain = long_gain((p - q).clamp(-self.reward_clip, self.reward_clip), mask)
            return Rollout(chosen, q, gain, (q - written).exp() * mask)

    def forward(
        self,
        student: Signals,
        teacher: Signals,
        count: Tensor | int | None = None,
        rollout: Rollout | None = None,
    ) -> Tensor:
        loss = self.compare(student, teacher, count)
        if rollout is None:
            return loss
        ratio = (self._chosen(student, student.mask, rollout.chosen) - rollout.old).exp()
        held = ratio.clamp(1 - self.clip, 1 + self.clip)
        gained = rollout.weight * torch.minimum(ratio * rollout.gain, held * rollout.gain)
        return loss - gained.sum() / self.share(student.mask, count)

    def _chosen(self, seen: Signals, mask: Tensor, ids: Tensor) -> Tensor:
        """log-probabilities (B, T) of `ids`, 0 where nothing counts: never computed there."""
        found = chosen_log_probs(self.true(seen.logits)[mask], ids[mask])
        return torch.zeros(mask.shape, dtype=found.dtype, device=mask.device).masked_scatter(mask, found)


def long_gain(reward_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """R_{t+1}: the mean reward of the places after each, within its text; 0 after the last."""
    reward_BT = reward_BT * mask_BT
    later = lambda x: x.flip(1).cumsum(1).flip(1) - x
    return later(reward_BT) / later(mask_BT.to(reward_BT)).clamp(min=1) * mask_BT
