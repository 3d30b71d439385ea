"""Any causal language model under the training loop: exact document masks, a chunked loss, and each source's own loss.

    L = sum_n -log p(label_n | tokens before n in its own document) / N         L = sum_s n_s L_s / sum_s n_s

Documents share rows, and no token sees another document. Two ways lead there; the model itself decides which one, by a
trial when it is wrapped:

    packed      one pass with a mask (B, 1, T, T) and positions that restart
    one by one  each document becomes a row of its own: for models that take no such mask or positions (BLOOM), and for
                attention kernels that read neither

What does not lead there (measured with transformers 5.23): positions that restart without a mask, which leak as soon
as the model keeps a cache, or gets a mask of ones. The loss is taken from hidden states, a chunk of tokens at a time,
where logits are W h + b; the trial decides that as well. Nothing here is a paper's but the usual objective.
"""

from collections.abc import Mapping, Sequence
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components._loss import IGNORED, head_loss

__all__ = ["Causal", "source_term"]

CLOSE = 1e-4  # of the largest logit: what is left to the order of float32 sums
COARSE = 0.03  # the same of 16 bits
PROBE = (5, 3)  # tokens of the trial's two documents
LARGE = 1e4  # times hidden states: what is bent at large logits must show in a model that has not learned any


def source_term(name: str) -> str:
    """The term that holds a source's mean loss."""
    return f"loss_{name}"


