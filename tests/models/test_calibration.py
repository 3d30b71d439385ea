"""Probabilities from scores: by hand, against the definition, and on bad rows."""

import math

import pytest
import torch
from safetensors.torch import load, save

from models.recommend._calibration import Isotonic, Platt


def test_platt_by_hand():
    """Two groups: 1 of 4 at x = 0, 3 of 4 at x = 1. logit(1/4) = -ln 3, logit(3/4) = ln 3."""
    x = torch.tensor([0.0] * 4 + [1.0] * 4)[:, None]
    fitted = Platt(1).fit(x, torch.tensor([1, 0, 0, 0, 1, 1, 1, 0]))
    assert fitted.intercept.item() == pytest.approx(-math.log(3), abs=1e-5)
    assert fitted.slope.item() == pytest.approx(2 * math.log(3), abs=1e-5)
    assert fitted(torch.tensor([[0.0], [1.0]])).tolist() == pytest.approx([0.25, 0.75], abs=1e-6)


def rows(count: int = 500):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=draw) * torch.tensor([1.0, 10.0, 0.1]) + 5
    chance = torch.sigmoid(x[:, 0] - 0.2 * x[:, 1] - 6)
    return x, (torch.rand(count, generator=draw) < chance).float()


def test_the_mean_prediction_is_the_mean_label():
    x, label = rows()
    fitted = Platt(3).fit(x, label)
    assert fitted(x).mean().item() == pytest.approx(label.mean().item(), rel=1e-6)
    for column in x.T:  # and so is its product with every feature: the likelihood's gradient is 0
        assert ((fitted(x) - label) * column).mean().abs() < 1e-6


def test_a_slope_of_the_wrong_sign_becomes_0():
    x, label = rows()
    assert Platt(3).fit(x, label).slope[1] < 0
    signed = Platt(3, [0, 1, 0]).fit(x, label)
    assert signed.slope[1] == 0
    without = Platt(2).fit(x[:, [0, 2]], label)
    torch.testing.assert_close(signed(x), without(x[:, [0, 2]]), rtol=1e-5, atol=1e-7)


def test_separated_classes_and_constant_features_stay_finite():
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    fitted = Platt(2).fit(x, torch.tensor([0, 0, 1, 1]))
    chance = fitted(x)
    assert torch.isfinite(fitted.slope).all()
    assert (chance[:2] < 0.01).all() and (chance[2:] > 0.99).all()


def test_isotonic_by_hand():
    """Labels 0 1 0 1 by rising score: the middle two violate, and become 1/2 and 1/2."""
    fitted = Isotonic().fit(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 1, 0, 1]))
    assert fitted(torch.tensor([1.0, 2.0, 2.5, 3.0, 4.0])).tolist() == [0, 0.5, 0.5, 0.5, 1]
    assert fitted(torch.tensor([-9.0, 9.0, 1.5])).tolist() == [0, 1, 0.25]  # ends hold; a line in between


def test_isotonic_is_the_best_rising_function():
    """Against the min-max formula of isotonic regression, ties included."""
    draw = torch.Generator().manual_seed(1)
    score = torch.randint(0, 12, (60,), generator=draw).float()
    label = (torch.rand(60, generator=draw) < score / 12).double()
    levels = score.unique()
    mean = lambda low, high: label[(score >= levels[low]) & (score <= levels[high])].mean()
    count = len(levels)
    expected = [max(min(mean(a, b) for b in range(k, count)) for a in range(k + 1)) for k in range(count)]
    found = Isotonic().fit(score, label)(levels)
    torch.testing.assert_close(found, torch.stack(expected))
    assert Isotonic().fit(score, label)(score).mean().item() == pytest.approx(label.mean().item())


def test_states_survive():
    x, label = rows()
    platt, isotonic = Platt(3).fit(x, label), Isotonic().fit(x[:, 0], label)
    for fitted, fresh, data in ((platt, Platt(3), x), (isotonic, Isotonic(), x[:, 0])):
        fresh.load_state_dict(load(save(fitted.state_dict())))
        assert torch.equal(fresh(data), fitted(data))


def test_one_score_is_one_value():
    assert Isotonic().fit(torch.ones(4), torch.tensor([0, 0, 0, 1]))(torch.tensor([0.0, 1.0])).tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("x", "label"),
    [([[1.0], [2.0]], [1, 1]), ([[1.0], [math.nan]], [0, 1]), ([[1.0, 2.0], [3.0, 4.0]], [0, 1]), ([], [])],
)
def test_rows_that_cannot_be_fitted(x, label):
    with pytest.raises(ValueError, match="calibration needs finite rows"):
        Platt(1).fit(torch.tensor(x).reshape(len(label), -1) if label else torch.zeros(0, 1), torch.tensor(label))
    with pytest.raises(ValueError, match="isotonic calibration needs"):
        Isotonic().fit(torch.tensor([math.inf, 1.0]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="a sign of -1, 0 or 1"):
        Platt(1, [2])
