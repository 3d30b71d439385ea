import math

import pytest
import torch

from models.recommend.rerank._diversity import alpha_ndcg, category_coverage, category_entropy, list_distances

VECTORS = torch.tensor([[[1.0, 0], [0, 2], [3, 0], [-1, 0]]])
CATEGORIES = torch.tensor([[7, 7, 8, 9]])


def test_distances_by_hand():
    # Of items 0, 1, 3: 1 - 0, 1 + 1, 1 - 0: mean 4 / 3, least 1.
    mean, least = list_distances(torch.tensor([[0, 1, 3, -1]]), VECTORS)
    assert mean.tolist() == pytest.approx([4 / 3])
    assert least.tolist() == pytest.approx([1.0])
    mean, least = list_distances(torch.tensor([[0, -1]]), VECTORS)
    assert mean.isnan().all()
    assert least.isnan().all()


def test_categories_by_hand():
    lists = torch.tensor([[0, 1, 2, -1]])
    assert category_coverage(lists, CATEGORIES).tolist() == [2]
    assert category_entropy(lists, CATEGORIES).item() == pytest.approx(
        -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    )
    assert category_entropy(torch.tensor([[0, 1]]), CATEGORIES).item() == pytest.approx(0)


def test_alpha_ndcg_by_hand():
    relevant = torch.tensor([[True, True, True, False]])
    # Gains 1, 1/2, 1 at discounts 1, .63093, .5; the ideal order has gains 1, 1, 1/2.
    found = alpha_ndcg(torch.tensor([[0, 1, 2]]), CATEGORIES, relevant)
    assert found.item() == pytest.approx((1 + 0.63093 / 2 + 0.5) / (1 + 0.63093 + 0.25), abs=1e-5)
    assert alpha_ndcg(torch.tensor([[0, 2, 1]]), CATEGORIES, relevant).item() == pytest.approx(1)
