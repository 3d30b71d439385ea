"""RecDCL: its equations by an independent reference, by hand, and what holds for every batch."""

import math

import pytest
import torch

from models import build
from models.recommend.retrieval._encoder import Encoder
from models.recommend.retrieval._features import cross_correlation, polynomial
from models.recommend.retrieval._log import Log
from tests.models.retrieval._small_log import blocks, random_log, recall, run, unlike_after_resume

SETTINGS = {"width": 8, "beta": 5.0, "tau": 0.1}


def make(log, seed=1, **settings):
    torch.manual_seed(seed)
    return build("recommend.retrieval", "recdcl", log, **(SETTINGS | settings))


def reference(model, log, user, item, w=1.0, gamma=0.01, alpha=0.2, beta=5.0, tau=0.1, layers=2, c=1e-7):
    """Equations 5 to 10 of arXiv:2401.15635 as they stand there, in float64, from the model's numbers."""
    state = {name: value.clone().double() for name, value in model.state_dict().items()}
    state = {name: v.requires_grad_() if "history" not in name else v for name, v in state.items()}
    size = log.users + log.items
    adjacency = torch.zeros(size, size, dtype=torch.float64)
    adjacency[log.user, log.item + log.users] = 1
    adjacency = adjacency + adjacency.T
    root = torch.diag(adjacency.sum(1).clamp(min=1) ** -0.5)
    layer = total = state["encoder.table"]
    for _ in range(layers):
        layer = root @ adjacency @ root @ layer
        total = total + layer
    total = total / (layers + 1)
    e_u, e_i = total[user], total[item + log.users]

    def bn(x, name=None):
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        return x if name is None else x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def z(e):
        x = e / e.norm(dim=1, keepdim=True)
        for k in range(2):
            x = bn(x @ state[f"projector.linears.{k}.weight"].T, f"projector.norms.{k}").clamp(min=0)
        return bn(x @ state["projector.linears.2.weight"].T)

    z_u, z_i = z(e_u), z(e_i)
    n, d = z_u.shape
    matrix = torch.einsum("nm,nk->mk", z_u, z_i) / n
    uibt = sum((matrix[m, k] - float(m == k)) ** 2 * (1 if m == k else gamma) for m in range(d) for k in range(d)) / d
    kernel = lambda z: torch.log(torch.mean((z.T @ z + c) ** 4))
    uuii = (kernel(z_u) + kernel(z_i)) / 2
    t_u = tau * state["user_history.last"][user] + (1 - tau) * e_u.detach()
    t_i = tau * state["item_history.last"][item] + (1 - tau) * e_i.detach()
    cos = lambda a, b: (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    h = lambda e: e @ state["predictor.weight"].T + state["predictor.bias"]
    bcl = -(cos(h(e_u), t_i).mean() + cos(h(e_i), t_u).mean()) / 2
    loss = w * uibt + alpha * uuii + beta * bcl
    names = [name for name, _ in model.named_parameters()]
    return loss, dict(zip(names, torch.autograd.grad(loss, [state[name] for name in names]), strict=True))


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [5, 30])  # fewer and more than the width: two forms of the off-diagonal
def test_loss_and_gradients_are_the_papers(layers, rows):
    log = random_log()
    model = make(log, encoder="lightgcn" if layers else "mf", layers=layers, width=12).double()
    model.projector.norms[0].bias.data.fill_(0.3)  # not at their start, where some gradients are 0
    place = torch.randint(0, len(log), (rows,), generator=torch.Generator().manual_seed(7))
    user, item = log.user[place], log.item[place]
    expected, gradients = reference(model, log, user, item, layers=layers)
    loss, _ = model(user, item)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, parameter in model.named_parameters():
        largest = gradients[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-5 * largest)


