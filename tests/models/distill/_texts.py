"""Made-up language models and texts."""

import torch
from torch import Tensor, nn

from models.distill._sequences import Text
from models.distill._signals import Shape, Signals
from models.distill._words import Words

END, PAD, WORDS = 1, 0, 12
LM = Shape(layers=1, width=4, heads=1, vocabulary=WORDS)


class Bigram(nn.Module):
    """The next word depends on the last one alone; counts how often it is asked."""

    def __init__(self, seed: int, scale: float = 1.0, width: int = 4):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.word = nn.Parameter(scale * torch.randn(WORDS, width, generator=generator).double())
        self.head = nn.Parameter(scale * torch.randn(WORDS, width, generator=generator).double())
        self.calls = 0

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.calls += 1
        return self.word[ids[:, -1]] @ self.head.T

    def signals(self, text: Text, words: bool = False) -> Signals:
        seen = Words(self.word[text.ids], self.head)
        return Signals(text.predicts(END), logits=seen if words else seen.tensor(), hard=torch.zeros(len(text.ids)))


def text(rows: list[tuple[list[int], list[int]]]) -> Text:
    """Prompts and completions; prompts padded on the left, completions on the right."""
    left, right = (max(len(row[side]) for row in rows) for side in (0, 1))
    ids = [[PAD] * (left - len(p)) + p + c + [PAD] * (right - len(c)) for p, c in rows]
    real = [[False] * (left - len(p)) + [True] * (len(p) + len(c)) + [False] * (right - len(c)) for p, c in rows]
    mask = torch.tensor(real)
    completion = mask.clone()
    completion[:, :left] = False
    return Text(torch.tensor(ids), mask, completion)


DATA = text([([5, 6, 7], [8, 9, END]), ([4], [3, END]), ([2, 2], [10, 11, 4, END])])
