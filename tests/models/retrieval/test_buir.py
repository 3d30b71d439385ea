"""BUIR: its loss, its target table, its score and its dropped pairs."""

import pytest
import torch
import torch.nn.functional as F

from models import build
from models.recommend.retrieval._log import Log
from tests.models.retrieval._small_log import blocks, random_log, recall, run, unlike_after_resume


def make(log, seed=1, **settings):
    torch.manual_seed(seed)
    return build("recommend.retrieval", "buir", log, **({"width": 8} | settings))


def test_by_hand():
    """One user at (1, 0), one item at (0, 1); q swaps coordinates and doubles: both are predicted, or opposite."""
    log = Log.of(torch.tensor([0]), torch.tensor([0]))
    model = make(log, width=2)
    with torch.no_grad():
        model.encoder.table.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
        model.target.copy_(model.encoder.table)
        model.predictor.weight.copy_(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
        model.predictor.bias.zero_()
    assert model(log.user, log.item)[0].item() == pytest.approx(0, abs=1e-6)
    model.target.neg_()  # opposite: 4 for each of the two
    assert model(log.user, log.item)[0].item() == pytest.approx(8)
    # q(u) . v + u . q(v) = (0, 6) . (0, 0.5) + (3, 0) . (1, 0)
    assert model.score(torch.tensor([0])).item() == pytest.approx(6)


@pytest.mark.parametrize("encoder", ["mf", "lightgcn"])
def test_the_loss_is_the_papers_and_targets_get_no_gradient(encoder):
    log = random_log()
    model = make(log, encoder=encoder).double()
    model.target.normal_()
    user, item = log.user[:6], log.item[:6]
    users, items = model.encoder.all()
    target_u, target_v = model.encoder(user, item, table=model.target)
    unit = lambda x: F.normalize(x, dim=-1)
    expected = (2 - 2 * (unit(model.predictor(users[user])) * unit(target_v)).sum(-1)).mean()
    expected = expected + (2 - 2 * (unit(model.predictor(items[item])) * unit(target_u)).sum(-1)).mean()
    loss, _ = model(user, item)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert not model.target.requires_grad and "target" not in dict(model.named_parameters())


def test_the_target_follows_slowly():
    log = random_log()
    model = make(log, momentum=0.75)
    old = model.target.clone()
    run(model, log, range(1))
    torch.testing.assert_close(model.target, 0.75 * old + 0.25 * model.encoder.table.detach())


def test_dropped_pairs_are_dropped_both_ways():
    log = random_log()
    model = make(log, encoder="lightgcn", layers=1, drop=0.5).double()
    kept = torch.rand(len(log), generator=torch.Generator().manual_seed(0)) < 0.5
    users, items = torch.arange(log.users), torch.arange(log.items)
    table = model.encoder.table.detach()
    size = log.users + log.items
    adjacency = torch.zeros(size, size, dtype=torch.float64)
    adjacency[log.user, log.item + log.users] = 1
    root = (adjacency + adjacency.T).sum(1).clamp(min=1) ** -0.5
    adjacency[log.user[~kept], log.item[~kept] + log.users] = 0
    whole = (table + root[:, None] * ((adjacency + adjacency.T) @ (root[:, None] * table))) / 2
    for part, ids in zip(model.encoder.split(whole), (users, items), strict=True):
        count = len(ids)
        at = [ids, torch.zeros(count, dtype=torch.int64)]
        made = model.encoder(*(at if ids is users else at[::-1]), kept.double())[0 if ids is users else 1]
        torch.testing.assert_close(made, part, rtol=1e-6, atol=1e-8)


def test_two_views_differ_and_evaluation_drops_nothing():
    log = random_log()
    model = make(log, encoder="lightgcn", drop=0.9)
    first, second = model._views()
    assert not torch.equal(first, second)
    assert not torch.equal(model._views()[0], first)  # the next step's
    model.eval()
    assert torch.equal(model(log.user, log.item)[0], model(log.user, log.item)[0])
    assert model._views() == (None, None)


@pytest.mark.parametrize("settings", [{}, {"encoder": "lightgcn", "drop": 0.5}])
def test_a_resumed_run_is_the_unbroken_one(settings):
    log = random_log()
    assert unlike_after_resume(lambda seed: make(log, seed, **settings), log) == []


def test_it_learns_blocks():
    train, held = blocks()
    model = make(train, width=16, encoder="lightgcn", layers=2, momentum=0.9, drop=0.2)
    run(model, train, range(200), batch=64)
    assert recall(model.score(torch.arange(train.users)), train, held) > 0.7


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="set drop=0"):
        make(random_log(), drop=0.2)
    with pytest.raises(ValueError, match="momentum must be"):
        make(random_log(), momentum=1.2)


def test_a_new_user_of_one_item_predicts_as_a_user_who_stands_there():
    log = random_log()
    model = make(log).eval()
    with torch.no_grad():
        model.encoder.table[3] = model.encoder.table[log.users + 2]  # user 3 stands where item 2 does
        model.encoder.table[4] = model.encoder.table[log.users + torch.tensor([2, 5])].mean(0)
    new = Log.of(torch.tensor([0, 1, 1]), torch.tensor([2, 2, 5]), 3, log.items)
    torch.testing.assert_close(model.score_histories(new)[:2], model.score(torch.tensor([3, 4])))
    assert model.fold_in(new)[2].count_nonzero() == 0
