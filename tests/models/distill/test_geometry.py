"""Angles read off dot products are those between differences."""

import torch
from torch.nn import functional as F

from models.distill._geometry import all_corners, corners_at, dots, pairs_of


def points(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).double()


def between(x: torch.Tensor) -> torch.Tensor:
    apart = F.normalize(x[..., :, None, :] - x[..., None, :, :], dim=-1)
    return apart @ apart.mT


def test_by_hand():
    # A right triangle of sides 3, 4, 5: 90 degrees at its corner, cosines .6 and .8 at the others.
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    angles = all_corners(dots(x, torch.ones(3, dtype=torch.bool))).angles()
    found = torch.stack([angles[0, 1, 2], angles[1, 0, 2], angles[2, 0, 1]])
    torch.testing.assert_close(found, torch.tensor([0.0, 0.6, 0.8]))


def test_they_are_those_of_differences():
    x = points(2, 6, 5)
    torch.testing.assert_close(all_corners(dots(x, torch.ones(2, 6, dtype=torch.bool))).angles(), between(x))


def test_chosen_corners():
    x = points(2, 6, 5)
    anchors, others = torch.tensor([[4, 0], [1, 2]]), torch.tensor([[[1, 2, 3], [5, 3, 1]], [[0, 5, 4], [3, 1, 0]]])
    found = corners_at(dots(x, torch.ones(2, 6, dtype=torch.bool)), anchors, others).angles()
    for b in range(2):
        for k in range(2):
            at = others[b, k]
            torch.testing.assert_close(found[b, k], between(x)[b, anchors[b, k]][at][:, at])


def test_a_common_part_of_all_states_does_not_drown_the_angles():
    x = points(1, 8, 64).float() + 1000
    found = all_corners(dots(x, torch.ones(1, 8, dtype=torch.bool))).angles()
    torch.testing.assert_close(found.double(), between(x.double()), atol=1e-4, rtol=0)


def test_what_is_not_there_moves_nothing():
    x, there = points(1, 4, 3), torch.tensor([[True, True, True, False]])
    other = x.masked_fill(~there[..., None], float("inf"))
    assert torch.equal(dots(x, there), dots(other, there))


def test_two_equal_states_have_no_angle_and_no_bad_gradient():
    x = points(1, 3, 4)
    x[0, 1] = x[0, 0]
    x.requires_grad_()
    angles = all_corners(dots(x, torch.ones(1, 3, dtype=torch.bool))).angles()
    angles.sum().backward()
    assert angles[0, 0, 1, 2] == 0 and torch.isfinite(x.grad).all()


def test_pairs_are_of_two_different_others():
    assert pairs_of(torch.tensor([[True, False, True]])).nonzero().tolist() == [[0, 0, 2], [0, 2, 0]]
