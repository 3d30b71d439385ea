"""What a teacher showed, kept without its padding, so that the teacher need not run again.

    row of n real tokens -> states (n, D), heads (n, H, K), scores (n n, H), task logits (C,), and of the word logits
                            the k largest log p_v (n, k), their ids, and log(1 - sum_k p_v) (n,)

Rows are kept one after the other and put back to wherever the real tokens of a batch are. Halves round each number to a
share of 2^-11 (float16) or 2^-8 (bfloat16, any size) of itself at most. For words this costs a divergence no more than
e^-1 2^-11 per outcome, as x e^-x <= e^-1, and kept words and rest still sum to 1. Source of the rest bucket: see
models/distill/_words.py; the form is ours.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.distill._hooks import depth
from models.distill._objective import Objective
from models.distill._signals import LISTS, Signals
from models.distill._words import TopK, Words

__all__ = ["BORROWED", "FIELD", "Kept", "inputs_of", "wanted_by"]

FIELD = "taught_"  # the batch's fields that a teacher said
STORES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HEADS = ("query", "key", "value")
KNOWN = ("task", "logits", "embedding", *LISTS)
FREE = ("hard", "spans")  # known without the teacher, or not asked of it
BORROWED = ("teacher.", "student.layer")  # places of edits that need the teacher itself
OF_ROWS = ("task", "lengths", "hash")  # the hash is whose who writes the rows to disk
IDS, LIKELY, REST = "word_ids", "word_log_probs", "word_rest"


@dataclass(frozen=True)
class Kept:
    """Which signals of a teacher are kept, and how.

    Args:
        wanted: signal -> the teacher's layers from 0, as from Objective.needs; see `wanted_by` for a whole run.
        depth: layers of the teacher.
        vocabulary: its words; 0 where no logits of words are wanted.
        words: k, the most likely words of a place that are kept.
        temperature: of these, at which alone they can be compared.
        store: "float32", "float16" or "bfloat16".

    Raises:
        LookupError: a signal that cannot be kept: it depends on what the student does.
        ValueError: a layer that the teacher does not have; k out of range; an unknown type.
    """

    wanted: Mapping[str, Sequence[int]]
    depth: int
    vocabulary: int = 0
    words: int = 64
    temperature: float = 1.0
    store: str = "float16"

    def __post_init__(self):
        asked = {name: sorted(layers) for name, layers in self.wanted.items() if name not in FREE}
        object.__setattr__(self, "wanted", asked)
        if odd := sorted(set(asked) - set(KNOWN)):
            raise LookupError(f"{', '.join(odd)} cannot be kept of a teacher that does not run: what it says there "
                              f"depends on the step. Kept can be: {', '.join(KNOWN)}; use a live teacher")  # fmt: skip
        if wrong := sorted({n for name in LISTS for n in asked.get(name, ()) if not 0 <= n < self.depth}):
            raise ValueError(f"layers {wrong} are to be kept, but the teacher has {self.depth} layers, from 0")
        if self.store not in STORES:
            raise ValueError(f"signals are kept as one of {', '.join(STORES)}; got {self.store!r}")
        if "logits" in asked and not 1 <= self.words <= self.vocabulary:
            raise ValueError(f"words, the k that are kept, must be in 1..{self.vocabulary}, the vocabulary; got "
                             f"{self.words}")  # fmt: skip

    @classmethod
    def of(cls, wanted: Mapping[str, Sequence[int]], teacher: nn.Module, **settings) -> "Kept":
        """For this teacher; k is at most its vocabulary."""
        heads = [target.head for name, target in getattr(teacher, "targets", {}).items() if name in ("mlm", "lm")]
        count = heads[0].out_features if heads and "logits" in wanted else 0
        if count:
            settings["words"] = min(settings.get("words", cls.words), count)
        return cls(wanted, depth(teacher), count, **settings)

    @classmethod
    def of_run(cls, objective: Objective, steps: int, teacher: nn.Module, **settings) -> "Kept":
        """All that a run of so many steps asks of this teacher, words at the temperature at which they are compared.

        Raises:
            LookupError: see `wanted_by`; words are compared at several temperatures.
        """
        wanted = wanted_by(objective, steps)
        asks = {name: m for name, m in objective.methods.items() if "logits" in m.needs}
        found = {name: float(getattr(method, "temperature", 1.0)) for name, method in asks.items()}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{name} at {temperature:g}" for name, temperature in found.items())
            raise LookupError(f"words are kept at one temperature, but are compared by {told}; give these methods one "
                              f"temperature, or use a live teacher")  # fmt: skip
        return cls.of(wanted, teacher, temperature=next(iter(found.values()), 1.0), **settings)

    def facts(self) -> dict:
        """All of it as JSON values: two caches of equal facts hold the same."""
        words = {"vocabulary": self.vocabulary, "words": self.words, "temperature": self.temperature}
        return {"wanted": dict(self.wanted), "depth": self.depth, "store": self.store} | (
            words if "logits" in self.wanted else {}
        )

    def refuse_missing(self, wanted: Mapping[str, Sequence[int]]) -> None:
        """Raise LookupError if a method asks for what was not kept."""
        missing = []
        for name, layers in wanted.items():
            if name in FREE:
                continue
            if name not in self.wanted:
                missing.append(name)
            elif lacks := sorted(set(layers) - set(self.wanted[name])):
                missing.append(f"{name} of layers {lacks}")
        if missing:
            raise LookupError(f"the teacher's signals were kept without {', '.join(missing)}; there are "
                              f"{self._listed()}. Keep them too, or use a live teacher")  # fmt: skip

    def pack(self, signals: Signals) -> dict[str, Tensor]:
        """One batch -> tensors by name, their rows on end without padding; `lengths` (B,) says how long each is.

        Raises:
            ValueError: a number is not finite, or too large for the type it is kept in.
        """
        mask, found = signals.mask, {"lengths": signals.mask.sum(1).int()}
        if "task" in self.wanted:
            found["task"] = self._store("task", signals.task)
        if "embedding" in self.wanted:
            found["embedding"] = self._store("embedding", signals.embedding[mask])
        for name, layer in self._layers():
            value, key = getattr(signals, name)[layer], f"{name}_{layer}"
            if name == "hidden":
                found[key] = self._store(key, value[mask])
            elif name in HEADS:
                found[key] = self._store(key, value.transpose(1, 2)[mask])
            else:
                lowest = torch.finfo(STORES[self.store]).min  # stands for the impossible, as it does in float32
                found[key] = self._store(key, _squares(value, mask).float().clamp_(min=lowest))
        if "logits" in self.wanted:
            found |= self._words(signals.logits[mask])
        return {name: value.cpu() for name, value in found.items()}

    def fields(self, rows: Sequence[Mapping[str, Tensor]], mask: Tensor) -> dict[str, Tensor]:
        """Rows as `pack` left them, each alone -> fields of a batch, padded to where `mask` (B, T) is true.

        Raises:
            ValueError: a row has another number of real tokens than was kept.
        """
        made, lengths = {}, mask.sum(1).tolist()
        told = [int(row["lengths"].sum()) for row in rows]
        if told != lengths:
            place = next(i for i, pair in enumerate(zip(told, lengths, strict=True)) if len(set(pair)) > 1)
            raise ValueError(f"row {place} of the batch has {lengths[place]} tokens, but {told[place]} were kept of it")
        for name in rows[0]:
            if name == "lengths":
                continue
            if name.startswith("scores_"):
                made[FIELD + name] = _spread([row[name] for row in rows], mask)
                continue
            flat = torch.cat([row[name] for row in rows])
            flat = flat.int() if name == IDS else flat
            if name == "task":
                made[FIELD + name] = flat.view(len(rows), -1)
                continue
            made[FIELD + name] = flat.new_zeros(*mask.shape, *flat.shape[1:])
            made[FIELD + name][mask] = flat
        return made

    @staticmethod
    def row(packed: Mapping[str, Tensor], starts: Sequence[Sequence[int]], number: int) -> dict[str, Tensor]:
        """One of many packed rows; `starts` as from `starts_of`. Nothing is copied."""
        ranges = [slice(each[number], each[number + 1]) for each in starts]
        return {name: value[ranges[_unit(name)]] for name, value in packed.items()}

    @staticmethod
    def starts_of(lengths: Tensor) -> list[list[int]]:
        """Where each row begins among rows, tokens and pairs of tokens, and at last where the last one ends."""
        each = (torch.ones_like(lengths), lengths, lengths.long().square())
        return [[0, *one.cumsum(0, dtype=torch.int64).tolist()] for one in each]

    def signals(self, batch: Mapping[str, Tensor]) -> Signals:
        """The teacher's signals that a batch carries; in float32, wherever the batch is.

        Raises:
            LookupError: the batch carries none: its rows come from a source that knows no cache.
        """
        found = {name[len(FIELD) :]: value for name, value in batch.items() if name.startswith(FIELD)}
        if not found:
            raise LookupError("there is no live teacher, and the batch carries nothing that a teacher said; take its "
                              "rows from tasks.teacher_cache.Taught")  # fmt: skip
        more = {name: found[name].float() for name in ("task", "embedding") if name in found}
        lists: dict[str, list] = {}
        for name, layer in self._layers():
            value = found[f"{name}_{layer}"]
            if name in HEADS:
                value = value.float().transpose(1, 2)
            elif name == "scores":
                lowest = torch.finfo(torch.float32).min
                value = torch.where(value <= torch.finfo(value.dtype).min, lowest, value.float())
            lists.setdefault(name, [None] * self.depth)[layer] = value.float()
        if "logits" in self.wanted:
            likely, rest = found[LIKELY].float(), found[REST].float()[..., None]
            likely = likely - likely.logsumexp(-1, keepdim=True) + torch.log1p(-rest.exp())
            more["logits"] = TopK(
                found[IDS].long(), likely, self.vocabulary, self.temperature, rest=self.words < self.vocabulary
            )
        return Signals(batch["mask"], **more, **lists)

    @staticmethod
    def size_like(packed: Mapping[str, Tensor], lengths: Iterable[int]) -> float:
        """Bytes that rows of these lengths take, judged by rows that were packed."""
        count, total = (_units(each) for each in (packed["lengths"].tolist(), list(lengths)))
        # Of rows without a token there is nothing to divide: what they take of each token is nothing, too.
        return sum(value.nbytes * total[_unit(name)] / max(1, count[_unit(name)]) for name, value in packed.items())

    def size(self, lengths: Iterable[int], width: int, heads: int, head_width: int, classes: int = 0) -> int:
        """Bytes that rows of these lengths take.

        Args:
            lengths: real tokens of each row.
            width: D of the teacher.
            heads: of keys and values too, where queries share them this is an upper bound.
            head_width: K.
            classes: C of the task.
        """
        rows, tokens, pairs = _units(list(lengths))
        each = STORES[self.store].itemsize
        count = lambda *names: sum(len(self.wanted.get(name, ())) for name in names)
        numbers = tokens * width * (count("hidden") + ("embedding" in self.wanted))
        numbers += tokens * heads * head_width * count(*HEADS) + pairs * heads * count("scores")
        numbers += rows * classes * ("task" in self.wanted)
        words = tokens * (self.words * (each + _id_type(self.vocabulary).itemsize) + 4) * ("logits" in self.wanted)
        return each * numbers + words + 4 * rows

    def _words(self, logits: Tensor | Words) -> dict[str, Tensor]:
        best = TopK.of(logits, self.words, self.temperature)
        left = -torch.expm1(best.log_probs.logsumexp(-1).clamp(max=0))
        rest = left.log().clamp(min=math.log(torch.finfo(torch.float32).tiny))
        ids = best.ids.to(_id_type(self.vocabulary))
        return {IDS: ids, LIKELY: self._store(LIKELY, best.log_probs), REST: rest.float()}

    def _store(self, name: str, value: Tensor) -> Tensor:
        kept = value.to(STORES[self.store])
        if not bool(kept.isfinite().all()):
            largest = value.float().abs().max().item()
            raise ValueError(f"{name} has numbers up to {largest:g}, which {self.store} cannot hold; set the cache's "
                             f"store: bfloat16 or float32, and look at the teacher if they are not finite")  # fmt: skip
        return kept

    def _layers(self) -> list[tuple[str, int]]:
        return [(name, layer) for name in LISTS for layer in self.wanted.get(name, ())]

    def _listed(self) -> str:
        said = [f"{name} of layers {layers}" if layers else name for name, layers in self.wanted.items()]
        return ", ".join(said) or "none"


def wanted_by(objective: Objective, steps: int) -> dict[str, list[int]]:
    """What a run of so many steps asks of the teacher in all: signal -> layers. The objective's step is left as it was.

    Raises:
        LookupError: a method acts inside the teacher, or runs its layers in the student.
    """
    before = {name: method.step.clone() for name, method in objective.methods.items()}
    wanted: dict[str, set[int]] = {}
    inside = False
    for step in range(steps):
        for method in objective.methods.values():
            method.step.fill_(step)
        for name, layers in objective.needs()["teacher"].items():
            wanted.setdefault(name, set()).update(layers)
        inside |= "edited" in wanted or any(place.startswith(BORROWED) for place in objective.edits())
    for name, method in objective.methods.items():
        method.step.copy_(before[name])
    if inside:
        raise LookupError(f"{', '.join(objective.methods)} acts inside the teacher, or runs its layers in the student: "
                          f"nothing of that can be kept; use a live teacher")  # fmt: skip
    return {name: sorted(layers) for name, layers in wanted.items() if name not in FREE}


def inputs_of(batch: Mapping[str, Tensor], row: int) -> Iterable[tuple[str, Tensor]]:
    """What a teacher reads of one row, without its padding: fields by name, in order of the names.

    Raises:
        LookupError: a batch of more than one stream, whose padding is not that of `mask`.
    """
    odd = sorted(name for name in batch if name != "mask" and name.split("_")[-1] == "mask")
    if odd:
        raise LookupError(f"the batch has {', '.join(odd)}: only teachers of one stream of tokens are kept")
    real = batch["mask"][row]
    for name in sorted(batch):
        if name in ("mask", "step", "spans") or name.startswith(("labels_", FIELD)):
            continue
        value = batch[name][row]
        yield name, value[real] if value.ndim and len(value) == len(real) else value


def _unit(name: str) -> int:
    """What a kept tensor has a first dimension of: 0 rows, 1 tokens, 2 pairs of tokens."""
    return 0 if name in OF_ROWS else 2 if name.startswith("scores_") else 1


def _units(lengths: Sequence[int]) -> tuple[int, int, int]:
    return len(lengths), sum(lengths), sum(n * n for n in lengths)


def _squares(scores_BHTT: Tensor, mask: Tensor) -> Tensor:
    """Scores among real tokens: (sum of n n, H) numbers, of each row those of its first head, of the next ..."""
    parts = [
        one[:, real][:, :, real].reshape(int(real.sum()) ** 2, len(one))
        for one, real in zip(scores_BHTT, mask, strict=True)
    ]
    return torch.cat(parts)


def _spread(squares: Sequence[Tensor], mask: Tensor) -> Tensor:
    """The same of each row -> (B, H, T, T); elsewhere the impossible."""
    rows, length = mask.shape
    spread = squares[0].new_full((rows, squares[0].shape[-1], length, length), torch.finfo(squares[0].dtype).min)
    for one, square, real in zip(spread, squares, mask, strict=True):
        count = int(real.sum())
        square = square.reshape(len(one), count, count)
        if bool(real[:count].all()):  # padding is at the end: no need to look for places
            one[:, :count, :count] = square
        else:
            places = real.nonzero()[:, 0]
            one[:, places[:, None], places] = square
    return spread


def _id_type(vocabulary: int) -> torch.dtype:
    return torch.uint16 if vocabulary <= 2**16 else torch.int32
