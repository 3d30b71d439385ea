import math

import pytest
import torch

from models.metrics import (
    auc,
    calibration,
    calibration_error,
    gauc,
    logloss,
    ndcg_at_k,
    paired_bootstrap,
    recall_at_k,
    relative_improvement,
    reliability,
    roc_curve,
)


def sample(rows=400, seed=0, ties=True):
    draw = torch.Generator().manual_seed(seed)
    label = (torch.rand(rows, generator=draw) < 0.3).int()
    score = torch.randn(rows, generator=draw) + label
    return (score * 4).round() / 4 if ties else score, label


def pairs(score, label, weight=None):
    """The chance that a positive outranks a negative, from all pairs."""
    weight = torch.ones(len(score)) if weight is None else weight
    here, there = score[label == 1, None], score[None, label == 0]
    both = weight[label == 1, None] * weight[None, label == 0]
    return ((both * (here > there)).sum() + 0.5 * (both * (here == there)).sum()) / both.sum()


def test_auc_is_the_share_of_won_pairs():
    score, label = sample()
    assert auc(score, label).item() == pytest.approx(pairs(score, label).item())


def test_auc_knows_only_the_order():
    score, label = sample()
    for monotone in (score.double().exp(), 3 * score - 7, score.double().sigmoid()):
        assert auc(monotone, label) == auc(score, label)
    assert auc(-score, label).item() == pytest.approx(1 - auc(score, label).item())
    assert auc(torch.zeros(400), label) == 0.5


@pytest.mark.parametrize("label", [[1, 1, 1], [0, 0, 0], []])
def test_auc_of_one_class_is_nan(label):
    assert auc(torch.arange(float(len(label))), torch.tensor(label)).isnan()


def test_a_broken_score_gives_nan():
    score, label = sample()
    score[3] = torch.nan
    assert auc(score, label).isnan()
    assert gauc(score, label, torch.arange(400) // 20).isnan()
    assert logloss(score.sigmoid(), label).isnan()


def test_auc_refuses_sizes_that_differ():
    with pytest.raises(ValueError, match=r"score \(2,\), label \(3,\)"):
        auc(torch.zeros(2), torch.zeros(3))


def test_gauc_is_the_weighted_mean_of_user_aucs():
    score, label = sample()
    user = torch.randint(0, 37, (400,), generator=torch.Generator().manual_seed(5)) * 1000
    found = [(auc(score[user == u], label[user == u]), int((user == u).sum())) for u in user.unique()]
    kept = [(value, weight) for value, weight in found if not value.isnan()]
    expected = sum(value * weight for value, weight in kept) / sum(weight for _, weight in kept)
    assert gauc(score, label, user).item() == pytest.approx(expected.item())


def test_gauc_ignores_users_of_one_class():
    score, label, user = torch.tensor([1.0, 2, 9, 8]), torch.tensor([0, 1, 1, 1]), torch.tensor([1, 1, 2, 2])
    assert gauc(score, label, user) == 1
    assert gauc(score[2:], label[2:], user[2:]).isnan()


def test_logloss_by_hand_and_clipped():
    assert logloss(torch.tensor([0.25, 0.5]), torch.tensor([1, 0])).item() == pytest.approx(1.5 * math.log(2))
    assert logloss(torch.tensor([0.0]), torch.tensor([1])).item() == pytest.approx(-math.log(1e-7))


def test_calibration_by_hand():
    assert calibration(torch.tensor([0.5, 0.25]), torch.tensor([0, 1])).item() == 0.75
    assert calibration(torch.tensor([0.5]), torch.tensor([0])).item() == math.inf


def test_reliability_of_exact_probabilities_is_the_diagonal():
    draw = torch.Generator().manual_seed(1)
    probability = torch.rand(200_000, generator=draw)
    label = (torch.rand(200_000, generator=draw) < probability).int()
    found = reliability(probability, label, bins=10)
    assert found["rows"].sum() == 200_000
    assert found["rows"].min() > 19_000
    torch.testing.assert_close(found["predicted"], found["observed"], rtol=0, atol=0.01)
    assert calibration_error(probability, label, bins=10) < 0.005
    assert calibration_error(probability / 2, label, bins=10).item() == pytest.approx(0.25, abs=0.01)


def test_equal_predictions_share_a_bin():
    found = reliability(torch.full((9,), 0.3), torch.tensor([1, 0, 0] * 3), bins=5)
    assert found["rows"].tolist() == [9]
    assert calibration_error(torch.full((9,), 0.3), torch.tensor([1, 0, 0] * 3)).item() == pytest.approx(1 / 3 - 0.3)


def test_roc_curve_encloses_the_auc():
    score, label = sample(2000)
    false, true = roc_curve(score, label, points=5000)
    assert torch.trapezoid(true, false).item() == pytest.approx(auc(score, label).item())
    few = roc_curve(*sample(2000, ties=False), points=50)
    for rate in few:
        assert len(rate) == 50
        assert (rate[0], rate[-1]) == (0, 1)
        assert bool((rate.diff() >= 0).all())


def test_relative_improvement():
    assert relative_improvement(0.6, 0.55) == pytest.approx(1.0)
    assert relative_improvement(torch.tensor(0.55), 0.6).item() == pytest.approx(-0.5)


def test_weighted_auc_counts_a_row_as_often_as_its_weight(monkeypatch):
    score, label = sample(60)
    base, _ = sample(60, seed=9)
    weights = []
    poisson = torch.poisson
    monkeypatch.setattr(torch, "poisson", lambda *given: weights.append(poisson(*given)) or weights[-1])
    found = paired_bootstrap(score, base, label, samples=50)
    differences = torch.tensor([pairs(score, label, w) - pairs(base, label, w) for w in weights], dtype=torch.float64)
    low, high = differences.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)
    assert found.difference == pytest.approx((pairs(score, label) - pairs(base, label)).item(), abs=1e-6)


