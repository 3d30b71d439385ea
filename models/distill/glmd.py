"""GLMD: word prediction at every place, then the teacher's word on the task; no inner states and no gold labels.

    corpus, task   L = tau^2 mean_n KL(softmax(Z_t[n, keep] / tau) || softmax(Z_s[n] / tau)),   tau = 15
    labels         L = -mean_i softmax(y_t,i) . log softmax(y_s,i)

n runs over all real tokens, not only predicted ones: first of the pre-training text under the pre-trained teacher, then
of the task's text under the fine-tuned one; "labels" starts from the best of "task", which stays a candidate itself.
The student may know fewer words: the teacher's logits are cut to the kept ones before the softmax.
Source: Tan et al., 2023, arXiv:2306.06625. Padded places do not count in the mean, unlike in the published code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.distill._maths import check_temperature, soft_cross_entropy, token_kl
from models.distill._signals import Method, Shape, Signals
from models.distill._words import columns

__all__ = ["GLMD"]


class GLMD(Method):
    """General language model distillation: a scalar, in nats per real token (>= 0), or per row for "labels".

    Widths, depths, heads and kinds of model may all differ; the tokenizer may not.

    Args:
        temperature: of the word predictions; the task's is 1.
        keep: original ids of the student's words, in its order, see _vocabulary; None where both know the same words.
        stage: "corpus", then "task", then "labels".

    Raises:
        ValueError: the kept words are not the student's vocabulary, or not all of the teacher's.
    """

    needs = ("logits", "task")
    stages = ("corpus", "task", "labels")
    keep: Tensor | None

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        temperature: float = 15.0,
        keep: Sequence[int] | Tensor | None = None,
        stage: str | None = None,
    ):
        super().__init__(student, teacher)
        self.temperature, self.stage = check_temperature(temperature), self.choose_stage(stage)
        self.needs = ("task",) if self.stage == "labels" else ("logits",)
        self.register_buffer("keep", None if keep is None else torch.as_tensor(keep, dtype=torch.int64))
        self._check_words()

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        if self.stage == "labels":
            return soft_cross_entropy(student.task, teacher.task).mean()
        words = teacher.logits if self.keep is None else columns(teacher.logits, self.keep)
        return token_kl(student.logits, words, student.mask, self.temperature)

    def _check_words(self) -> None:
        known, told = self.teacher.vocabulary, self.student.vocabulary
        if self.keep is None:
            if told != known:
                raise ValueError(
                    f"the student knows {told} words and the teacher {known}; give `keep`, the teacher's ids of the "
                    "student's words"
                )
            return
        if len(self.keep) != told:
            raise ValueError(f"{len(self.keep)} words are kept, but the student's vocabulary has {told}")
        if len(self.keep.unique()) != told or not ((self.keep >= 0) & (self.keep < known)).all():
            raise ValueError(f"kept words must be different ids in 0..{known - 1}, the teacher's vocabulary")
