"""DGKD by hand, and how often teachers are dropped."""

import math

import pytest
import torch

from models import build
from models.distill._signals import Shape, Signals

SHAPE = Shape(1, 2, 1, classes=2)
ONE = torch.ones(1, 1, dtype=torch.bool)
KL = math.log(4 / 3) / 2


def make(count=2, **settings):
    return build("distill.teachers", "dgkd", SHAPE, [SHAPE] * count, **settings)


def test_by_hand():
    # tau^2 CE at tau = 10: logits ten times as large give (3/4, 1/4) against (1/2, 1/2), and against itself
    student = Signals(ONE, task=torch.tensor([[10 * math.log(3), 0.0]]))
    teachers = [Signals(ONE, task=torch.zeros(1, 2)), student]
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    whole = make(keep=1.0)
    assert whole(student, teachers).item() == pytest.approx(0.5 * 100 * (KL + math.log(2) + entropy), rel=1e-5)
    assert whole.hard_weight() == 0.5
    assert make(keep=0.0)(student, teachers).item() == 0
    assert make(1, keep=1.0)(student, teachers[:1]).item() == pytest.approx(50 * (KL + math.log(2)), rel=1e-5)


def test_who_is_kept_is_drawn_each_step_and_again_after_a_resume():
    method, kept = make(3), []
    for _ in range(1000):
        kept.append(method.kept())
        method.advance()
    share = torch.tensor(kept).double().mean(0)
    assert share.tolist() == pytest.approx([0.75] * 3, abs=0.05)
    assert len({tuple(k) for k in kept}) == 8  # independently of each other
    again = make(3)
    again.load_state_dict(method.state_dict())
    assert again.kept() == method.kept()


def test_only_those_kept_teach():
    method = make()
    while method.kept() != [False, True]:
        method.advance()
    student = Signals(ONE, task=torch.tensor([[10 * math.log(3), 0.0]]))
    wrong, even = Signals(ONE, task=torch.full((1, 2), float("nan"))), Signals(ONE, task=torch.zeros(1, 2))
    assert method(student, [wrong, even]).item() == pytest.approx(50 * (KL + math.log(2)), rel=1e-5)


def test_bad_inputs():
    with pytest.raises(ValueError, match="keep is a share, from 0 to 1; got 1.5"):
        make(keep=1.5)
