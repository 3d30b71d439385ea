"""Angles between states: how points lie to each other, whatever the space they live in.

The angle at i between j and k is cos(h_i - h_j, h_i - h_k). All are read off dot products, so no difference of states
is ever held: (h_i - h_j) . (h_i - h_k) = i.i - i.j - i.k + j.k.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from models.distill._maths import wide

__all__ = ["Corners", "all_corners", "corners_at", "dots", "pairs_of"]

SAME = 1e-6  # relative squared distance below which two states are one: there is no angle


class Corners(NamedTuple):
    """Dot products of anchors i with Y others each."""

    own: Tensor  # (..., X): i.i
    to: Tensor  # (..., X, Y): i.j
    between: Tensor  # (..., X, Y, Y): j.k

    def angles(self) -> Tensor:
        """cos(h_i - h_j, h_i - h_k): (..., X, Y, Y); 0 where j or k is the same state as i."""
        between_jj = self.between.diagonal(dim1=-2, dim2=-1)
        own = self.own[..., None]
        squared = own - 2 * self.to + between_jj
        apart = squared > SAME * (own + between_jj).clamp(min=torch.finfo(squared.dtype).tiny)
        length = squared.where(apart, 1).sqrt()
        inner = own[..., None] - self.to[..., :, None] - self.to[..., None, :] + self.between
        both = apart[..., :, None] & apart[..., None, :]
        return (inner / (length[..., :, None] * length[..., None, :])).where(both, 0)


def dots(x_NXD: Tensor, there_NX: Tensor) -> Tensor:
    """Dot products (..., X, X) of states about their mean, which leaves angles as they are and rounds less.

    Args:
        there_NX: (..., X) bool; what is not there does not count in the mean.
    """
    with torch.autocast(x_NXD.device.type, enabled=False):  # a difference of halves is mostly rounding
        x_NXD = wide(x_NXD).masked_fill(~there_NX[..., None], 0)
        mean_ND = x_NXD.sum(-2, keepdim=True) / there_NX.sum(-1)[..., None, None].clamp(min=1)
        x_NXD = (x_NXD - mean_ND).masked_fill(~there_NX[..., None], 0)
        return x_NXD @ x_NXD.mT


def all_corners(dots_NXX: Tensor) -> Corners:
    """Every state with all others."""
    own = dots_NXX.diagonal(dim1=-2, dim2=-1)
    return Corners(own, dots_NXX, dots_NXX[..., None, :, :].expand(*own.shape, -1, -1))


def corners_at(dots_BXX: Tensor, anchors_BK: Tensor, others_BKY: Tensor) -> Corners:
    """Chosen anchors with chosen others, by their numbers in 0..X - 1."""
    rows_BKX = dots_BXX.take_along_dim(anchors_BK[..., None], -2)
    own = rows_BKX.take_along_dim(anchors_BK[..., None], -1)[..., 0]
    size = dots_BXX.shape[-1]
    places = others_BKY[..., :, None] * size + others_BKY[..., None, :]
    between = dots_BXX.flatten(-2).take_along_dim(places.flatten(-3), -1).view(places.shape)
    return Corners(own, rows_BKX.take_along_dim(others_BKY, -1), between)


def pairs_of(others_NXY: Tensor) -> Tensor:
    """(..., X, Y, Y) bool, True at two different others of an anchor: an angle with itself is 1 for any model."""
    pairs = others_NXY[..., :, None] & others_NXY[..., None, :]
    return pairs & ~torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
