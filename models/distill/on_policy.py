"""On-policy distillation (generalized KD): the student learns what the teacher would say after the student's own words.

    L = 1/N sum_n D(p_n, q_n),    D = jsd, forward, reverse, ... of the next word

on texts that, once per step and for all ranks alike, are the student's own samples with probability lambda; otherwise
the teacher's samples (`sequence: true`) or the given completions. lambda = 0 with the forward KL is supervised KD.
Source: Agarwal et al., 2023, arXiv:2306.13649; sequence-level KD: Kim & Rush, 2016, arXiv:1606.07947. Start from a
student that is fine-tuned already: what it writes is the training text.
"""

from models.distill._divergence import Divergence
from models.distill._sequences import NextWords, Sampling, SequenceMethod, Text, sample
from models.distill._signals import Shape

__all__ = ["OnPolicy"]


class OnPolicy(SequenceMethod):
    """GKD of language models: a scalar >= 0, in nats per predicted token. Masks are those of Text.predicts.

    Args:
        on_policy: lambda, the probability of the student's own text.
        ramp: share of the run over which lambda rises from 0, evenly (ours).
        sequence: take the teacher's text instead of the given one.
        divergence, mix, temperature: see _divergence.
        sampling_temperature, new_tokens, top_k, top_p: of sampling, see _sequences.
        words: see _sequences.
        hard: weight of the gold labels, which only given texts have.

    Raises:
        ValueError: a setting out of range.
    """

    needs = ("logits", "hard")

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        on_policy: float = 0.5,
        ramp: float = 0.0,
        sequence: bool = False,
        divergence: str = "jsd",
        mix: float = 0.5,
        temperature: float = 1.0,
        sampling_temperature: float = 0.9,
        new_tokens: int = 128,
        top_k: int = 0,
        top_p: float = 1.0,
        words: int | None = None,
        hard: float = 0.0,
    ):
        how = Sampling(new_tokens, sampling_temperature, top_k, top_p)
        super().__init__(student, teacher, Divergence(divergence, mix, temperature), how, words)
        if not (0 <= on_policy <= 1 and 0 <= ramp <= 1):
            raise ValueError(f"on_policy and ramp are shares in [0, 1]; got {on_policy} and {ramp}")
        self.on_policy, self.ramp, self.sequence, self.hard = on_policy, ramp, sequence, hard

    def hard_weight(self) -> float:
        return self.hard

    def source(self) -> str:
        """Whose text this step learns on: "student", "teacher" or "data"."""
        risen = min(1.0, self.progress / self.ramp) if self.ramp else 1.0
        if self.draws()[0] < self.on_policy * risen:
            return "student"
        return "teacher" if self.sequence else "data"

    def texts(self, data: Text, student: NextWords, teacher: NextWords, end: int, pad: int, rank: int = 0) -> Text:
        """This step's texts, for the prompts of `data`."""
        if (source := self.source()) == "data":
            return data
        writer = student if source == "student" else teacher
        return sample(writer, data.prompts(), self.how, end, pad, self.draws(rank)[1])