def test_the_kernel_over_several_blocks():
    z = torch.randn(16, 1100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    whole = ((z.T @ z + 1e-7) ** 4).mean().log()
    blockwise = polynomial(z, 1.0, 1e-7, 4)
    torch.testing.assert_close(blockwise, whole)
    torch.testing.assert_close(torch.autograd.grad(blockwise, z), torch.autograd.grad(whole, z))


WHITE = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # columns of a Hadamard matrix, N = 4


def test_by_hand():
    # C is the identity: nothing to correct. Z^T Z = 4 I: mean of (256, 0, 0, 256) is 128.
    assert cross_correlation(WHITE, WHITE, 1.0).item() == pytest.approx(0)
    assert polynomial(WHITE, 1.0, 1e-7, 4).item() == pytest.approx(math.log(128))
    # C = -I: (-1 - 1)^2 for each feature.
    assert cross_correlation(WHITE, -WHITE, 1.0).item() == pytest.approx(4)
    # Two equal columns: C is all ones, two off-diagonal ones over D = 2; (Z^T Z)^4 = 256 everywhere.
    twins = WHITE[:, [0, 0]]
    assert cross_correlation(twins, twins, 1.0).item() == pytest.approx(1)
    assert polynomial(twins, 1.0, 1e-7, 4).item() == pytest.approx(5.54518, abs=1e-5)
    # N < D / 2, the other form: two rows (1, -1) in five equal columns: C all ones, 20 off-diagonal over 5.
    row = torch.ones(1, 5)
    assert cross_correlation(torch.cat([row, -row]), torch.cat([row, -row]), 0.5).item() == pytest.approx(0.5 * 20 / 5)


def whitened(rows, width, seed=0):
    z = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z - z.mean(0)) / z.var(0, unbiased=False).sqrt()


@pytest.mark.parametrize(("rows", "width"), [(4, 30), (50, 6), (20, 20)])
def test_the_kernel_is_bounded(rows, width):
    k = polynomial(whitened(rows, width), 1.0, 0.0, 4).item()
    assert 4 * math.log(rows) - math.log(width) - 1e-9 <= k <= 4 * math.log(rows) + 1e-9


def test_dividing_by_n_shifts_the_kernel_and_leaves_its_gradient():
    z = whitened(10, 7).requires_grad_()
    plain, divided = polynomial(z, 1.0, 0.0, 4), polynomial(z, 0.1, 0.0, 4)
    assert divided.item() == pytest.approx(plain.item() - 4 * math.log(10))
    torch.testing.assert_close(torch.autograd.grad(plain, z), torch.autograd.grad(divided, z))


def test_the_kernel_does_not_overflow():
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    huge = (1e15 * z).requires_grad_()  # (Z^T Z)^4 is about 1e124
    k = polynomial(huge, 1.0, 0.0, 4)
    assert k.item() == pytest.approx(polynomial(z, 1.0, 0.0, 4).item() + 8 * math.log(1e15), rel=1e-5)
    assert torch.isfinite(torch.autograd.grad(k, huge)[0]).all()
    collapsed = torch.zeros(8, 5, requires_grad=True)
    assert polynomial(collapsed, 1.0, 1e-7, 4).item() == pytest.approx(4 * math.log(1e-7), rel=1e-5)


def test_feature_terms_do_not_see_order_scale_or_signs():
    u, i = whitened(9, 6), whitened(9, 6, seed=1)
    order, columns = torch.randperm(9), torch.randperm(6)
    signs = torch.tensor([1.0, -1, 1, -1, -1, 1], dtype=torch.float64)
    expected = cross_correlation(u, i, 0.3)
    torch.testing.assert_close(cross_correlation(u[order], i[order], 0.3), expected)
    torch.testing.assert_close(cross_correlation(u[:, columns], i[:, columns], 0.3), expected)
    for other in (u[order], u[:, columns], u * signs):
        torch.testing.assert_close(polynomial(other, 1.0, 0.0, 4), polynomial(u, 1.0, 0.0, 4))
    model = make(random_log())
    e_u, e_i = torch.randn(9, 8), torch.randn(9, 8)
    scaled = model.projector(e_u * (1 + torch.rand(9, 1)), e_i * 3)
    torch.testing.assert_close(scaled, model.projector(e_u, e_i))


def test_users_and_items_have_their_own_statistics():
    """Projected together or each alone with itself: the same numbers."""
    projector, e_u, e_i = make(random_log()).projector, torch.randn(9, 8), torch.randn(9, 8) + 2
    z_u, z_i = projector(e_u, e_i)
    torch.testing.assert_close(z_u, projector(e_u, e_u)[1])
    torch.testing.assert_close(z_i, projector(e_i, e_i)[0])


def batch(log, count=6):
    return log.user[:count], log.item[:count]


def test_bcl_is_minus_one_where_predictions_meet_targets():
    log = random_log()
    model = make(log, beta=1.0, w=0.0, alpha=0.0, tau=1.0)
    user, item = batch(log)
    assert -1 <= model(user, item)[0].item() <= 1
    with torch.no_grad():
        model.predictor.weight.copy_(torch.eye(8))
        model.predictor.bias.zero_()
        users, items = model.vectors()
        model.eval()
        # What the user's vector is compared with is the item's past, and the other way round.
        for u, i in zip(user, item, strict=True):
            model.item_history.last[i], model.user_history.last[u] = 3 * users[u], 2 * items[i]
            assert model(u[None], i[None])[0].item() == pytest.approx(-1, abs=1e-6)


