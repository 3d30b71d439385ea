"""Cross-entropy of a linear head that never holds tokens x vocabulary.

    L = sum_n [ (1 - s) nll_n + s mean_v(-log p_nv) + z lse_n^2 ],  p_n = softmax(W h_n + b),  lse_n = log sum exp

A chunk of tokens at a time gives its part of the loss and, in the same pass, of all gradients, so logits are formed
once and forgotten; the backward pass only multiplies what is already there. Smoothing s: Szegedy et al., 2015,
arXiv:1512.00567; z-loss: Chowdhery et al., 2022 (PaLM), arXiv:2204.02311, section 5. The order of work is ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["IGNORED", "HeadLoss", "head_loss"]

IGNORED = -100  # label of a place that has none
CHUNK = 2**23  # logits at a time: 32 MiB of float32, which become their own gradient; fewer make products slower


@dataclass(frozen=True)
class HeadLoss:
    """Sums over labelled tokens."""

    total: Tensor  # scalar, in nats, smoothing and z included; the only one with a gradient
    nll: Tensor  # of the labels
    z: Tensor  # the z-loss's share of the total
    correct: Tensor  # tokens whose label has the highest logit


def head_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    label_N: Tensor,
    bias_V: Tensor | None = None,
    smoothing: float = 0.0,
    z: float = 0.0,
) -> HeadLoss:
    """Summed cross-entropy of softmax(hidden W^T + b), equal to the plain one in value and in every gradient.

    Under autocast the three products are of its precision; softmax, sums and the weight's gradient are float32.

    Args:
        hidden_ND: of any tokens.
        weight_VD: of the head.
        label_N: int64 in 0..V-1, or -100 for tokens that do not count.
        bias_V: of the head.
        smoothing: share of the label's probability that is spread over all V.
        z: weight of the squared log-partition.
    """
    counts = label_N != IGNORED
    if not bool(counts.all()):
        hidden_ND, label_N = hidden_ND[counts], label_N[counts]
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    with torch.autocast(device, enabled=False):
        hidden_ND = hidden_ND.to(dtype)
        return HeadLoss(*_Head.apply(hidden_ND, weight_VD, bias_V, label_N, smoothing, z, torch.is_grad_enabled()))


class _Head(torch.autograd.Function):
    """The sums of HeadLoss; gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, label, smoothing, z, train):
        wanted = [train and need for need in ctx.needs_input_grad[:3]]
        vocabulary, wide = len(weight), torch.promote_types(hidden.dtype, torch.float32)
        exact = {"dtype": wide, "device": hidden.device}
        head = weight.to(hidden.dtype)
        gradients = [
            torch.empty_like(hidden) if wanted[0] else None,
            torch.zeros(weight.shape, **exact) if wanted[1] else None,
            torch.zeros(vocabulary, **exact) if wanted[2] else None,
        ]
        sums = torch.zeros(4, **exact)
        space = _Space(len(hidden), weight, hidden.dtype, wide, wanted[1])
        for start in range(0, len(hidden), space.rows):
            part, labels = hidden[start : start + space.rows], label[start : start + space.rows, None]
            logits = space.logits(part, head)
            if bias is not None:
                logits.add_(bias)
            chosen, highest = logits.gather(1, labels), logits.amax(-1, keepdim=True)
            correct = _correct(logits, labels, chosen == highest)
            even = logits.mean(-1, keepdim=True) if smoothing else 0.0
            share = torch.softmax(logits, -1, out=logits)
            lse = highest - share.amax(-1, keepdim=True).log_()  # the highest share is at least 1 / V: exact
            extra = z * lse.square()
            nll = lse - chosen
            smooth = (1 - smoothing) * nll + smoothing * (lse - even) if smoothing else nll
            sums += torch.stack([(smooth + extra).sum(), nll.sum(), extra.sum(), correct])
            if not any(wanted):
                continue
            if z:
                share *= 1 + 2 * z * lse
            if smoothing:
                share -= smoothing / vocabulary
            share.scatter_add_(1, labels, torch.full_like(lse, smoothing - 1))
            if wanted[2]:
                gradients[2] += share.sum(0)
            share = space.narrowed(share)
            if wanted[0]:
                torch.mm(share, head, out=gradients[0][start : start + space.rows])
            if wanted[1]:
                space.add_product(gradients[1], share.T, part)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        total, nll, extra, correct = sums.unbind()
        ctx.mark_non_differentiable(nll, extra, correct)
        return total, nll, extra, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, *_):
        grown = [
            None if gradient is None else (gradient * upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *grown, None, None, None, None


class _Space:
    """Memory of one chunk, taken once for all: new memory for each costs the system a page fault every 4 KiB.

    Args:
        tokens: of all chunks, which are as equal as can be.
        weight: (V, D) of the head.
        narrow: type of the products.
        wide: type of what is summed.
        train: whether the weight has a gradient.
    """

    def __init__(self, tokens: int, weight: Tensor, narrow: torch.dtype, wide: torch.dtype, train: bool):
        chunks = max(1, -(-tokens * len(weight) // CHUNK))
        self.rows = max(1, -(-tokens // chunks))
        self.wide = weight.new_empty(self.rows, len(weight), dtype=wide)
        self.narrow = self.wide if narrow == wide else torch.empty_like(self.wide, dtype=narrow)
        self.product = weight.new_empty(weight.shape, dtype=narrow) if train and narrow != wide else None

    def logits(self, part: Tensor, head: Tensor) -> Tensor:
        """part head^T, widened."""
        logits = torch.mm(part, head.T, out=self.narrow[: len(part)])
        return logits if self.narrow is self.wide else self.wide[: len(part)].copy_(logits)

    def narrowed(self, share: Tensor) -> Tensor:
        """What the products of the backward pass read."""
        return share if self.narrow is self.wide else self.narrow[: len(share)].copy_(share)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """total += left right, in float32 also where the factors are not."""
        if self.product is None:
            total.addmm_(left, right)
        else:
            total += torch.mm(left, right, out=self.product)


def _correct(logits: Tensor, labels: Tensor, highest: Tensor) -> Tensor:
    """How many labels are the first of the highest logits; in 16 bits several can be."""
    found = highest[:, 0].nonzero()[:, 0]
    return (logits[found].argmax(-1) == labels[found, 0]).sum()
