"""Reasoning distilled into relevance: a model that reads why, and the same model that does not, come to agree.

    x = query and item,   x+ = query, item and the teacher's reasoning
    L = CE(y, head(f(x))) + CE(y, head(f(x+))) + lambda NCE
    NCE = -1/B sum_i log [ exp(cos(f(x_i), sg f(x+_i)) / tau) / sum_j exp(cos(f(x_i), sg f(x+_j)) / tau) ]

Both passes are of one network; only x is read afterwards. Source: 2025, arXiv:2510.11056 (the two passes and the
InfoNCE between them). The second cross-entropy, the stopped gradient, lambda = 1 and tau = .05 are our reading; that
a row of the same query and label is no negative, and that the teacher's verdict is cut from its reasoning, are ours.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.components._model import Model
from models.components._pool import pooled

__all__ = ["Relevance", "TwoPasses", "alignment", "without_verdict"]

CONCLUDES = r"^(so|thus|hence|therefore|overall|in conclusion|in summary|consequently|verdict|answer|label)\b"


class Relevance(nn.Module):
    """The sums that make the loss of a batch.

    Args:
        weight: lambda.
        temperature: tau.

    Raises:
        ValueError: the temperature is not above 0, or the weight below it.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 0.05):
        super().__init__()
        if not temperature > 0 or weight < 0:
            raise ValueError(f"temperature must be > 0 and weight >= 0; got {temperature} and {weight}")
        self.weight, self.temperature = weight, temperature

    def forward(
        self, plain: Tensor, rich: Tensor, logits: Tensor, rich_logits: Tensor, label: Tensor, query: Tensor
    ) -> dict[str, Tensor]:
        """Sums over rows: of all rows `plain`, of the R rows with reasoning `rich` and `alignment`.

        Args:
            plain: (R, D) f(x) of the rows with reasoning.
            rich: (R, D) f(x+).
            logits: (B, C) of all rows, those with reasoning first.
            rich_logits: (R, C).
            label: (B,) int64.
            query: (B,) int64, equal where queries are.
        """
        told = len(rich)
        return {
            "plain": F.cross_entropy(logits.float(), label, reduction="sum"),
            "rich": F.cross_entropy(rich_logits.float(), label[:told], reduction="sum"),
            "alignment": alignment(plain, rich, label[:told], query[:told], self.temperature).sum() * self.weight,
        }


def alignment(plain: Tensor, rich: Tensor, label: Tensor, query: Tensor, temperature: float) -> Tensor:
    """(R,) InfoNCE of each row, in nats; nothing flows back through `rich`."""
    ours, theirs = F.normalize(plain.float(), dim=-1), F.normalize(rich.detach().float(), dim=-1)
    scores = ours @ theirs.T / temperature
    alike = (query[:, None] == query) & (label[:, None] == label)
    alike.fill_diagonal_(False)
    return F.cross_entropy(
        scores.masked_fill(alike, torch.finfo(scores.dtype).min),
        torch.arange(len(scores), device=scores.device),
        reduction="none",
    )


class TwoPasses(nn.Module):
    """A classifier that reads each row twice in training, and once afterwards.

    A batch has the fields of x, labels_cls (B,), query (B,), and the fields of x+ behind `rich_` for its first R rows,
    or none. The alignment is within a micro-batch.

    Args:
        student: a model of components with the target cls.
        method: see Relevance.
    """

    def __init__(self, student: Model, method: Relevance):
        super().__init__()
        self.student, self.method = student, method

    def counts(self, **batch: Tensor) -> dict[str, Tensor]:
        """Rows, and rows with reasoning."""
        size = lambda name: torch.tensor(float(len(batch[name])) if name in batch else 0.0, device=batch["mask"].device)
        return {"rows": size("mask"), "told": size("rich_mask")}

    def forward(
        self, labels_cls: Tensor, query: Tensor, counts: Mapping[str, Tensor] | None = None, **batch: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts: means over all rows, and over those with reasoning."""
        counts = self.counts(**batch) if counts is None else counts
        rich = {name.removeprefix("rich_"): batch.pop(name) for name in list(batch) if name.startswith("rich_")}
        head = self.student.targets["cls"]
        hidden, rows = self.student.encode(**batch)
        logits = head.predict(hidden, rows)
        if rich:
            more, their_rows = self.student.encode(**rich)
            seen, said = pooled(more, their_rows, head.how), head.predict(more, their_rows)
        else:
            seen, said = hidden.new_zeros(0, hidden.shape[-1]), logits[:0]
        plain = pooled(hidden, rows, head.how)[: len(seen)]
        sums = self.method(plain, seen, logits, said, labels_cls, query)
        means = {name: value / counts["rows" if name == "plain" else "told"].clamp(min=1)
                 for name, value in sums.items()}  # fmt: skip
        return sum(means.values()), {name: value.detach() for name, value in means.items()}


def without_verdict(reason: str, verdicts: Sequence[str]) -> str:
    """Reasoning without the sentences that state the answer: a student would read it off instead of learning why.

    Args:
        reason: of the teacher.
        verdicts: words of the answers.

    >>> without_verdict("Both are lamps. Therefore they match. The shade differs.", ["match"])
    'Both are lamps. The shade differs.'
    """
    words = "|".join(re.escape(word) for word in verdicts)
    states = re.compile(rf"{CONCLUDES}|\b({words})\b" if words else CONCLUDES, re.IGNORECASE)
    sentences = re.split(r"(?<=[.!?])\s+|\n+|(?<=[。！？])", reason.strip())
    return " ".join(sentence.strip() for sentence in sentences if sentence.strip() and not states.search(sentence))
