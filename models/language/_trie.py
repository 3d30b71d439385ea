"""Decoding that can only end in a label: the labels' tokens as a tree, searched by what a model says of them.

    score(label) = (1 / n) sum_t log p(token_t | prompt, token_<t),   n tokens, the end token among them

Every label is closed by the end token, so one that is the beginning of another is a leaf of its own, and "shoes" and
"shoes > boots" compete. The search keeps the `beams` likeliest beginnings at each depth; with as many beams as labels
every label is scored. Scores within TIE of the best are equal, and of equal ones the first in alphabetical order is
taken: a model that knows nothing gives one label, always the same. The form of the search is ours.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Trie", "search"]

TIE = 1e-5  # nats per token: what batches and devices add in other orders differs by less


class Trie:
    """Labels by their tokens.

    Args:
        labels: label -> its token ids, without specials.
        end: id that closes every label.

    Raises:
        ValueError: no label; one without tokens or with the end token inside; two with the same tokens: names them.
    """

    def __init__(self, labels: Mapping[str, Sequence[int]], end: int):
        if not labels:
            raise ValueError("there is no label to choose from")
        self.end, self.labels, self.paths = end, sorted(labels), {}
        self.longest = 1 + max(map(len, labels.values()))
        self._next: dict[tuple[int, ...], set[int]] = {}
        for label in self.labels:
            path = tuple(labels[label])
            if not path or end in path:
                raise ValueError(f"the label {label!r} has {'its end inside' if path else 'no tokens'}; the tokenizer "
                                 f"cannot write it, rename it")  # fmt: skip
            if (other := self.paths.setdefault((*path, end), label)) != label:
                raise ValueError(f"the labels {other!r} and {label!r} have the same tokens, so no answer could tell "
                                 f"them apart; rename one, or take a tokenizer that knows their letters")  # fmt: skip
            for place, token in enumerate((*path, end)):
                self._next.setdefault(path[:place], set()).add(token)

    def allowed(self, path: Sequence[int]) -> list[int]:
        """Ids that may follow the tokens of an answer so far, ascending; none after a label's end.

        >>> Trie({"a": [5], "a b": [5, 6]}, end=0).allowed([5])
        [0, 6]
        """
        return sorted(self._next.get(tuple(path), ()))

    def label(self, path: Sequence[int]) -> str | None:
        """The label of the tokens with their end; None when they are no label's."""
        return self.paths.get(tuple(path))


def search(
    trie: Trie, step: Callable[[list[int], list[tuple[int, ...]]], Tensor], rows: int, beams: int = 4
) -> list[tuple[str, float]]:
    """The best label of each row, and its score in nats per token.

    Args:
        step: (row numbers, answers so far) of N beams -> (N, V) logits of what comes next.
        rows: prompts.
        beams: beginnings kept per row and depth.

    Raises:
        ValueError: `beams` is not positive.
    """
    if beams < 1:
        raise ValueError(f"beams is {beams}; at least one beginning must be kept")
    open_ = [(row, (), 0.0) for row in range(rows)]
    found: list[dict[str, float]] = [{} for _ in range(rows)]
    while open_:
        logits_NV = step([row for row, _, _ in open_], [path for _, path, _ in open_])
        log_NV = logits_NV.double().log_softmax(-1)
        grown: list[list[tuple[tuple[int, ...], float]]] = [[] for _ in range(rows)]
        for (row, path, score), log_V in zip(open_, log_NV, strict=True):
            tokens = trie.allowed(path)
            gains = log_V[torch.tensor(tokens, device=log_V.device)].tolist()
            for token, gain in zip(tokens, gains, strict=True):
                longer = (*path, token)
                if token == trie.end:
                    found[row][trie.paths[longer]] = (score + gain) / len(longer)
                else:
                    grown[row].append((longer, score + gain))
        open_ = [(row, path, score) for row, some in enumerate(grown)
                 for path, score in sorted(some, key=lambda one: (-round(one[1] / TIE), one[0]))[:beams]]  # fmt: skip
    return [_best(scores) for scores in found]


def _best(scores: Mapping[str, float]) -> tuple[str, float]:
    top = max(scores.values())
    label = min(label for label, score in scores.items() if score >= top - TIE)
    return label, scores[label]
