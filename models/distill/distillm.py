"""DistiLLM: a skewed divergence, and the student's own texts only as far as they help, used more than once.

    L = 1/N sum_n KL(p_n || a p_n + (1 - a) q_n),    a = 0.1; or its reverse, KL(q || (1 - a) p + a q)

phi, the share of student texts, starts at 0 and rises by 0.1 whenever the validation loss exceeds the one before by
epsilon. With r uniform and t / T the share of the run that is done, a step's text is

    new student text, which also goes into the buffer    r < phi (1 - t / T), or r < phi while the buffer is not full
    from the buffer                                      otherwise, if r < phi
    given                                                otherwise

Source: Ko et al., 2024, arXiv:2402.03898. Each validation is compared with the one just before it; the published code
compares with the last one that raised phi.
"""

import math

import torch
from torch import Tensor

from models.distill._divergence import Divergence
from models.distill._sequences import NextWords, Replay, Sampling, SequenceMethod, Text, sample
from models.distill._signals import Shape

__all__ = ["DistiLLM"]


class DistiLLM(SequenceMethod):
    """Skew KL on adaptively chosen texts: a scalar >= 0, in nats per predicted token. Masks are of Text.predicts.

    Args:
        skew: a, in (0, 1).
        reverse: use the skew reverse KL.
        tolerance: epsilon.
        rise: of phi at a time.
        capacity: texts in the buffer.
        length: tokens of the longest text, prompt included.
        temperature: of the loss.
        sampling_temperature, new_tokens, top_k, top_p: of sampling, see _sequences.
        words: see _sequences.
        hard: weight of the gold labels, which only given texts have.

    Raises:
        ValueError: a setting out of range.
    """

    needs = ("logits", "hard")
    phi: Tensor
    previous: Tensor

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        skew: float = 0.1,
        reverse: bool = False,
        tolerance: float = 0.1,
        rise: float = 0.1,
        capacity: int = 1000,
        length: int = 512,
        temperature: float = 1.0,
        sampling_temperature: float = 1.0,
        new_tokens: int = 256,
        top_k: int = 0,
        top_p: float = 1.0,
        words: int | None = None,
        hard: float = 0.0,
    ):
        which = Divergence("skew_reverse" if reverse else "skew_forward", skew, temperature)
        super().__init__(student, teacher, which, Sampling(new_tokens, sampling_temperature, top_k, top_p), words)
        if tolerance < 0 or not 0 < rise <= 1:
            raise ValueError(f"tolerance must be >= 0 and rise in (0, 1]; got {tolerance} and {rise}")
        self.tolerance, self.rise, self.hard = tolerance, rise, hard
        self.replay = Replay(capacity, length)
        self.register_buffer("phi", torch.zeros((), dtype=torch.float64))
        self.register_buffer("previous", torch.tensor(math.inf, dtype=torch.float64))

    def hard_weight(self) -> float:
        return self.hard

    def validated(self, loss: float) -> None:
        """Tell it each validation loss in turn."""
        if loss >= self.previous.item() + self.tolerance:
            self.phi.copy_((self.phi + self.rise).clamp(max=1.0))
        self.previous.fill_(loss)

    def source(self) -> str:
        """Whose text this step learns on: "student", "buffer" or "data"."""
        number, phi = self.draws()[0], self.phi.item()
        if number >= phi:
            return "data"
        return "student" if number < phi * (1 - self.progress) or not self.replay.full else "buffer"

    def texts(
        self, data: Text, student: NextWords, teacher: NextWords | None, end: int, pad: int, rank: int = 0
    ) -> Text:
        """This step's texts, for the prompts of `data`; what the student writes is kept. The teacher writes none."""
        source, generator = self.source(), self.draws(rank)[1]
        if source == "data":
            return data
        if source == "buffer":
            return self.replay.draw(len(data.ids), generator)
        text = sample(student, data.prompts(), self.how, end, pad, generator)
        self.replay.push(text)
        return text
