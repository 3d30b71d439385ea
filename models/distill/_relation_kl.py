"""KL between two relations of places, row by row: no T x T of more than one row is ever held.

    S = x y^T / sqrt(K),  p = softmax(S) of real keys      L = sum over heads, real queries of KL(p_t || p_s)
    dL/dS_s = p_s - p_t,  so  dL/dx = (p_s - p_t) y / sqrt(K),  dL/dy = (p_s - p_t)^T x / sqrt(K)

Gradients are computed beside the loss and kept instead of the scores. Sums are in float32, also under autocast.
"""

import torch
from torch import Tensor

from models.distill._maths import wide

__all__ = ["relation_kl"]


def relation_kl(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask_BT: Tensor, causal: bool = False
) -> Tensor:
    """The sum over heads and real places, a scalar in nats; padding is never computed.

    Args:
        student: x and y (B, H, T, K), what queries and keys are there; they may be one tensor.
        teacher: alike, with its own K, without gradient.
        mask_BT: True at real places.
        causal: no place sees a later one.
    """
    return _RelationKL.apply(*student, *teacher, mask_BT, causal)


class _RelationKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BHTK, y_BHTK, theirs_x, theirs_y, mask_BT, causal):
        learns = any(ctx.needs_input_grad[:2])
        total = wide(x_BHTK.new_zeros(()))
        of_x, of_y = (torch.zeros_like(wide(end)) if learns else None for end in (x_BHTK, y_BHTK))
        with torch.autocast(x_BHTK.device.type, enabled=False):
            for row, mask_T in enumerate(mask_BT):
                if not bool(mask_T.any()):
                    continue
                real = slice(None) if bool(mask_T.all()) else mask_T.nonzero().squeeze(-1)
                x, y, tx, ty = (wide(each[row][:, real]) for each in (x_BHTK, y_BHTK, theirs_x, theirs_y))
                x, tx = x * x.shape[-1] ** -0.5, tx * tx.shape[-1] ** -0.5
                own, their = x @ y.mT, tx @ ty.mT
                if causal:
                    later = torch.ones(own.shape[-2:], dtype=torch.bool, device=own.device).triu(1)
                    own, their = (s.masked_fill(later, torch.finfo(s.dtype).min) for s in (own, their))
                p_own, p_their = own.softmax(-1), their.softmax(-1)
                # log sum exp S = S - log p at any key, here the likeliest
                apart = own.amax(-1) - p_own.amax(-1).log() - their.amax(-1) + p_their.amax(-1).log()
                total += apart.sum() + torch.dot(p_their.flatten(), their.sub_(own).flatten())
                if learns:
                    off = p_own.sub_(p_their)
                    of_x[row][:, real] = (off @ y) * x.shape[-1] ** -0.5
                    of_y[row][:, real] = off.mT @ x
        ctx.save_for_backward(of_x, of_y)
        ctx.types = x_BHTK.dtype, y_BHTK.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, above):
        of_x, of_y = ctx.saved_tensors
        return (of_x * above).to(ctx.types[0]), (of_y * above).to(ctx.types[1]), None, None, None, None