def test_bootstrap_width_matches_theory():
    # The mean of n differences d has standard error sd(d) / sqrt(n); 95 % of it lie within 1.96 of them.
    draw = torch.Generator().manual_seed(3)
    label = (torch.rand(5000, generator=draw) < 0.5).int()
    one, two = torch.rand(5000, generator=draw), torch.rand(5000, generator=draw)
    found = paired_bootstrap(one, two, label, metric="logloss", samples=400)
    loss = lambda p: -(label * p.clamp(1e-7).log() + (1 - label) * (1 - p).log())
    spread = (loss(one) - loss(two)).std().item() / 5000**0.5
    assert (found.high - found.low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.1)
    assert found.low < found.difference < found.high


def test_bootstrap_draws_whole_groups():
    score, label = sample(500, ties=False)
    base, _ = sample(500, seed=1, ties=False)
    rows = paired_bootstrap(score, base, label)
    twin = paired_bootstrap(score.repeat(4), base.repeat(4), label.repeat(4), group=torch.arange(500).repeat(4))
    assert twin == pytest.approx(rows)  # four copies of each row, drawn together, know no more than one
    blind = paired_bootstrap(score.repeat(4), base.repeat(4), label.repeat(4))
    assert (blind.high - blind.low) == pytest.approx((rows.high - rows.low) / 2, rel=0.2)


def test_bootstrap_is_seeded_and_paired():
    score, label = sample()
    base, _ = sample(seed=2)
    assert paired_bootstrap(score, base, label, seed=4) == paired_bootstrap(score, base, label, seed=4)
    assert paired_bootstrap(score, base, label, seed=4) != paired_bootstrap(score, base, label, seed=5)
    assert paired_bootstrap(score, score, label) == (0, 0, 0)


def test_bootstrap_of_one_class_is_nan_and_of_bad_input_an_error():
    score, label = sample()
    assert all(math.isnan(value) for value in paired_bootstrap(score, score, torch.zeros(400)))
    with pytest.raises(ValueError, match="auc or logloss"):
        paired_bootstrap(score, score, label, metric="gauc")
    with pytest.raises(ValueError, match="'base': 3"):
        paired_bootstrap(score, score[:3], label)
    with pytest.raises(ValueError, match="at least 2 samples"):
        paired_bootstrap(score, score, label, samples=1)


def test_rankings_by_hand():
    # Relevant: items 0 and 3; the two best are 1 and 0. DCG = 1 / log2(3), ideal 1 + 1 / log2(3).
    score, relevant = torch.tensor([[2.0, 3.0, 0.0, 1.0]]), torch.tensor([[True, False, False, True]])
    second = 1 / math.log2(3)
    assert recall_at_k(score, relevant, 2).item() == 0.5
    assert ndcg_at_k(score, relevant, 2).item() == pytest.approx(second / (1 + second))
    assert ndcg_at_k(score, torch.zeros(1, 4, dtype=torch.bool), 2).isnan()
    assert recall_at_k(score, torch.zeros(1, 4, dtype=torch.bool), 2).isnan()


@pytest.mark.parametrize("metric", [recall_at_k, ndcg_at_k])
@pytest.mark.parametrize("k", [0, 5])
def test_rankings_refuse_a_cut_off_outside_the_items(metric, k):
    with pytest.raises(ValueError, match=r"k must be in 1..4"):
        metric(torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), k)
