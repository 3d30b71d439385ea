"""A smaller vocabulary: frequent words stay, each rare one is read as the kept word most like it.

Student rows are ordered by protection and count, not by id, so the map belongs to the model: it lives in the embedding
and in its state dict. Texts, masks and the teacher keep the original ids.
Source: Tan et al., 2023, arXiv:2306.06625.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["KeptEmbedding", "Vocabulary", "compress", "cut"]

ROWS = 1024  # dropped words compared at a time


@dataclass(frozen=True)
class Vocabulary:
    """Which words a student keeps."""

    keep: Tensor  # (V',) original ids, in student order
    to_student: Tensor  # (V,) the student row of every original id

    def rows(self, ids: Tensor) -> Tensor:
        """Student rows of original ids, of any shape; negative ones, labels of places that have none, stay."""
        return torch.where(ids < 0, ids, self.to_student[ids.clamp(min=0)])

    def merged(self) -> dict[str, int]:
        """How many words were dropped, how many kept ones stand for others, and words in the largest such class.

        The student cannot tell the words of one class apart.
        """
        sizes = torch.bincount(self.to_student, minlength=len(self.keep))
        return {
            "dropped": len(self.to_student) - len(self.keep),
            "targets": int((sizes > 1).sum()),
            "largest": int(sizes.max()),
        }


def compress(
    counts: Tensor,
    embedding: Tensor | None = None,
    protected: Sequence[Sequence[int]] = (),
    ratio: float = 0.5,
    multiple: int = 128,
    similarity: str = "dot",
    unknown: int | None = None,
    words: int | None = None,
) -> Vocabulary:
    """Choose the words to keep and the substitute of every other.

    Protected groups come first, in order, each by count; then all others by count, ties by id; rows that only pad the
    table last. ceil(ratio V / multiple) multiple words stay; if that is all, nothing changes, not even the order.

    Args:
        counts: (V,) of every id in the pre-training corpus.
        embedding: (V, D) of the teacher's words; None maps every dropped word to `unknown`.
        protected: groups of ids: special tokens, then words that labels are told by.
        ratio: share to keep.
        multiple: that hardware likes.
        similarity: "dot", "cosine" or "euclidean".
        unknown: the id of the unknown word.
        words: how many ids are words; those above pad the table. V by default.

    Raises:
        ValueError: a share out of range; more protected words than are kept; nothing to map dropped words to.
    """
    total = len(counts)
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is the share of words to keep, in (0, 1]; got {ratio}")
    size = math.ceil(round(ratio * total / multiple, 9)) * multiple
    if size >= total:
        return Vocabulary(torch.arange(total), torch.arange(total))
    order = _order(counts, protected, total if words is None else words)
    if (needed := len({i for group in protected for i in group})) > size:
        raise ValueError(f"{needed} words are protected, but only {size} of {total} are kept; raise ratio")
    keep, dropped = order[:size], order[size:].sort().values
    to_student = torch.empty(total, dtype=torch.int64)
    to_student[keep] = torch.arange(size)
    if embedding is not None:
        to_student[dropped] = _most_like(embedding, keep, dropped, similarity)
    elif unknown is None or unknown not in keep:
        raise ValueError("dropped words need a substitute: give the teacher's embedding, or protect and name `unknown`")
    else:
        to_student[dropped] = to_student[unknown].clone()
    return Vocabulary(keep, to_student)


def _order(counts: Tensor, protected: Sequence[Sequence[int]], words: int) -> Tensor:
    """All ids, the first to keep first."""
    rank = torch.full((len(counts),), len(protected))
    rank[words:] += 1
    for number in reversed(range(len(protected))):  # an id in two groups belongs to the first
        rank[list(protected[number])] = number
    by_count = counts.argsort(descending=True, stable=True)
    return by_count[rank[by_count].argsort(stable=True)]


def _most_like(embedding: Tensor, keep: Tensor, dropped: Tensor, similarity: str) -> Tensor:
    """The student row of the kept word closest to each dropped one; ties go to the first row."""
    table = embedding.detach().float()
    if similarity == "cosine":
        table = F.normalize(table, dim=-1)
    kept = table[keep]
    if similarity not in ("dot", "cosine", "euclidean"):
        raise ValueError(f"no similarity {similarity!r}; there are: dot, cosine, euclidean")
    offset = kept.square().sum(-1) / 2 if similarity == "euclidean" else 0.0  # |d - k|^2 = |d|^2 - 2 (d k - |k|^2 / 2)
    best = [(table[part] @ kept.T - offset).argmax(-1) for part in dropped.split(ROWS)]
    return torch.cat(best)


class KeptEmbedding(nn.Embedding):
    """Embeds original ids by the rows of kept words; the map is saved with the weights."""

    keep: Tensor
    to_student: Tensor

    def __init__(self, weight: nn.Parameter, vocabulary: Vocabulary):
        super().__init__(*weight.shape, _weight=weight)
        self.weight = weight  # the very parameter, which a head may share
        self.register_buffer("keep", vocabulary.keep.to(weight.device))
        self.register_buffer("to_student", vocabulary.to_student.to(weight.device))

    @property
    def vocabulary(self) -> Vocabulary:
        """The map, as it was loaded."""
        return Vocabulary(self.keep, self.to_student)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(self.to_student[ids])


def cut(model: nn.Module, vocabulary: Vocabulary) -> None:
    """Give a transformers model the smaller vocabulary, in place: its rows of the kept words, in, out and tied.

    It goes on reading original ids and puts out V' logits. To load it, cut a fresh model to V' words of any kind first.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if len(vocabulary.to_student) != len(table.weight):
        raise ValueError(f"the map is of {len(vocabulary.to_student)} words, the model knows {len(table.weight)}")
    keep = vocabulary.keep.to(table.weight.device)
    rows = table.weight.detach()[keep]
    outputs = {} if head is None else {name: p.detach()[keep] for name, p in head.named_parameters(recurse=False)}
    model.resize_token_embeddings(len(keep), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(rows)
        for name, values in outputs.items():
            getattr(model.get_output_embeddings(), name).copy_(values)
    model.set_input_embeddings(KeptEmbedding(model.get_input_embeddings().weight, vocabulary))
