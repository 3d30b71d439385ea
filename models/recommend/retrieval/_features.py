"""Contrasts of feature columns instead of rows, without D x D matrices that outlive their use.

Z (N, D) has columns of mean 0 and variance 1 over the batch, as batch norm without weights gives them.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["cross_correlation", "polynomial"]

BLOCK = 512  # columns of Z^T Z at a time: 512 x 512 numbers stay in a processor's cache


def cross_correlation(first_ND: Tensor, second_ND: Tensor, gamma: float) -> Tensor:
    """(1/D) sum_m (C_mm - 1)^2 + gamma (1/D) sum_{m != n} C_mn^2 with C = Z_1^T Z_2 / N: a scalar.

    With fewer rows than half the columns, the sum over C is taken in the smaller of two equal forms,
    |Z_1^T Z_2|^2 = sum((Z_1 Z_1^T) * (Z_2 Z_2^T)): N^2 D multiplications instead of N D^2.

    Source: Zbontar et al., 2021, arXiv:2103.03230, as divided by D in arXiv:2401.15635.
    """
    rows, width = first_ND.shape
    diagonal_D = (first_ND * second_ND).sum(0) / rows
    if 2 * rows < width:
        squares = ((first_ND @ first_ND.mT) * (second_ND @ second_ND.mT)).sum()
    else:
        squares = (first_ND.mT @ second_ND).square().sum()
    off = squares / rows**2 - diagonal_D.square().sum()
    return ((diagonal_D - 1).square().sum() + gamma * off) / width


def polynomial(z_ND: Tensor, a: float, c: float, e: int) -> Tensor:
    """ln mean_{m,n} (a (Z^T Z)_mn + c)^e: a scalar.

    The power is taken of numbers divided by the largest there can be, that of the diagonal, so that it never overflows;
    the logarithm adds the rest. The gradient is made in the same pass over blocks of Z^T Z.

    Args:
        z_ND: (N, D).
        a: above 0.
        c: 0 or more.
        e: even: the mean of an odd power may be negative.
    """
    return _Polynomial.apply(z_ND, a, c, e)


class _Polynomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z_ND, a, c, e):
        width = z_ND.shape[1]
        top = a * z_ND.square().sum(0).max() + c  # |z_m . z_n| <= max |z_m|^2
        top = torch.where(top > 0, top, 1)
        scale = (a / top).sqrt()
        scaled_ND, shift = z_ND * scale, (c / top).expand(1)
        total = z_ND.new_zeros((), dtype=torch.float64)
        push_ND = torch.zeros_like(z_ND)
        for i in range(0, width, BLOCK):
            left = scaled_ND[:, i : i + BLOCK]
            for j in range(i, width, BLOCK):  # Z^T Z is symmetric: each block off the diagonal counts twice
                right = scaled_ND[:, j : j + BLOCK]
                value = torch.addmm(shift, left.mT, right)
                power = value ** (e - 1)
                total += (value * power).sum() * (1 if i == j else 2)
                push_ND[:, i : i + BLOCK].addmm_(right, power.mT)
                if i != j:
                    push_ND[:, j : j + BLOCK].addmm_(left, power)
        ctx.save_for_backward(push_ND, torch.where(total > 0, 2 * e * scale / total, 0))
        return (total.log() - 2 * math.log(width) + e * top.double().log()).to(z_ND.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        push_ND, factor = ctx.saved_tensors
        return push_ND * (gradient * factor).to(push_ND.dtype), None, None, None
