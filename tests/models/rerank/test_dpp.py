from itertools import combinations

import pytest
import torch

from models.recommend.rerank._rerank import unit
from models.recommend.rerank.dpp import DPP, greedy

VECTORS = unit(torch.tensor([[[1.0, 0, 0], [0.98, 0.199, 0], [0, 1, 0], [0, 0, 1]]]).double())


def everything(relevance):
    return torch.ones_like(relevance, dtype=torch.bool)


def kernel(quality, directions):
    return quality[:, None] * (directions @ directions.T) * quality[None, :]


def by_determinants(matrix, count, window=None):
    """Greedy choice by the definition: the largest determinant of the window with one item more."""
    chosen = []
    for _ in range(count):
        near = chosen[-window:] if window else chosen
        base = torch.linalg.det(matrix[near][:, near]) if near else torch.tensor(1.0).double()
        left = [i for i in range(len(matrix)) if i not in chosen]
        gains = [torch.linalg.det(matrix[near + [i]][:, near + [i]]) / base for i in left]
        chosen.append(left[int(torch.stack(gains).argmax())])
    return chosen


def test_by_hand():
    quality = torch.tensor([[1.0, 0.9, 0.8, 0.5]]).double()
    # Item 1 leaves item 2 .81 (1 - .98^2) = .032, items 3 and 4 their .64 and .25; with three the rank is used up.
    assert greedy(quality, VECTORS, 4, everything(quality)).tolist() == [[0, 2, 3, -1]]


def test_the_rest_is_filled_by_relevance():
    relevance = torch.tensor([[1.0, 0.9, 0.8, 0.5]])
    assert DPP(0.0).order(relevance, VECTORS, 4).tolist() == [[0, 2, 3, 1]]
    assert DPP(0.0, fill=False).order(relevance, VECTORS, 4).tolist() == [[0, 2, 3, -1]]


@pytest.mark.parametrize("window", [None, 1, 2, 3, 6, 20])
def test_equals_the_definition(window):
    draw = torch.Generator().manual_seed(3)
    directions = unit(torch.randn(40, 8, 8, generator=draw).double())
    quality = torch.rand(40, 8, generator=draw).double() + 0.2
    found = greedy(quality, directions, 6, everything(quality), window)
    expected = [by_determinants(kernel(q, d), 6, window) for q, d in zip(quality, directions, strict=True)]
    assert found.tolist() == expected


def test_the_first_two_are_the_best_pair_that_begins_with_the_best_item():
    draw = torch.Generator().manual_seed(5)
    directions, quality = unit(torch.randn(1, 7, 7, generator=draw).double()), torch.rand(1, 7, generator=draw).double()
    matrix = kernel(quality[0], directions[0])
    first = int(matrix.diagonal().argmax())
    pairs = [pair for pair in combinations(range(7), 2) if first in pair]
    best = max(pairs, key=lambda pair: torch.linalg.det(matrix[list(pair)][:, list(pair)]))
    assert set(greedy(quality, directions, 2, everything(quality))[0].tolist()) == set(best)


def test_copies_are_never_both_chosen():
    relevance, vectors = torch.tensor([[1.0, 1.0, 0.5]]), torch.tensor([[[1.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    assert DPP(0.5, fill=False).order(relevance, vectors, 3).tolist() == [[0, 2, -1]]


def test_theta_zero_ignores_relevance_and_theta_near_one_follows_it():
    draw = torch.Generator().manual_seed(4)
    relevance, vectors = torch.rand(60, 12, generator=draw), torch.randn(60, 12, 12, generator=draw)
    flat = DPP(0.0).order(relevance, vectors, 5)
    assert torch.equal(flat, DPP(0.0).order(torch.rand(60, 12, generator=draw), vectors, 5))
    means = [relevance.gather(1, DPP(theta).order(relevance, vectors, 5)).mean() for theta in (0.0, 0.5, 0.9, 0.99)]
    assert means == sorted(means)
    apart = torch.rand(60, 12, generator=draw).argsort(1) / 12
    assert torch.equal(DPP(0.997).order(apart, vectors, 5), apart.topk(5).indices)


def test_a_long_list_keeps_its_precision():
    draw = torch.Generator().manual_seed(6)
    vectors = unit(torch.randn(1, 200, 160, generator=draw).double())
    chosen = greedy(torch.ones(1, 200).double(), vectors, 160, torch.ones(1, 200, dtype=torch.bool))[0]
    assert len(set(chosen.tolist())) == 160
    assert chosen.min() >= 0


@pytest.mark.parametrize(("settings", "words"), [({"theta": 1.0}, r"theta lies in \[0, 1\)"), ({"window": 0}, "got 0")])
def test_settings_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        DPP(**settings)
