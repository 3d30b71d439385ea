import numpy as np
import pytest

from models.language.packing import alone, best_fit, concat, first_fit, places, split

PACKERS = {"concat": concat, "first_fit": first_fit, "best_fit": best_fit}


def lengths(count: int = 300, longest: int = 40) -> np.ndarray:
    return np.random.default_rng(3).integers(0, longest + 1, count)


def rows(plan) -> list[list[tuple[int, int, int]]]:
    """Each row's pieces (document, start, stop)."""
    pieces = list(zip(plan.document.tolist(), plan.start.tolist(), plan.stop.tolist(), strict=True))
    return [pieces[a:b] for a, b in zip(plan.rows[:-1], plan.rows[1:], strict=True)]


def tokens(plan) -> list[tuple[int, int]]:
    """(document, token) of every packed token."""
    return [(d, t) for row in rows(plan) for d, start, stop in row for t in range(start, stop)]


def everything(sizes) -> list[tuple[int, int]]:
    return [(d, t) for d, size in enumerate(sizes) for t in range(size)]


def test_concat_by_hand():
    # Seed 1 leaves the order 0, 1: three tokens of document 0 and one of document 1, then the rest of it.
    plan = concat([3, 4], length=4, seed=1)
    assert rows(plan) == [[(0, 0, 3), (1, 0, 1)], [(1, 1, 4)]]
    assert plan.efficiency == 7 / 8


def test_best_fit_by_hand():
    # 5 fills a row; 4 takes 1; 3 takes 2: three full rows.
    plan = best_fit([4, 3, 2, 1, 5], length=5, seed=0)
    assert sorted(sorted(d for d, _, _ in row) for row in rows(plan)) == [[0, 3], [1, 2], [4]]
    assert plan.efficiency == 1.0


def test_best_fit_takes_the_least_sufficient_room():
    # 6 leaves 4; 5 does not fit and leaves 5; 3 takes the 4, not the 5; 2 takes the 5.
    plan = best_fit([6, 5, 3, 2], length=10, seed=0)
    assert sorted(sorted(d for d, _, _ in row) for row in rows(plan)) == [[0, 2], [1, 3]]


def test_first_fit_by_hand():
    # One open row: a document that does not fit closes it. Equal lengths make the order irrelevant: two a row.
    assert [len(row) for row in rows(first_fit([3, 3, 3, 3, 3], length=7, seed=0, bins=1))] == [2, 2, 1]
    # With both rows open, the 1 finds the first with room: 4 + 1 and 4 never need a third row.
    assert len(first_fit([4, 4, 1], length=5, seed=0, bins=8)) == 2


def test_first_fit_closes_the_fullest_row():
    order = np.random.default_rng([0, 1]).permutation(4)
    sizes = np.empty(4, int)
    sizes[order] = [4, 2, 4, 3]  # 4 | 2, then the second 4 closes the row of 4, and 3 joins the 2
    plan = first_fit(sizes, length=5, seed=0, bins=2)
    assert sorted(sorted(sizes[d] for d, _, _ in row) for row in rows(plan)) == [[2, 3], [4], [4]]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_concat_takes_every_token_once_and_only_the_last_row_is_short(seed):
    plan = concat(lengths(), length=32, seed=seed)
    assert sorted(tokens(plan)) == everything(lengths())
    sizes = [sum(stop - start for _, start, stop in row) for row in rows(plan)]
    assert sizes[:-1] == [32] * (len(sizes) - 1)
    assert sizes[-1] == lengths().sum() % 32 or sizes[-1] == 32


def test_concat_with_special_tokens_takes_every_token_once():
    plan = concat(lengths(), length=16, seed=0, overhead=2)
    assert sorted(tokens(plan)) == everything(lengths())
    sizes = [sum(stop - start + 2 for _, start, stop in row) for row in rows(plan)]
    assert max(sizes) <= 16
    assert min(sizes[:-1]) >= 14  # no room for one token between two special ones
    assert plan.efficiency == sum(sizes) / (16 * len(sizes))


@pytest.mark.parametrize("packer", [first_fit, best_fit])
def test_whole_documents_lose_only_those_longer_than_a_row_and_count_them(packer):
    sizes = lengths()
    plan = packer(sizes, length=32, seed=0)
    over = sizes > 32
    assert plan.dropped == over.sum() > 0
    assert plan.lost == sizes[over].sum()
    assert sorted(tokens(plan)) == [(d, t) for d, t in everything(sizes) if not over[d]]
    assert all(sum(stop for _, _, stop in row) <= 32 for row in rows(plan))
    assert plan.efficiency == sizes[~over].sum() / (32 * len(plan))


def test_best_fit_is_the_tightest():
    sizes = np.random.default_rng(0).integers(1, 33, 2000)
    one, eight, best = (plan.efficiency for plan in (
        first_fit(sizes, 32, 0, bins=1), first_fit(sizes, 32, 0, bins=8), best_fit(sizes, 32, 0)
    ))  # fmt: skip
    assert one < eight < best
    assert best > 0.98


def test_alone_keeps_the_order_and_drops_what_is_too_long():
    plan = alone([3, 0, 9, 5], length=5)
    assert rows(plan) == [[(0, 0, 3)], [(3, 0, 5)]]
    assert (plan.dropped, plan.lost) == (1, 9)


@pytest.mark.parametrize("name", PACKERS)
def test_a_plan_is_a_function_of_lengths_and_seed(name):
    first, again, other = (PACKERS[name](lengths(), 64, seed) for seed in (5, 5, 6))
    assert rows(first) == rows(again)
    assert rows(first) != rows(other)


@pytest.mark.parametrize("name", PACKERS)
def test_nothing_to_pack(name):
    for sizes in ([], [0, 0]):
        plan = PACKERS[name](sizes, length=8, seed=0)
        assert (len(plan), len(plan.document), plan.efficiency) == (0, 0, 1.0)


def test_pieces_and_places():
    document, start, stop = split([7, 0, 3], length=3)
    assert list(zip(document.tolist(), start.tolist(), stop.tolist(), strict=True)) == [
        (0, 0, 3), (0, 3, 6), (0, 6, 7), (2, 0, 3)
    ]  # fmt: skip
    number, position = places([3, 0, 2])
    assert number.tolist() == [0, 0, 0, 2, 2]
    assert position.tolist() == [0, 1, 2, 0, 1]


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="at least 1 open row"):
        first_fit([1], 4, 0, bins=0)
    with pytest.raises(ValueError, match="2 places has no room"):
        concat([1], length=2, seed=0, overhead=2)
    with pytest.raises(ValueError, match="document 1 has -4 tokens"):
        best_fit([1, -4], 4, 0)
    with pytest.raises(ValueError, match="at least 1 token"):
        split([3], length=0)
