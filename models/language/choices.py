"""Multiple choice by log-likelihood: the answer is the option that a language model finds the likeliest.

    letter   s_i = log p(letter_i | question, all options with their letters)
    text     s_i = log p(option_i | question) / size_i      answer = argmax_i s_i

A long option is a product of more probabilities and would lose without a division by its size. Sizes are characters
here and not tokens, so that models of different vocabularies are asked the same.

Source: the letter form, Hendrycks et al., 2021, arXiv:2009.03300; likelihood divided by a size, Brown et al., 2020,
arXiv:2005.14165, section 2.4 (by tokens; by characters is ours), and so is what happens to ties.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.language._causal import Causal
from models.language._likelihood import Asked, likelihoods

__all__ = ["Choices"]

TIE = 1e-4  # nats: less is what the order of float32 sums decides, so that the batch's size would choose


class Choices:
    """Scores of options under one model.

    Args:
        model: in evaluation mode.
        length: tokens that it reads at most.
        batch: rows at a time; changes no answer.
    """

    def __init__(self, model: Causal, length: int, batch: int = 16):
        self.model, self.length, self.batch = model, length, batch

    def scores(self, asked: Sequence[Asked], sizes: Sequence[Sequence[int]] | None = None) -> list[Tensor]:
        """For each question (options,) float64; the higher the likelier.

        Args:
            asked: questions and their options, or letters.
            sizes: of each option, in characters; None where options are letters.

        Raises:
            ValueError: an empty or too long question; an option of size 0.
        """
        found = likelihoods(self.model, asked, self.length, self.batch)
        if sizes is None:
            return found
        if empty := [number for number, row in enumerate(sizes) if min(row) < 1]:
            raise ValueError(f"question {empty[0]} of {len(sizes)} has an option without characters; leave it out")
        return [score / torch.tensor(size) for score, size in zip(found, sizes, strict=True)]

    def answers(self, asked: Sequence[Asked], sizes: Sequence[Sequence[int]] | None = None) -> list[int]:
        """The place of each question's best option; the first one of those that are as good."""
        return [choose(score) for score in self.scores(asked, sizes)]


def choose(score_O: Tensor) -> int:
    """The first option that is as good as the best one.

    >>> choose(torch.tensor([-2.0, -1.00001, -1.0]))
    1
    """
    return int((score_O >= score_O.max() - TIE).int().argmax())
