"""MiniLMv2 by hand, and under what must not change it."""

import math

import pytest
import torch

from models import build
from models.distill._relations import divergence, relation, split
from models.distill._signals import Shape, Signals
from tests.models.distill._draw import SMALL, by_hand, signals


def test_by_hand():
    # Width 1, one relation head, two tokens. Teacher's values (0, 0): (1/2, 1/2) at both places. Student's (s, 0) with
    # s^2 = ln 3: place 1 sees (3/4, 1/4), place 2 (1/2, 1/2). KL = 1/2 ln(4/3) and 0: their mean is 1/4 ln(4/3).
    shape, zero = Shape(layers=1, width=1, heads=1), by_hand(0.0, 0.0)
    mask = torch.ones(1, 2, dtype=torch.bool)
    teacher = Signals(mask, query=zero, key=zero, value=zero)
    student = Signals(mask, query=zero, key=zero, value=by_hand(math.log(3) ** 0.5, 0.0))
    method = build("distill", "minilmv2", shape, shape, relation_heads=1)
    assert method(student, teacher).item() == pytest.approx(math.log(4 / 3) / 4)


def test_with_as_many_relation_heads_the_value_term_is_minilms():
    student, teacher = signals(1), signals(2)
    values = [relation(s.value[-1], s.value[-1], s.mask) for s in (student, teacher)]
    cut = [relation(split(s.value[-1], 2), split(s.value[-1], 2), s.mask) for s in (student, teacher)]
    assert torch.equal(divergence(*cut, student.mask), divergence(*values, student.mask))


def test_keys_that_heads_share_may_be_too_few_to_cut():
    student = signals(1)
    shared = Signals(student.mask, query=student.query, key=[x[:, :1] for x in student.key], value=student.value)
    build("distill", "minilmv2", SMALL, SMALL, relation_heads=4)(shared, shared)  # 4 features
    with pytest.raises(ValueError, match="8 relation heads do not divide the 4 features of 1 heads"):
        build("distill", "minilmv2", SMALL, SMALL, relation_heads=8)(shared, shared)


def test_an_orthogonal_map_within_a_relation_head_changes_nothing():
    student, teacher = signals(1), signals(2)
    method = build("distill", "minilmv2", SMALL, SMALL, relation_heads=2)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double())[0]
    turned = Signals(student.mask, query=[x @ turn for x in student.query], key=student.key, value=student.value)
    torch.testing.assert_close(method(turned, teacher), method(student, teacher))


def test_cutting_heads_keeps_places_apart():
    x = torch.arange(24.0).view(1, 2, 3, 4)
    cut = split(x, 4)
    assert cut.shape == (1, 4, 3, 2)
    assert cut[0, 0, 1].tolist() == [4.0, 5.0]  # place 1 of head 0: its first two features
    assert cut[0, 3, 1].tolist() == [18.0, 19.0]  # place 1 of head 1: its last two


def test_models_of_other_heads_width_and_depth_meet():
    wide, narrow = Shape(layers=4, width=768, heads=12), Shape(layers=2, width=384, heads=6)
    method = build("distill", "minilmv2", narrow, wide)
    assert torch.isfinite(method(signals(1, narrow), signals(2, wide)))
    with pytest.raises(ValueError, match="48 relation heads do not divide the student's width 312"):
        build("distill", "minilmv2", Shape(layers=2, width=312, heads=12), wide)
