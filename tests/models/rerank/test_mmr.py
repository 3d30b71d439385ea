import pytest
import torch

from models import build, names
from models.recommend.rerank._rerank import fill_up, unit
from models.recommend.rerank.mmr import MMR

RELEVANCE = torch.tensor([[1.0, 0.9, 0.8, 0.5]])
# cos(1, 2) = .98, item 3 at a right angle to item 1 (cos(2, 3) = .199), item 4 at a right angle to all.
VECTORS = torch.tensor([[[1.0, 0, 0], [0.98, 0.199, 0], [0, 1, 0], [0, 0, 1]]])


def naive(relevance, vectors, trade, count):
    vectors, chosen = unit(vectors), []
    for _ in range(count):
        marks = []
        for i in range(len(relevance)):
            nearest = max((float(vectors[i] @ vectors[j]) for j in chosen), default=0.0)
            marks.append(-torch.inf if i in chosen else trade * float(relevance[i]) - (1 - trade) * nearest)
        chosen.append(max(range(len(marks)), key=lambda i: marks[i]))
    return chosen


@pytest.mark.parametrize(
    ("trade", "order"), [(1, [0, 1, 2, 3]), (0.7, [0, 2, 3, 1]), (0.5, [0, 2, 3, 1]), (0, [0, 2, 3, 1])]
)
def test_by_hand(trade, order):
    # At .7 the second place: .7 .9 - .3 .98 = .336, .7 .8 = .56, .7 .5 = .35: item 3.
    assert MMR(trade).order(RELEVANCE, VECTORS, 4).tolist() == [order]


def test_equals_the_naive_form():
    draw = torch.Generator().manual_seed(0)
    relevance, vectors = torch.rand(20, 9, generator=draw).double(), torch.randn(20, 9, 4, generator=draw).double()
    for trade in (0.2, 0.6, 0.9):
        found = MMR(trade).order(relevance, vectors, 6)
        assert found.tolist() == [naive(r, v, trade, 6) for r, v in zip(relevance, vectors, strict=True)]


def test_scaled_does_not_depend_on_the_range_of_relevance():
    draw = torch.Generator().manual_seed(1)
    relevance, vectors = torch.rand(10, 8, generator=draw).double(), torch.randn(10, 8, 3, generator=draw).double()
    one = MMR(0.5, scaled=True)
    assert torch.equal(one.order(relevance, vectors, 8), one.order(1000 * relevance - 7, vectors, 8))
    assert not torch.equal(MMR(0.5).order(relevance, vectors, 8), MMR(0.5).order(1000 * relevance, vectors, 8))


def test_a_copy_is_delayed():
    relevance = torch.tensor([[1.0, 1.0, 0.9, 0.8]])
    vectors = torch.tensor([[[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]])
    assert MMR(0.7).order(relevance, vectors, 4).tolist() == [[0, 2, 3, 1]]


@pytest.mark.parametrize("name", ["mmr", "dpp"])
def test_unlike_items_come_in_the_order_of_relevance(name):
    relevance = torch.tensor([[0.3, 0.9, 0.1, 0.5]])
    for setting in (0.0, 0.3, 0.9):
        if name == "mmr" and setting == 0:
            continue  # nothing but likeness, and there is none
        rule = build("recommend.rerank", name, setting)
        expected = [[0, 1, 2, 3]] if name == "dpp" and setting == 0 else [[1, 3, 0, 2]]
        assert rule.order(relevance, torch.eye(4)[None], 4).tolist() == expected


def contract():
    settings = {"cdm": {"width": 3}}
    return [(name, settings.get(name, {})) for name in names("recommend.rerank")]


@pytest.mark.parametrize(("name", "settings"), contract())
def test_contract(name, settings):
    torch.manual_seed(0)
    rule = build("recommend.rerank", name, **settings).eval()
    relevance, vectors = torch.rand(3, 6), torch.randn(3, 6, 3)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 2:] = False
    mask[2] = False
    lists = rule.order(relevance, vectors, 4, mask)
    assert lists.shape == (3, 4)
    assert sorted(lists[0].tolist()) == sorted(set(lists[0].tolist()))
    assert set(lists[1].tolist()) == {0, 1, -1}
    assert lists[1, 2:].tolist() == [-1, -1]
    assert lists[2].tolist() == [-1] * 4
    # What is no candidate never matters, and lists of one request do not depend on the others.
    relevance[1, 2:], vectors[1, 2:] = torch.nan, 9.0
    assert torch.equal(rule.order(relevance, vectors, 4, mask), lists)
    assert torch.equal(rule.order(relevance[:1], vectors[:1], 4), lists[:1])
    # The candidates' order never matters.
    shuffled = torch.randperm(6)
    found = rule.order(relevance[:1, shuffled], vectors[:1, shuffled], 4)
    assert torch.equal(shuffled[found[0]], lists[0])


@pytest.mark.parametrize(("name", "settings"), contract())
def test_bad_requests_are_refused(name, settings):
    rule = build("recommend.rerank", name, **settings)
    with pytest.raises(ValueError, match=r"got \(3, 6\) and \(3, 5, 3\)"):
        rule.order(torch.rand(3, 6), torch.randn(3, 5, 3), 2)
    with pytest.raises(ValueError, match="at least one place, got 0"):
        rule.order(torch.rand(3, 6), torch.randn(3, 6, 3), 0)
    with pytest.raises(ValueError, match="1 candidates have a relevance that is not a finite number"):
        rule.order(torch.tensor([[0.1, torch.nan]]), torch.randn(1, 2, 3), 2)


def test_more_places_than_candidates():
    for name, settings in contract():
        lists = build("recommend.rerank", name, **settings).eval().order(torch.rand(1, 3), torch.randn(1, 3, 3), 5)
        assert sorted(x for x in lists[0].tolist() if x >= 0) == [0, 1, 2]


def test_filling_up_takes_the_most_relevant_of_the_rest():
    chosen = torch.tensor([[2, -1, 0, -1, -1]])
    mask = torch.tensor([[True, True, True, True, False]])
    assert fill_up(chosen, torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]]), mask).tolist() == [[2, 3, 0, 1, -1]]


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="between 0 .* got 1.5"):
        MMR(1.5)
