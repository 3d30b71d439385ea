"""DirectAU: its two terms by hand and against all pairs one by one."""

import math

import pytest
import torch

from models import build
from models.recommend.retrieval._contrast import alignment, uniformity
from tests.models.retrieval._small_log import blocks, random_log, recall, run, unlike_after_resume


def make(log, seed=1, **settings):
    torch.manual_seed(seed)
    return build("recommend.retrieval", "directau", log, **({"width": 8} | settings))


def test_by_hand():
    # (1, 0) and (0, 1) are sqrt 2 apart; (1, 0) and (-1, 0) are 2 apart.
    right, up, left = torch.eye(2)[0], torch.eye(2)[1], -torch.eye(2)[0]
    assert alignment(torch.stack([right, right]), torch.stack([up, right])).item() == pytest.approx(1)
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert uniformity(torch.stack([right, up, left])).item() == pytest.approx(expected)


def test_uniformity_is_that_of_all_pairs():
    x = torch.nn.functional.normalize(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).double(), dim=-1)
    pairs = [(-2 * (x[a] - x[b]).square().sum()).exp() for a in range(30) for b in range(a)]
    torch.testing.assert_close(uniformity(x), torch.stack(pairs).mean().log())


def test_the_loss_is_the_papers():
    log = random_log()
    model = make(log, gamma=0.7).double()
    user, item = log.user[:7], log.item[:7]
    e_u, e_i = (table[ids] for table, ids in zip(model.vectors(), (user, item), strict=True))
    u, v = e_u / e_u.norm(dim=1, keepdim=True), e_i / e_i.norm(dim=1, keepdim=True)
    spread = lambda x: torch.pdist(x).square().mul(-2).exp().mean().log()
    expected = (u - v).square().sum(1).mean() + 0.7 * (spread(u) + spread(v)) / 2
    loss, terms = model(user, item)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["align"] + terms["uniform"], loss)


def test_one_row_has_nothing_to_spread():
    log = random_log()
    model = make(log)
    loss, terms = model(log.user[:1], log.item[:1])
    loss.backward()
    assert terms["uniform"] == 0
    assert torch.isfinite(model.encoder.table.grad).all() and model.encoder.table.grad.any()


def test_gamma_0_collapses_and_gamma_1_does_not():
    log = blocks()[0]
    spread = {}
    for gamma in (0.0, 1.0):
        model = make(log, gamma=gamma)
        run(model, log, range(200), batch=64)
        spread[gamma] = uniformity(torch.nn.functional.normalize(model.vectors()[1], dim=-1)).item()
    assert spread[1.0] < spread[0.0] - 0.5


@pytest.mark.parametrize("encoder", ["mf", "lightgcn"])
def test_it_learns_blocks(encoder):
    train, held = blocks()
    model = make(train, encoder=encoder, gamma=0.2)
    run(model, train, range(200), batch=64)
    assert recall(model.score(torch.arange(train.users)), train, held) > 0.9


def test_a_resumed_run_is_the_unbroken_one():
    log = random_log()
    assert unlike_after_resume(lambda seed: make(log, seed), log) == []