def test_tau_0_ignores_the_past_and_tau_1_is_the_past():
    log = random_log()
    user, item = batch(log)
    first, second = make(log, tau=0.0).eval(), make(log, tau=0.0).eval()
    second.user_history.last.normal_()
    assert torch.equal(first(user, item)[0], second(user, item)[0])
    model = make(log, tau=1.0)
    before = model.vectors()[0][user].clone()
    model(user, item)
    with torch.no_grad():
        model.encoder.table.normal_()
    now = torch.randn(len(user), 8)
    torch.testing.assert_close(model.user_history.target(user, now, 1.0), before)


@pytest.mark.parametrize("keep", ["overwrite", "average"])
def test_the_history_of_the_batchs_nodes_changes_and_no_other(keep):
    log = random_log()
    model = make(log, history=keep, tau=0.25)
    user, item = torch.tensor([0, 3, 3]), torch.tensor([2, 2, 5])
    old = model.item_history.last.clone()
    now = model.vectors()[1]
    loss, _ = model(user, item)
    loss.backward()
    expected = old.clone()
    for node in (2, 5):
        expected[node] = now[node] if keep == "overwrite" else 0.25 * old[node] + 0.75 * now[node]
    torch.testing.assert_close(model.item_history.last, expected)
    assert not model.item_history.last.requires_grad
    model.eval()(user, item)
    torch.testing.assert_close(model.item_history.last, expected)


def test_a_resumed_run_is_the_unbroken_one():
    log = random_log()
    assert unlike_after_resume(lambda seed: make(log, seed), log) == []


def test_one_row_trains_by_the_batch_term_alone():
    log = random_log()
    model = make(log)
    loss, terms = model(log.user[:1], log.item[:1])
    loss.backward()
    assert list(terms) == ["bcl"]
    assert torch.isfinite(loss) and torch.isfinite(model.encoder.table.grad).all()


def test_layers_0_is_mf():
    log = random_log()
    user, item = batch(log)
    graph, plain = make(log, layers=0), make(log, encoder="mf")
    assert torch.equal(graph(user, item)[0], plain(user, item)[0])


def test_a_pair_of_its_own_and_nodes_alone():
    """User 0 and item 0 have only each other: A = 1 there. User 1 and item 1 have nobody."""
    log = Log.of(torch.tensor([0]), torch.tensor([0]), 2, 2)
    encoder = Encoder(log, 3, "lightgcn", 1)
    users, items = encoder(torch.tensor([0, 1]), torch.tensor([0, 1]))
    own_u, own_i = encoder.split(encoder.table.detach())
    torch.testing.assert_close(users[0], (own_u[0] + own_i[0]) / 2)
    torch.testing.assert_close(users[1], own_u[1] / 2)
    torch.testing.assert_close(items[0], users[0])
    torch.testing.assert_close(encoder.all(), (users, items))


def test_it_learns_blocks_and_alpha_keeps_features_apart():
    train, held = blocks()
    popular = recall(train.item_degree.float().expand(train.users, -1), train, held)
    apart, rank = {}, {}
    for alpha in (0.0, 2.0):
        model = make(train, width=16, alpha=alpha)
        run(model, train, range(100), batch=64)
        assert recall(model.score(torch.arange(train.users)), train, held) > max(5 * popular, 0.8)
        z_u, z_i = model.projector(*model.encoder(train.user, train.item))
        off = (z_u.mT @ z_i / len(z_u)).detach().fill_diagonal_(0)
        apart[alpha] = off.abs().mean().item()
        table = torch.cat(model.vectors())
        share = torch.linalg.svdvals(table - table.mean(0))
        share = share / share.sum()
        rank[alpha] = (-share * share.log()).sum().exp().item()  # effective rank
    assert apart[2.0] < 0.7 * apart[0.0]
    assert rank[2.0] > rank[0.0] + 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 1.5}, "share of the past"),
        ({"e": 3}, "even degree"),
        ({"a": 0.0}, "a > 0"),
        ({"encoder": "gat"}, "mf, lightgcn"),
        ({"history": "queue"}, "overwrite, average"),
        ({"width": 0}, "width >= 1"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        make(random_log(), **settings)