class Causal(nn.Module):
    """A causal language model of transformers' form, as `models.fit` trains it.

    Fields of a batch: ids (B, T) int64 and labels_lm (B, T) int64, already shifted, -100 where there is none; optional
    mask (B, T) bool, True at real tokens; documents (B, T) int64, the number of each place's document in its row;
    positions (B, T) int64, from 0 in each document; sources (B, T), the number of each place's source.

    Args:
        model: has `get_output_embeddings()` and `base_model`, and gives `logits`. Adapters of peft may be in it.
        sources: names of the sources, in the order of their numbers; none for no losses apart.

    Raises:
        TypeError: it is no causal language model of that form.
    """

    def __init__(self, model: nn.Module, sources: Sequence[str] = ()):
        super().__init__()
        if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
            raise TypeError(f"{type(model).__name__} has no output embeddings: it is no causal language model; load it "
                            f"with AutoModelForCausalLM")  # fmt: skip
        self.model, self.sources = model, tuple(sources)
        self.accepts = set(signature(self.body.forward).parameters)
        self.chunked, self.packed = self._try()

    @property
    def whole(self) -> nn.Module:
        """The model itself, without what peft wraps around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def body(self) -> nn.Module:
        """Everything below the head: gives hidden states."""
        return self.whole.base_model

    @property
    def head(self) -> nn.Module:
        """What turns hidden states into logits."""
        return self.whole.get_output_embeddings()

    def counts(self, **batch: Tensor) -> dict[str, Tensor]:
        """Labelled tokens, in all and by source: what the sums of `forward` are divided by."""
        asked = batch["labels_lm"] != IGNORED
        found = {"lm": asked.sum().float()}
        if self.sources and "sources" in batch:
            for number, name in enumerate(self.sources):
                found[source_term(name)] = (asked & (batch["sources"] == number)).sum().float()
        return found

    def forward(self, counts: Mapping[str, Tensor] | None = None, **batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss in nats, and terms: `lm` (the same, detached), `lm_correct` (share of labels that are the most
        likely token) and for each source `loss_<name>`, the mean over its labels, and `tokens_<name>`, their number.

        Args:
            counts: of the whole step, when this batch is a part of it; then terms of all parts add up.
        """
        own = self.counts(**batch)
        counts = {name: count.clamp(min=1) for name, count in own.items()} if counts is None else counts
        sums = self._sums(batch, own)
        total, correct = sum(part.total for part in sums.values()), sum(part.correct for part in sums.values())
        loss = total / counts["lm"]
        terms = {"lm": loss.detach(), "lm_correct": (correct / counts["lm"]).detach()}
        for name in self.sources if len(own) > 1 else ():
            term = source_term(name)
            terms[term] = (sums[name].nll / counts[term]).detach()
            terms[f"tokens_{name}"] = own[term]
        return loss, terms

    def encode(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        **ignored: Tensor,
    ) -> Tensor:
        """Last hidden states (B, T, D); what stands at padding has no meaning."""
        if documents is None and (mask is None or bool(mask.all())) and positions is None:
            return self.body(input_ids=ids, use_cache=False).last_hidden_state
        return self._each_alone(self.body, "last_hidden_state", ids, mask, documents, positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of any hidden states (..., D), where `chunked`: (..., V)."""
        return F.linear(hidden, self.head.weight, self.head.bias)

    def read(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        **ignored: Tensor,
    ) -> Tensor:
        """The model's own logits (B, T, V), each document by itself; what stands at padding has no meaning."""
        return self._each_alone(self.model, "logits", ids, mask, documents, positions)

    def _each_alone(
        self,
        network: nn.Module,
        wanted: str,
        ids: Tensor,
        mask: Tensor | None,
        documents: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        """What a network says, the body or the whole, where no document sees another."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        documents = torch.zeros_like(ids) if documents is None else documents
        if not self.packed:
            return _one_by_one(network, wanted, ids, mask, documents)
        positions = _places(mask, documents) if positions is None else positions
        given = {"attention_mask": self._mask(mask, documents), "position_ids": positions, "use_cache": False}
        return getattr(network(input_ids=ids, **given), wanted)

    def _sums(self, batch: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, "_Sums"]:
        """By source, or below "lm" alone: sums over labelled tokens."""
        labels = batch["labels_lm"]
        by_source = len(own) > 1
        label_N, source_N = labels.flatten(), batch["sources"].flatten() if by_source else None
        if self.chunked:
            read_ND = self.encode(**batch).flatten(0, 1)
            value = lambda chosen: head_loss(read_ND[chosen], self.head.weight, label_N[chosen], self.head.bias)
        else:
            read_NV = self.read(**batch).flatten(0, 1)
            value = lambda chosen: _plain(read_NV[chosen], label_N[chosen])
        asked = label_N != IGNORED
        if not by_source:
            return {"lm": value(asked)}
        return {name: value(asked & (source_N == number)) for number, name in enumerate(self.sources)}

    def _mask(self, mask_BT: Tensor, documents_BT: Tensor):
        """Who may be read by whom, in the form that the attention takes."""
        kind = getattr(self.whole.config, "_attn_implementation", "eager")
        allowed_B1TT = _allowed(mask_BT, documents_BT)
        if kind == "sdpa":
            return allowed_B1TT
        added = next(self.body.parameters()).dtype  # eager attention adds its mask
        return torch.zeros_like(allowed_B1TT, dtype=added).masked_fill_(~allowed_B1TT, torch.finfo(added).min)

    @torch.no_grad()
    def _try(self) -> tuple[bool, bool]:
        """Whether logits are W h + b, and whether a packed row gives what its documents give alone."""
        device, training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        parts = [torch.arange(1, size + 1, device=device)[None] % self.head.weight.shape[0] for size in PROBE]
        alone = torch.cat([self.model(input_ids=ids, use_cache=False).logits for ids in parts], 1).float()
        chunked = type(self.head) is nn.Linear and self._is_linear(parts[0])
        packed = {"position_ids", "attention_mask"} <= self.accepts and self._takes_mask()
        if packed:
            ids, sizes = torch.cat(parts, 1), torch.tensor(PROBE, device=device)
            mask, documents = torch.ones_like(ids, dtype=torch.bool), torch.arange(2, device=device)
            documents = documents.repeat_interleave(sizes)[None]
            given = {"attention_mask": self._mask(mask, documents), "position_ids": _places(mask, documents)}
            try:
                found = self.model(input_ids=ids, use_cache=False, **given).logits
                packed = _close(found, alone)
            except (RuntimeError, ValueError, IndexError):  # a mask of four dimensions where two are wanted
                packed = False
        self.model.train(training)
        return chunked, packed

    def _is_linear(self, ids: Tensor) -> bool:
        """Whether logits are W h + b for large h too: a cap on logits leaves small ones nearly as they are."""
        read: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda head, given: read.append(LARGE * given[0]) or (read[-1],))
        try:
            found = self.model(input_ids=ids, use_cache=False).logits
        finally:
            handle.remove()
        return len(read) == 1 and _close(found, self.logits(read[0]))

    def _takes_mask(self) -> bool:
        kind = getattr(self.whole.config, "_attn_implementation", "eager")
        return kind in ("sdpa", "eager")


def _close(found: Tensor, wanted: Tensor) -> bool:
    share = COARSE if torch.finfo(found.dtype).bits < 32 else CLOSE
    found, wanted = found.float(), wanted.float()
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= share * wanted.abs().max())


class _Sums:
    """What HeadLoss holds, from logits that are there."""

    def __init__(self, total: Tensor, correct: Tensor):
        self.total, self.nll, self.correct = total, total.detach(), correct


def _plain(logits_NV: Tensor, label_N: Tensor) -> _Sums:
    total = F.cross_entropy(logits_NV.float(), label_N, reduction="sum")
    return _Sums(total, (logits_NV.argmax(-1) == label_N).sum())


def _starts(documents_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Where a document begins: (B, T) bool, True at its first real token only."""
    before_BT = F.pad(documents_BT[:, :-1], (1, 0), value=-1)
    padded_BT = F.pad(mask_BT[:, :-1], (1, 0), value=False)
    return mask_BT & ((documents_BT != before_BT) | ~padded_BT)


def _one_by_one(network: nn.Module, wanted: str, ids_BT: Tensor, mask_BT: Tensor, documents_BT: Tensor) -> Tensor:
    """Each document in a row of its own, and back again."""
    starts_N = _starts(documents_BT, mask_BT).flatten()
    real_N = mask_BT.flatten()
    row_M, place_M = (starts_N.cumsum(0) - 1)[real_N], _places(mask_BT, documents_BT).flatten()[real_N]
    size = int(row_M.max()) + 1, int(place_M.max()) + 1
    ids_RT, mask_RT = ids_BT.new_zeros(size), mask_BT.new_zeros(size)
    ids_RT[row_M, place_M], mask_RT[row_M, place_M] = ids_BT[mask_BT], True
    given = {"input_ids": ids_RT, "attention_mask": mask_RT.long(), "use_cache": False}
    out_RTX = getattr(network(**given), wanted)
    out_NX = out_RTX.new_zeros(len(real_N), out_RTX.shape[-1])
    out_NX[real_N] = out_RTX[row_M, place_M]
    return out_NX.view(*ids_BT.shape, -1)


def _places(mask_BT: Tensor, documents_BT: Tensor) -> Tensor:
    """Positions from 0 in each document: (B, T) int64; 0 at padding."""
    at_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device).expand_as(documents_BT)
    first_BT = at_BT.where(_starts(documents_BT, mask_BT), 0).cummax(-1).values
    return (at_BT - first_BT).where(mask_BT, 0)


def _allowed(mask_BT: Tensor, documents_BT: Tensor) -> Tensor:
    """(B, 1, T, T) bool: row t reads column u. Padding reads itself, for a softmax over nothing is NaN."""
    length = mask_BT.shape[1]
    own_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=mask_BT.device).tril()
    allowed_BTT = own_BTT & causal_TT & mask_BT[:, None, :]
    return (allowed_BTT | torch.eye(length, dtype=torch.bool, device=mask_BT.device))[:, None]
