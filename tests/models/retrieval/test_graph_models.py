"""Graph propagation, LightGCN, BPR, popularity, item-kNN and ALS against numbers by hand and dense algebra."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import build
from models.recommend.retrieval._adam import LazyAdam
from models.recommend.retrieval._graph import Graph
from models.recommend.retrieval._log import Log, LogError


def log() -> Log:
    """User 0: items 0 and 1; user 1: item 1; user 2 and item 2 are alone."""
    return Log.of(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), users=3, items=3)


def drawn(seed: int = 0, users: int = 9, items: int = 7, pairs: int = 25) -> Log:
    draw = torch.Generator().manual_seed(seed)
    user = torch.randint(0, users - 1, (pairs,), generator=draw)
    return Log.of(user, torch.randint(0, items - 1, (pairs,), generator=draw), users, items)


def dense(pairs: Log) -> torch.Tensor:
    """A^ as the equation has it, float64."""
    a = torch.zeros(pairs.users + pairs.items, pairs.users + pairs.items, dtype=torch.float64)
    a[pairs.user, pairs.users + pairs.item] = 1
    a += a.mT.clone()
    root = a.sum(1).rsqrt().nan_to_num(posinf=0)
    return root[:, None] * a * root


def mean_of(a: torch.Tensor, layers: int) -> torch.Tensor:
    return sum(torch.linalg.matrix_power(a, power) for power in range(layers + 1)) / (layers + 1)


def test_one_edge_of_the_graph_by_hand():
    # User 0 has degree 2, items 0 and 1 have 1 and 2: its neighbours weigh 1/sqrt(2) and 1/2.
    table = torch.eye(6)
    out = Graph(log()).mean(table, layers=1)
    torch.testing.assert_close(out[0], torch.tensor([1, 0, 0, 2**-0.5, 0.5, 0]) / 2)
    torch.testing.assert_close(out[2], torch.tensor([0, 0, 1.0, 0, 0, 0]) / 2)  # alone: its own vector and a zero


def test_a_user_and_an_item_of_degree_one_weigh_one():
    out = Graph(Log.of(torch.tensor([0]), torch.tensor([0]))).mean(torch.tensor([[1.0], [3.0]]), layers=1)
    assert out.tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
def test_propagation_and_its_gradient_are_those_of_the_dense_matrix(layers):
    pairs = drawn()
    graph, draw = Graph(pairs).double(), torch.Generator().manual_seed(2)
    table = torch.randn(graph.nodes, 5, dtype=torch.float64, generator=draw, requires_grad=True)
    slope = torch.randn(graph.nodes, 5, dtype=torch.float64, generator=draw)
    mean = mean_of(dense(pairs), layers)
    out = graph.mean(table, layers)
    torch.testing.assert_close(out, mean @ table, rtol=1e-6, atol=1e-7)  # degrees are held in float32
    (grad,) = torch.autograd.grad(out, table, slope)
    torch.testing.assert_close(grad, mean.mT @ slope, rtol=1e-6, atol=1e-7)


def test_rows_are_rows_of_the_mean_also_their_gradient():
    graph = Graph(drawn())
    node = torch.tensor([3, 0, 3, 12])
    table = torch.randn(graph.nodes, 4, requires_grad=True)
    slopes = torch.randn(4, 4), torch.randn(4, 4)
    picked = graph.rows(table, 2, node)
    plain = F.embedding(node, graph.mean(table, 2)), F.embedding(node, table)
    for one, other in zip(picked, plain, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(
        torch.autograd.grad(picked, table, slopes)[0], torch.autograd.grad(plain, table, slopes)[0]
    )


def test_a_graph_without_edges_is_refused():
    with pytest.raises(LogError, match="at least one pair"):
        Graph(Log.of(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 3, 3))


def test_lightgcn_without_layers_is_matrix_factorisation():
    batch = {"user": torch.tensor([0, 1]), "item": torch.tensor([1, 1]), "negative": torch.tensor([[2, 2], [0, 2]])}
    gcn = build("recommend.retrieval", "lightgcn", log(), width=4, layers=0, negatives=2, penalty=0.3)
    mf = build("recommend.retrieval", "bpr", log(), width=4, negatives=2, penalty=0.3)
    with torch.no_grad():
        mf.user.copy_(gcn.table[:3])
        mf.item.copy_(gcn.table[3:])
    torch.testing.assert_close(gcn(**batch)[0], mf(**batch)[0])


def test_lightgcn_is_the_equation_with_its_gradient():
    pairs = drawn(1)
    model = build("recommend.retrieval", "lightgcn", pairs, width=4, layers=3, negatives=2, penalty=0.2).double()
    user, item, negative = torch.tensor([0, 5]), torch.tensor([1, 4]), torch.tensor([[2, 3], [0, 0]])
    table = model.table.detach().clone().requires_grad_()
    mean = mean_of(dense(pairs), 3) @ table
    u, i, j = mean[user], mean[9 + item], mean[9 + negative]
    gap = (u * i).sum(-1, keepdim=True) - (j * u[:, None]).sum(-1)
    norm = table[user].square().sum() + table[9 + item].square().sum() + table[9 + negative].square().sum() / 2
    expected = -gap.sigmoid().log().mean() + 0.1 * norm / 2
    loss, _ = model(user, item, negative)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    (grad,) = torch.autograd.grad(expected, table)
    torch.testing.assert_close(model.table.grad, grad, rtol=1e-5, atol=1e-8)


def bpr(**settings):
    model = build("recommend.retrieval", "bpr", log(), width=2, **settings)
    with torch.no_grad():
        model.user.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0], [5.0, 5.0]]))
        model.item.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    return model


def test_bpr_by_hand():
    # user 0 with item 1 against item 0: 2 - 1 = 1; the squares sum to 5 + 1 + 1.
    loss, terms = bpr(penalty=0.1)(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0]]))
    assert terms["bpr"].item() == pytest.approx(math.log1p(math.exp(-1)))
    assert terms["penalty"].item() == pytest.approx(0.05 * 7)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)) + 0.35)


def stepped(update: str, steps: int, decay: float = 0.0):
    model = bpr(update=update)
    optimizer = model.optimizer(0.01, decay)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        user, item = torch.randint(0, 2, (6,), generator=draw), torch.randint(0, 2, (6,), generator=draw)
        optimizer.zero_grad()
        model(user, item, torch.randint(0, 3, (6, 2), generator=draw))[0].backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_from_rows_is_adam(decay):
    rows, dense = stepped("rows", 9, decay), stepped("dense", 9, decay)
    torch.testing.assert_close(rows.user, dense.user)
    torch.testing.assert_close(rows.item, dense.item)
    assert torch.equal(rows.user[2], torch.tensor([5.0, 5.0])) == (decay == 0)  # user 2 has no pair


def test_lazy_adam_is_sparse_adam():
    found = {}
    for kind in (LazyAdam, lambda parameters, rate: torch.optim.SparseAdam(list(parameters), rate)):
        model, draw = bpr(update="lazy"), torch.Generator().manual_seed(0)
        optimizer = kind(model.parameters(), 0.01)
        for _ in range(6):
            user, item = torch.randint(0, 2, (4,), generator=draw), torch.randint(0, 3, (4,), generator=draw)
            optimizer.zero_grad()
            model(user, item, item[:, None].flip(0))[0].backward()
            optimizer.step()
        found[kind is LazyAdam] = torch.cat([model.user, model.item]).detach()
    torch.testing.assert_close(found[True], found[False], rtol=1e-6, atol=1e-7)


def test_momentum_moves_an_untouched_row_and_lazy_adam_does_not():
    moved = {}
    for update in ("rows", "lazy"):
        model = bpr(update=update)
        optimizer = model.optimizer(0.01)
        for user in (0, 1):
            optimizer.zero_grad()
            model(torch.tensor([user]), torch.tensor([1]), torch.tensor([[0]]))[0].backward()
            optimizer.step()
            moved[update, user] = model.user[0].detach().clone()
    torch.testing.assert_close(moved["rows", 0], moved["lazy", 0])  # the first step of a row is the same
    assert torch.equal(moved["lazy", 1], moved["lazy", 0])
    assert (moved["rows", 1] - moved["rows", 0]).abs().min() > 1e-3


def test_updates_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="weight_decay"):
        bpr(update="lazy").optimizer(0.01, 0.1)
    with pytest.raises(ValueError, match="rows, dense, lazy"):
        bpr(update="sparse")


def test_popularity_ranks_by_users():
    model = build("recommend.retrieval", "popularity", log())
    assert model.score(torch.tensor([2])).tolist() == [[1.0, 2.0, 0.0]]


def test_item_knn_by_hand():
    # Items 0, 1, 2 have users {0, 1}, {0, 1, 2}, {2}: s_01 = 2 / (sqrt(6) + 1), s_12 = 1 / (sqrt(3) + 1).
    pairs = Log.of(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 1, 2]), users=4, items=4)
    near, far = 2 / (math.sqrt(6) + 1), 1 / (math.sqrt(3) + 1)
    score = build("recommend.retrieval", "item_knn", pairs, shrink=1.0).score(torch.tensor([2, 3]))
    torch.testing.assert_close(score, torch.tensor([[near, far, far, 0], [0, 0, 0, 0]]))
    one = build("recommend.retrieval", "item_knn", pairs, neighbours=1, shrink=1.0).score(torch.tensor([2]))
    torch.testing.assert_close(one, torch.tensor([[near, 0, far, 0]]))  # of item 1 only item 0 is near enough


def test_item_knn_does_not_depend_on_how_many_cells_fit(monkeypatch):
    from models.recommend.retrieval import item_knn

    whole = build("recommend.retrieval", "item_knn", drawn(3, 30, 20, 150), neighbours=4).score(torch.arange(30))
    monkeypatch.setattr(item_knn, "CELLS", 50)
    parts = build("recommend.retrieval", "item_knn", drawn(3, 30, 20, 150), neighbours=4).score(torch.arange(30))
    assert torch.equal(whole, parts)


def test_als_folds_a_user_in_by_hand():
    # One factor, y = (1, 2), alpha 3, lambda 1, item 1 seen: (1 + 4 + 2 * 4 + 1) x = 3 * 2.
    pairs = Log.of(torch.tensor([0]), torch.tensor([0]), users=1, items=2)
    model = build("recommend.retrieval", "als", pairs, width=1, alpha=3.0, regularization=1.0)
    model.set(torch.zeros(1, 1), torch.tensor([[1.0], [2.0]]))
    new = Log.of(torch.tensor([0]), torch.tensor([1]), users=2, items=2)
    assert model.fold_in(new).flatten().tolist() == pytest.approx([6 / 14, 0.0])


def test_als_refuses_what_does_not_fit():
    model = build("recommend.retrieval", "als", log(), width=2)
    with pytest.raises(ValueError, match="user factors must be finite"):
        model.set(torch.full((3, 2), torch.nan), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="the log has 2 items, the model 3"):
        model.fold_in(Log.of(torch.tensor([0]), torch.tensor([1])))
    with pytest.raises(ValueError, match="alpha"):
        build("recommend.retrieval", "als", log(), alpha=0.5)
