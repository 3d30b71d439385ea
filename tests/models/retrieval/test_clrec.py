"""CLRec: the corrected softmax by hand, its queue, and what the correction does to popularity."""

import math

import pytest
import torch

from models import build
from models.recommend.retrieval._contrast import sampled_softmax
from models.recommend.retrieval._log import Log
from tests.models.retrieval._small_log import blocks, random_log, recall, run, unlike_after_resume


def make(log, seed=1, **settings):
    torch.manual_seed(seed)
    return build("recommend.retrieval", "clrec", log, **({"width": 8, "queue": 12} | settings))


def softmax(score, right, log_q=None):
    """-ln share of `right` where each of the three is a candidate once."""
    hit = torch.arange(3) == right
    extra = () if log_q is None else (log_q[None, right], log_q)
    return sampled_softmax(score[None, right], score[None], hit[None], *extra).item()


def test_by_hand():
    score, log_q = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.6, 0.3, 0.1]).log()
    for right, plain, corrected in zip(range(3), (0.66524, 0.24473, 0.09003), (0.39250, 0.28879, 0.31871), strict=True):
        assert math.exp(-softmax(score, right)) == pytest.approx(plain, abs=1e-5)
        assert math.exp(-softmax(score, right, log_q)) == pytest.approx(corrected, abs=1e-5)


def test_a_constant_factor_of_q_changes_nothing():
    score, q = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.6, 0.3, 0.1])
    assert softmax(score, 1, (7 * q).log()) == pytest.approx(softmax(score, 1, q.log()), rel=1e-5)
    uniform = torch.full((3,), 1 / 3).log()
    assert softmax(score, 1, uniform) == pytest.approx(softmax(score, 1), rel=1e-5)


def test_all_other_items_once_is_the_full_softmax():
    score = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    right = torch.tensor([0, 1, 2, 1, 0])
    hit = torch.arange(3) == right[:, None]
    found = sampled_softmax(score.gather(1, right[:, None])[:, 0], score, hit)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(score, right, reduction="none"))


def test_temperature_to_0_is_the_hardest_negative():
    score = torch.tensor([1.0, 1.3, 0.2])
    assert 1e-3 * softmax(score / 1e-3, 0) == pytest.approx(0.3, abs=1e-4)


@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_fixed_point_in_a_world_of_one_user(correction):
    """p(y | x) = softmax of s + b ln Q: s tends to ln p - (1 - b) ln Q, up to a constant."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    score = torch.zeros(3, requires_grad=True)
    optimizer, draw = torch.optim.Adam([score], 0.02), torch.Generator().manual_seed(0)
    mean = torch.zeros(3)
    for step in range(600):
        right = torch.multinomial(p, 128, True, generator=draw)
        # Drawn anew for each row: few candidates are enough only in the mean over many steps.
        candidate = torch.multinomial(q.expand(128, -1), 64, True, generator=draw)
        log_q = correction * q.log()
        hit = torch.zeros(128, 64, dtype=torch.bool)
        loss = sampled_softmax(score[right], score[candidate], hit, log_q[right], log_q[candidate]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean += score.detach() / 200 * (step >= 400)
    expected = p.log() - (1 - correction) * q.log()
    assert (mean - mean.mean() - expected + expected.mean()).abs().max() < 0.05


def test_twins_in_a_batch_are_no_negatives_of_each_other():
    log = random_log()
    model = make(log, queue=0).eval()
    user, item = torch.tensor([0, 1, 2]), torch.tensor([4, 4, 2])
    users, items = model.vectors()
    score = users[user] @ items[item].T / 0.2
    score[0, 1] = score[1, 0] = -torch.inf  # masked by hand
    expected = torch.nn.functional.cross_entropy(score, torch.arange(3))
    torch.testing.assert_close(model(user, item)[0], expected)


def test_the_queue_is_first_in_first_out():
    log = random_log()
    model = make(log, queue=5)
    items = model.vectors()[1].clone()
    step = lambda *ids: model(torch.zeros(len(ids), dtype=torch.int64), torch.tensor(ids))
    step(0, 1)
    assert sorted(model.kept_item.tolist()) == [-1, -1, -1, 0, 1]
    step(2, 3)
    step(4, 5)  # 0 leaves
    assert sorted(model.kept_item.tolist()) == [1, 2, 3, 4, 5]
    torch.testing.assert_close(model.kept, items[model.kept_item])
    step(0, 1, 2, 3, 4, 5, 6)  # more than fit: the last five stay
    assert sorted(model.kept_item.tolist()) == [2, 3, 4, 5, 6]
    assert not model.kept.requires_grad
    model.eval()
    step(7, 7)
    assert 7 not in model.kept_item


def test_a_batch_enters_after_its_own_loss():
    log = random_log()
    with_queue, without = make(log), make(log, queue=0)
    user, item = log.user[:6], log.item[:6]
    first = with_queue(user, item)[0]
    torch.testing.assert_close(first, without(user, item)[0])  # the queue was empty
    assert with_queue(user, item)[0] > first  # now it holds six more


def test_gradient_reaches_the_batch_only():
    log = random_log()
    model = make(log)
    model(torch.tensor([0]), torch.tensor([5]))  # 5 enters the queue
    loss, _ = model(torch.tensor([1, 2]), torch.tensor([3, 4]))
    loss.backward()
    touched = model.encoder.table.grad.abs().sum(-1).nonzero().squeeze(1).tolist()
    assert touched == [1, 2, log.users + 3, log.users + 4]


def test_without_correction_popularity_counts_less():
    log, _ = blocks()
    degree = log.item_degree.float()
    seen, gini = {}, {}
    for correction in (0.0, 1.0):
        model = make(log, correction=correction, queue=64, temperature=0.3)
        run(model, log, range(400), batch=64)
        best = model.score(torch.arange(log.users)).topk(3).indices
        seen[correction] = degree[best].log1p().mean().item()
        count = best.flatten().bincount(minlength=log.items).sort().values.double()
        rank = torch.arange(1, log.items + 1)
        gini[correction] = ((2 * rank - log.items - 1) * count).sum().item() / (log.items * count.sum().item())
    assert seen[0.0] < seen[1.0]
    assert gini[0.0] < gini[1.0]


def test_it_learns_blocks():
    train, held = blocks()
    model = make(train)
    run(model, train, range(200), batch=64)
    assert recall(model.score(torch.arange(train.users)), train, held) > 0.7


def test_a_resumed_run_is_the_unbroken_one():
    log = random_log()
    assert unlike_after_resume(lambda seed: make(log, seed, queue=40), log) == []


def test_items_without_pairs_have_a_finite_q():
    log = Log.of(torch.tensor([0]), torch.tensor([0]), 1, 3)
    assert torch.isfinite(make(log).log_q).all()


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="temperature > 0"):
        make(random_log(), temperature=0.0)
