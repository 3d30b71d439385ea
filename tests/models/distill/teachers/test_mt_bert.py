"""MT-BERT by hand."""

import dataclasses
import math

import pytest
import torch

from models import build
from models.distill._signals import Shape, Signals
from tests.models.distill._draw import SMALL, signals

SHAPE = Shape(1, 2, 1, classes=2)
KL = math.log(4 / 3) / 2  # of (1/2, 1/2) from (3/4, 1/4)
SKEW, EVEN = [math.log(3), 0.0], [0.0, 0.0]


def seen(task, hard, state=((0.0, 0.0), (0.0, 0.0))) -> Signals:
    mask = torch.tensor([[True, False], [True, True]])
    hidden = torch.tensor(state)[:, None].repeat(1, 2, 1)
    hidden[0, 1] = 7.0 * hard[0]  # padding
    return Signals(mask, task=torch.tensor(task), hard=torch.tensor(hard), hidden=[hidden])


def test_by_hand():
    # Teacher 0 is wrong by 1 on row 0 and by 3 on row 1: 1/2 and 1/4 of their cross-entropies. Teacher 1 is right.
    student = seen([SKEW, EVEN], [0.5, 0.5])
    teachers = [seen([EVEN, EVEN], [1.0, 3.0]), seen([EVEN, EVEN], [0.0, 0.0])]
    rows = KL + math.log(2), math.log(2)
    expected = (rows[0] / 2 + rows[1] / 4) / 2 + (rows[0] + rows[1]) / 2
    method = build("distill.teachers", "mt_bert", SHAPE, [SHAPE, SHAPE])
    assert method(student, teachers).item() == pytest.approx(expected, rel=1e-5)
    assert method.hard_weight() == 1
    # all three real tokens, of two rows: (1, 1) is off by 1 in row 0, (0, 2) by 2 in half of row 1's features
    apart = dataclasses.replace(student, hidden=seen([SKEW, EVEN], [0.5, 0.5], ((1.0, 1.0), (0.0, 2.0))).hidden)
    states = (1 + 1 + 2 * 4) / 6
    assert method(apart, teachers).item() == pytest.approx(expected + 2 * states, rel=1e-5)
    half = build("distill.teachers", "mt_bert", SHAPE, [SHAPE, SHAPE], hidden=0.5)
    assert half(apart, teachers).item() == pytest.approx(expected + states, rel=1e-5)


def test_one_map_for_each_teacher_on_its_side():
    wide = Shape(4, 12, 2, classes=3)
    method = build("distill.teachers", "mt_bert", SMALL, [SMALL, wide]).double()
    assert [tuple(p.shape) for p in method.parameters()] == [(8, 8), (8, 12)]
    assert method.layers() == {"student": {"hidden": [0, 1]}, "teachers": [{"hidden": [0, 1]}, {"hidden": [1, 3]}]}
    method(signals(1), [signals(2), signals(3, wide)]).backward()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())
    bare = build("distill.teachers", "mt_bert", SMALL, [SMALL, wide], hidden=0)
    assert list(bare.parameters()) == [] and bare.needs == ("hard", "task")


def test_the_teachers_own_losses_are_needed():
    method = build("distill.teachers", "mt_bert", SMALL, [SMALL, SMALL]).double()
    with pytest.raises(ValueError, match="MTBERT weighs teachers by their own losses; a teacher's `hard` is missing"):
        method(signals(1), [signals(2), dataclasses.replace(signals(3), hard=None)])
