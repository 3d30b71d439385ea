"""Full ranking: exact lists, exact masks, metrics by hand, the same whatever the chunk or the rough product."""

import pytest
import torch

from models import metrics
from models.recommend import _search
from models.recommend._ranking import RankingError, judged, rank
from models.recommend._top import top
from models.recommend.retrieval._log import Log


def pairs(seed: int, users: int = 40, items: int = 300, count: int = 600) -> Log:
    draw = torch.Generator().manual_seed(seed)
    user = torch.randint(0, users, (count,), generator=draw)
    return Log.of(user, torch.randint(0, items, (count,), generator=draw), users, items)


def apart(seed: int = 0) -> tuple[Log, Log]:
    """Seen and true pairs of 40 users and 300 items; some users have no true one."""
    seen, truth = pairs(seed), pairs(seed + 1, count=60)
    new = ~seen.has(truth.user, truth.item)
    return seen, Log.of(truth.user[new], truth.item[new], 40, 300)


def vectors(seed: int = 0, whole: bool = False, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """`whole` numbers have exact products, and many equal ones."""
    draw = torch.Generator().manual_seed(seed)
    make = lambda rows: torch.randn(rows, width, generator=draw)
    return tuple((make(rows) * 1.5).round() if whole else make(rows) for rows in (40, 300))


def by_sorting(score_UI: torch.Tensor, seen: Log, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    score_UI = score_UI.clone()
    score_UI[seen.user, seen.item] = -torch.inf
    score, item = score_UI.sort(dim=1, descending=True, stable=True)
    return score[:, :k], item[:, :k]


@pytest.mark.parametrize("rough", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("chunk", [1, 7, 128])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_lists_are_those_of_a_stable_sort_also_among_equal_scores(rough, chunk, k):
    seen, truth = apart()
    users, items = vectors(whole=True)
    ranked = rank((users, items), torch.arange(40), seen, truth, at=[k], chunk=chunk, rough=rough)
    score, item = by_sorting(users @ items.mT, seen, k)
    assert torch.equal(ranked.items, item)
    assert torch.equal(ranked.scores, score)
    assert (score.diff() == 0).any() or k == 1  # ties are there


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_no_rounding_of_the_rough_product_shows(scale):
    """One item's vector is a hundred times as long: its error bound is everybody's."""
    seen, _ = apart()
    users, items = vectors(3, width=48)
    items[7] *= 100
    ranked = rank((users * scale, items), torch.arange(40), seen, None, at=[20])
    score, item = by_sorting((users.double() * scale) @ items.double().mT, seen, 20)
    assert torch.equal(ranked.items, item)
    torch.testing.assert_close(ranked.scores, score.float(), rtol=1e-4, atol=1e-4 * scale)


def test_nearly_equal_scores_are_told_apart():
    """All products are one number in bfloat16."""
    users = torch.ones(2, 1)
    items = 1 + torch.randperm(400, generator=torch.Generator().manual_seed(0))[:, None] * 2.0**-20
    ranked = rank((users, items), torch.arange(2), None, None, at=[10])
    assert torch.equal(ranked.items, items.flatten().argsort(descending=True)[:10].expand(2, 10))


def test_equal_scores_everywhere_give_the_first_unseen_items(monkeypatch):
    monkeypatch.setattr(_search, "CELLS", 64)  # all items are candidates: too many to be multiplied at once
    seen = Log.of(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), 2, 100)
    ranked = rank((torch.zeros(2, 4), torch.ones(100, 4)), torch.arange(2), seen, None, at=[3])
    assert ranked.items.tolist() == [[1, 3, 4], [0, 2, 3]]


def test_scores_and_vectors_give_the_same_lists():
    seen, truth = apart()
    users, items = vectors(whole=True)
    one = rank((users, items), None, seen, truth)
    other = rank(lambda user: users[user] @ items.mT, None, seen, truth)
    assert torch.equal(one.items, other.items) and torch.equal(one.scores, other.scores)
    assert all(torch.equal(one.metrics[name], other.metrics[name]) for name in one.metrics)


def test_scores_are_not_changed():
    seen, _ = apart()
    held = torch.randn(40, 300)
    kept = held.clone()
    rank(lambda user: held[user[0] : user[0] + len(user)], torch.arange(40), seen, None, at=[5])
    assert torch.equal(held, kept)


def test_metrics_by_hand():
    # Lists 3 1 2 0 and 0 1 2 3 (item 3 of user 1 is seen); true: {1, 2} and {2}, user 2 has none.
    score = torch.tensor([[1.0, 3.0, 2.0, 4.0], [4.0, 3.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
    seen = Log.of(torch.tensor([1]), torch.tensor([3]), 3, 4)
    truth = Log.of(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), 3, 4)
    ranked = rank(lambda user: score[user], torch.arange(3), seen, truth, at=[2, 3])
    assert ranked.items.tolist() == [[3, 1, 2], [0, 1, 2], [3, 2, 1]]
    assert ranked.hits.tolist() == [[False, True, True], [False, False, True], [False, False, False]]
    third, second = 0.5, 0.6309298  # discounts 1 / log2(4) and 1 / log2(3)
    ideal = 1 + second
    expected = {
        "recall@2": [0.5, 0, torch.nan],
        "recall@3": [1, 1, torch.nan],
        "ndcg@2": [second / ideal, 0, torch.nan],
        "ndcg@3": [(second + third) / ideal, third, torch.nan],
        "mrr@2": [1 / 2, 0, torch.nan],
        "mrr@3": [1 / 2, 1 / 3, torch.nan],
        "hit@2": [1, 0, torch.nan],
        "hit@3": [1, 1, torch.nan],
        "precision@2": [1 / 2, 0, torch.nan],
        "precision@3": [2 / 3, 1 / 3, torch.nan],
    }
    assert ranked.metrics.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ranked.metrics[name], torch.tensor(value).float(), equal_nan=True, msg=name)


def test_metrics_are_those_of_dense_matrices():
    seen, truth = apart()
    users, items = vectors()
    score = users @ items.mT
    score[seen.user, seen.item] = -torch.inf
    relevant = torch.zeros(40, 300, dtype=torch.bool)
    relevant[truth.user, truth.item] = True
    found = rank((users, items), torch.arange(40), seen, truth, at=[10, 50]).metrics
    for k in (10, 50):
        torch.testing.assert_close(found[f"recall@{k}"], metrics.recall_at_k(score, relevant, k), equal_nan=True)
        torch.testing.assert_close(found[f"ndcg@{k}"], metrics.ndcg_at_k(score, relevant, k), equal_nan=True)


def test_a_perfect_model_scores_one():
    seen, truth = apart()
    score = torch.zeros(40, 300)
    score[truth.user, truth.item] = 1
    score[seen.user, seen.item] = 2  # hidden, however large
    found = rank(lambda user: score[user], None, seen, truth, at=[20]).metrics
    for name in ("recall@20", "ndcg@20", "mrr@20", "hit@20"):
        assert (found[name] == 1).all(), name


def test_users_without_true_items_are_left_out_unless_asked_for():
    seen, truth = apart()
    users = rank(vectors(), None, seen, truth).users
    assert users.tolist() == truth.user.unique().tolist()
    assert len(users) < 40


def test_more_than_the_catalogue_is_everything_unseen():
    seen, truth = apart()
    ranked = rank(vectors(), torch.arange(40), seen, truth, at=[10, 1000])
    assert ranked.items.shape == (40, 300)
    assert torch.equal((ranked.items < 0).sum(1), seen.user_degree)
    assert (ranked.scores[ranked.items < 0] == -torch.inf).all()
    found = ranked.metrics["recall@1000"]
    assert (found[~found.isnan()] == 1).all()
    true = truth.user_degree.float()
    expected = (true / 1000).masked_fill(true == 0, torch.nan)
    torch.testing.assert_close(ranked.metrics["precision@1000"], expected, equal_nan=True)


def test_a_user_who_has_seen_everything_gets_nothing():
    seen = Log.of(torch.zeros(5, dtype=torch.int64), torch.arange(5), 2, 5)
    users, items = torch.randn(2, 3), torch.randn(5, 3)
    for source in ((users, items), lambda user: users[user] @ items.mT):
        ranked = rank(source, torch.arange(2), seen, None, at=[3])
        assert ranked.items[0].tolist() == [-1, -1, -1]
        assert (ranked.items[1] >= 0).all()


def test_judging_lists_gives_the_metrics_of_ranking_them():
    seen, truth = apart()
    ranked = rank(vectors(), torch.arange(40), seen, truth)
    again = judged(ranked.items, ranked.users, truth, (10, 20, 50))
    for name, value in ranked.metrics.items():
        torch.testing.assert_close(again.metrics[name], value, equal_nan=True, rtol=0, atol=0)


def test_memory_does_not_grow_with_the_users(monkeypatch):
    """The rough product is made for a chunk of users, never for all."""
    shapes = []
    product = _search.Search._product

    def watched(self, rough_BD):
        made = product(self, rough_BD)
        shapes.append(made.shape)
        return made

    monkeypatch.setattr(_search.Search, "_product", watched)
    rank(vectors(), torch.arange(40), None, None, at=[5], chunk=16)
    assert [shape[1] for shape in shapes] == [16, 16, 8]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"at": []}, "at least 1"),
        ({"at": [0, 5]}, "at least 1"),
        ({"chunk": 0}, "at least 1"),
        ({"users": torch.tensor([], dtype=torch.int64)}, "no user"),
        ({"users": None, "truth": None}, "truth is None too"),
        ({"source": (torch.randn(40, 3), torch.randn(300, 4))}, "must be"),
        ({"source": (torch.randn(41, 3), torch.randn(300, 3))}, "41 users and 300 items for a log of 40"),
        ({"source": (torch.full((40, 3), torch.nan), torch.randn(300, 3))}, "40 of 40 vectors of users are not finite"),
        ({"source": lambda user: torch.full((len(user), 300), torch.nan)}, "NaN"),
        ({"source": lambda user: torch.zeros(len(user), 299)}, "scores are"),
        ({"seen": Log.of(torch.tensor([0]), torch.tensor([0]), 40, 299)}, "same counts"),
        ({"seen": apart()[1]}, "true pairs are seen pairs"),
    ],
)
def test_what_cannot_be_ranked_is_said(change, said):
    seen, truth = apart()
    asked = {"source": vectors(), "users": torch.arange(40), "seen": seen, "truth": truth} | change
    with pytest.raises(RankingError, match=said):
        rank(**asked)


@pytest.mark.parametrize(("rows", "columns", "k"), [(1, 1, 1), (3, 50, 50), (4, 1000, 3), (2, 333, 20)])
def test_top_is_a_stable_sort(rows, columns, k):
    score = torch.randint(0, 40, (rows, columns), generator=torch.Generator().manual_seed(0)).float()
    score[0, 0] = -torch.inf
    expected = score.sort(dim=1, descending=True, stable=True)
    found = top(score, k)
    assert torch.equal(found[0], expected.values[:, :k]) and torch.equal(found[1], expected.indices[:, :k])
    with pytest.raises(ValueError, match=f"1..{columns}"):
        top(score, columns + 1)
