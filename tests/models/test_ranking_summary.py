"""What a ranking comes to: means, slices, coverage, Gini, novelty and the comparison of two models."""

import math

import pytest
import torch

from models.recommend._ranking import RankingError, judged
from models.recommend._summary import compare, coverage, gini, means, novelty, slices, summary
from models.recommend.retrieval._log import Log


def train() -> Log:
    """Ten items: 0 and 1 (the head) have 4 and 3 of 4 users, 2 has 2, 3 has 1, the others none."""
    user = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 1, 0])
    item = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    return Log.of(user, item, 4, 10)


def ranked(items: list[list[int]], truth: Log, at=(2,)):
    return judged(torch.tensor(items), torch.arange(len(items)), truth, at)


def truth() -> Log:
    """User 0: items 1 (head) and 5 (cold); user 1: item 3 (tail); users 2 and 3: none."""
    return Log.of(torch.tensor([0, 0, 1]), torch.tensor([1, 5, 3]), 4, 10)


LISTS = [[1, 4], [0, 3], [0, 1], [0, -1]]


def test_slices_by_hand():
    found = slices(ranked(LISTS, truth()), train(), truth(), at=2)
    nan, second = math.nan, 1 / math.log2(3)
    expected = {
        "recall_cold@2": [0, nan, nan, nan],
        "recall_head@2": [1, nan, nan, nan],
        "recall_tail@2": [nan, 1, nan, nan],
        "ndcg_cold@2": [0, nan, nan, nan],
        "ndcg_head@2": [1, nan, nan, nan],
        "ndcg_tail@2": [nan, second, nan, nan],
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(value).float(), equal_nan=True, msg=name)


def test_lists_by_hand():
    # Shown: item 0 three times, 1 twice, 3 and 4 once.
    lists = ranked(LISTS, truth())
    assert coverage(lists, train(), 2) == pytest.approx(0.4)
    # Sorted 0 0 0 0 0 0 1 1 2 3: sum of (2 place - 11) * shown = 3 * 1 + 5 * 1 + 7 * 2 + 9 * 3, over 10 * 7.
    assert gini(lists, train(), 2) == pytest.approx(49 / 70)
    # Bits: item 0 none, item 1 log2(4/3), item 3 log2(4), item 4 as if one user had it.
    assert novelty(lists, train(), 2) == pytest.approx((2 * math.log2(4 / 3) + 2 + 2) / 7)
    assert coverage(lists, train(), 1) == pytest.approx(0.2)


def test_gini_of_equal_and_of_one_sided_lists():
    everything = ranked([[i, (i + 1) % 10] for i in range(4)] + [[(i + 4) % 10, (i + 5) % 10] for i in range(6)],
                        Log.of(torch.tensor([0]), torch.tensor([1]), 10, 10))  # fmt: skip
    assert gini(everything, train(), 2) == pytest.approx(0, abs=1e-12)
    assert gini(ranked([[3]] * 4, truth(), (1,)), train(), 1) == pytest.approx(0.9)


def test_the_summary_is_flat_and_means_leave_out_users_without_truth():
    lists = ranked(LISTS, truth())
    found = summary(lists, train(), truth(), at=2)
    assert found["recall@2"] == means(lists)["recall@2"] == pytest.approx((0.5 + 1) / 2)
    assert found["gini@2"] == pytest.approx(0.7)
    assert found["recall_tail@2"] == 1
    assert all(isinstance(value, float) for value in found.values())


def test_a_model_is_as_good_as_itself_and_worse_than_a_better_one():
    draw = torch.Generator().manual_seed(0)
    base = torch.rand(400, generator=draw)
    assert compare(base, base) == (0, 0, 0)
    better = base + 0.05 + 0.1 * torch.randn(400, generator=draw)
    found = compare(better, base)
    assert found.low > 0
    assert found.difference == pytest.approx((better - base).double().mean().item())
    back = compare(base, better)
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))


def test_the_interval_is_the_textbook_s():
    """Of a mean of 400 values the bootstrap's interval is +-1.96 standard errors."""
    gap = torch.randn(400, generator=torch.Generator().manual_seed(1))
    found = compare(gap, torch.zeros(400), samples=4000)
    error = 1.96 * gap.std().item() / 20
    assert found.high - found.difference == pytest.approx(error, rel=0.1)
    assert found.difference - found.low == pytest.approx(error, rel=0.1)


def test_pairing_counts():
    """Users differ much, models little: paired, the small difference is seen."""
    level = torch.randn(500, generator=torch.Generator().manual_seed(2)) * 10
    assert compare(level + 0.1, level).low == pytest.approx(0.1, abs=1e-3)


def test_seeds_and_parts_of_the_bootstrap(monkeypatch):
    from models.recommend import _summary

    values = torch.rand(50, generator=torch.Generator().manual_seed(3))
    whole = compare(values, torch.zeros(50), samples=100)
    assert compare(values, torch.zeros(50), samples=100) == whole
    assert compare(values, torch.zeros(50), samples=100, seed=1) != whole
    monkeypatch.setattr(_summary, "AT_ONCE", 200)
    assert compare(values, torch.zeros(50), samples=100) == pytest.approx(whole)


def test_users_without_truth_do_not_count():
    values, base = torch.tensor([1.0, torch.nan, 0.0]), torch.tensor([0.0, torch.nan, 0.0])
    assert compare(values, base).difference == 0.5
    with pytest.raises(RankingError, match="same users"):
        compare(values, torch.zeros(3))
    with pytest.raises(RankingError, match="needs users"):
        compare(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
