"""Attention that drops some of its shares, a few rows at a time, on CPU.

    A = softmax(s Q K^T + M),  D = A * kept / (1 - p),  output = D V
    dV = D^T dO,  dD = dO V^T,  dA = dD * kept / (1 - p),  dS = A * (dA - sum(A * dA)),  dQ = s dS K,  dK = s dS^T Q

Torch's own on CPU holds every tensor of a layer's scores, and those it saves, in float32 and apart from the mask. Here
what a few rows need stays in cache, and one tensor is saved: A, negative where it was dropped. Vaswani et al., 2017,
arXiv:1706.03762; the order of work is ours.
"""

import torch
from torch import Tensor

from models.components._dropout import LEVELS, draw

__all__ = ["mix"]

CHUNK = 2**19  # scores at a time: 2 MiB of float32


def mix(query: Tensor, key: Tensor, value: Tensor, addend: Tensor | None, scale: float, rate: float) -> Tensor:
    """Values mixed by attention with dropout.

    Args:
        query: (B, T, H, K).
        key: (B, S, H, K).
        value: (B, S, H, K).
        addend: float, added to the logits: (B or 1, H or 1, T or 1, S), finite; it gets no gradient.
        scale: of the logits.
        rate: of the dropout, rounded as in `dropout`.

    Returns:
        (B, T, H, K).
    """
    return _Mix.apply(query, key, value, addend, scale, round(rate * LEVELS))


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, addend, scale, lost):
        (rows, length, heads, _), keys = query.shape, key.shape[1]
        kept_scale, wide = LEVELS / (LEVELS - lost), torch.promote_types(query.dtype, torch.float32)
        shares = query.new_empty(rows, heads, length, keys)
        mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
        with torch.autocast("cpu", enabled=False):
            for part in _parts(shares):  # products are not written over: selective checkpointing may keep them
                logits = (query[part].transpose(1, 2) * scale @ key[part].permute(0, 2, 3, 1)).to(wide)
                if addend is not None:
                    logits = logits + (addend[part] if len(addend) > 1 else addend)
                share = torch.softmax(logits, -1)
                kept = draw(share.shape, lost)
                shares[part].copy_(torch.where(kept, share, share.neg(), out=share))
                found = shares[part].relu() @ value[part].transpose(1, 2)
                torch.mul(found.transpose(1, 2), kept_scale, out=mixed[part])
        ctx.save_for_backward(query, key, value, shares)
        ctx.scale, ctx.kept_scale = scale, kept_scale
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, key, value, shares = ctx.saved_tensors
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)]
        for part in _parts(shares):
            upstream = grad[part].transpose(1, 2) * ctx.kept_scale
            signed = shares[part]
            grads[2][part].copy_((signed.relu().mT @ upstream).transpose(1, 2))
            change = (upstream @ value[part].permute(0, 2, 3, 1)).to(torch.promote_types(signed.dtype, torch.float32))
            change *= signed.relu()
            share = signed.abs()
            change -= share * change.sum(-1, keepdim=True)
            change = change.to(query.dtype).mul_(ctx.scale)
            grads[0][part].copy_((change @ key[part].transpose(1, 2)).transpose(1, 2))
            grads[1][part].copy_((change.mT @ query[part].transpose(1, 2)).transpose(1, 2))
        return *grads, None, None, None


def _parts(shares: Tensor) -> list[slice]:
    rows = max(1, CHUNK // max(1, shares[:1].numel()))
    return [slice(start, start + rows) for start in range(0, len(shares), rows)]
