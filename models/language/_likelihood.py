"""How likely a causal language model finds given continuations: what multiple choice and perplexity are made of.

    log p(b | a) = sum_t log p(b_t | a, b_<t)

Continuations of one beginning that have a single token each share one row. Nothing here depends on what else is in a
batch, but for the order of float32 sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.language._causal import Causal

__all__ = ["Asked", "likelihoods"]

CHUNK = 2**23  # logits at a time: 32 MiB of float32


@dataclass(frozen=True)
class Asked:
    """A beginning and what may follow it, as token ids."""

    before: Sequence[int]  # at least one: what comes first has no probability
    options: Sequence[Sequence[int]]  # each at least one


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    places: list[int]  # where a token is predicted
    labels: list[int]  # which
    owners: list[int]  # whose sum it belongs to


@torch.inference_mode()
def likelihoods(model: Causal, asked: Sequence[Asked], length: int, batch: int = 16) -> list[Tensor]:
    """For each beginning the log-likelihoods of its continuations: (options,) float64, in nats, at most 0.

    Args:
        model: in evaluation mode.
        asked: beginnings with their continuations.
        length: tokens that the model reads at most.
        batch: rows at a time.

    Raises:
        ValueError: a row is longer than `length`, or a beginning or continuation is empty; says which.
    """
    rows = list(_rows(asked, length))
    sums = torch.zeros(sum(len(one.options) for one in asked), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number].ids))
    for start in range(0, len(order), batch):
        part = [rows[number] for number in order[start : start + batch]]
        owners = torch.tensor([owner for row in part for owner in row.owners])
        sums.index_add_(0, owners, _batch(model, part).double().cpu())
    return list(sums.split([len(one.options) for one in asked]))


def _rows(asked: Sequence[Asked], length: int) -> Iterator[_Row]:
    first = 0
    for number, one in enumerate(asked):
        if not len(one.before) or not one.options or not all(len(option) for option in one.options):
            raise ValueError(f"beginning {number} of {len(asked)}: it and each of its continuations need a token")
        before, owners = list(one.before), range(first, first + len(one.options))
        first += len(one.options)
        last = len(before) - 1
        if all(len(option) == 1 for option in one.options):
            found = [_Row(before, [last] * len(owners), [option[0] for option in one.options], list(owners))]
        else:
            found = [
                _Row(before + list(option[:-1]), list(range(last, last + len(option))), list(option),
                     [owner] * len(option))
                for owner, option in zip(owners, one.options, strict=True)
            ]  # fmt: skip
        if long := [len(row.ids) for row in found if len(row.ids) > length]:
            raise ValueError(f"beginning {number} of {len(asked)} makes a row of {max(long)} tokens, but the model "
                             f"reads {length}; shorten it")  # fmt: skip
        yield from found


def _batch(model: Causal, rows: Sequence[_Row]) -> Tensor:
    """log p of every label of these rows, one after another: (labels,)."""
    device = next(model.parameters()).device
    width = max(len(row.ids) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    mask_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row.ids)] = torch.tensor(row.ids)
        mask_BT[number, : len(row.ids)] = True
    place_N = torch.tensor([number * width + place for number, row in enumerate(rows) for place in row.places])
    label_N = torch.tensor([label for row in rows for label in row.labels])
    ids_BT, mask_BT, place_N, label_N = (x.to(device) for x in (ids_BT, mask_BT, place_N, label_N))
    if model.chunked:
        read_ND = model.encode(ids_BT, mask_BT).flatten(0, 1)[place_N]
        logits = model.logits
    else:  # a head that is more than a linear layer
        given = {"input_ids": ids_BT, "attention_mask": mask_BT.long(), "use_cache": False}
        read_ND = model.model(**given).logits.flatten(0, 1)[place_N]
        logits = lambda part_NV: part_NV
    step = max(1, CHUNK // model.head.weight.shape[0])
    found = [
        F.cross_entropy(logits(part_ND).float(), part_N, reduction="none")
        for part_ND, part_N in zip(read_ND.split(step), label_N.split(step), strict=True)
    ]
    return -torch.cat(found)
