"""MiniLM by hand, against a double loop, and under what must not change it."""

import math

import pytest
import torch

from models import build
from models.distill._signals import Shape, Signals
from tests.models.distill._draw import SMALL, by_hand, signals


def test_by_hand():
    # One head, two tokens. The teacher attends (1/2, 1/2), the student (3/4, 1/4): KL = 1/2 ln(4/3).
    same = {"mask": torch.ones(1, 2, dtype=torch.bool), "value": by_hand(1.0, 2.0)}
    teacher = Signals(query=by_hand(0.0, 0.0), key=by_hand(0.0, 0.0), **same)
    student = Signals(query=by_hand(math.log(3), math.log(3)), key=by_hand(1.0, 0.0), **same)
    shape = Shape(layers=1, width=1, heads=1)
    loss = build("distill", "minilm", shape, shape)(student, teacher).item()
    assert loss == pytest.approx(math.log(4 / 3) / 2)
    # what a published implementation computes instead: softmax of probabilities
    wrong = torch.tensor([0.5, 0.5]).softmax(0) * (
        torch.tensor([0.5, 0.5]).log_softmax(0) - torch.tensor([0.75, 0.25]).log_softmax(0)
    )
    assert wrong.sum().item() < loss / 4


def test_heads_that_share_keys_by_hand():
    # Two heads, one key. Head 1 as above: KL = 1/2 ln(4/3). Head 2 asks nothing on either side: 0. Their mean is half.
    mask, ask, none = torch.ones(1, 2, dtype=torch.bool), by_hand(math.log(3), math.log(3))[0], by_hand(0.0, 0.0)[0]
    value, shape = by_hand(1.0, 2.0), Shape(layers=1, width=2, heads=2)
    student = Signals(mask, query=[torch.cat([ask, none], 1)], key=by_hand(1.0, 0.0), value=value)
    teacher = Signals(mask, query=[torch.cat([none, none], 1)], key=by_hand(0.0, 0.0), value=value)
    method = build("distill", "minilm", shape, shape)
    assert method(student, teacher).item() == pytest.approx(math.log(4 / 3) / 4)
    apart = Signals(mask, query=teacher.query, key=teacher.key, value=[torch.cat([value[0], value[0]], 1)])
    assert method(student, apart).item() == pytest.approx(math.log(4 / 3) / 4)  # each head has its own, which are equal


def test_equals_a_double_loop_over_heads_and_places():
    student, teacher = signals(1), signals(2)
    total, count = 0.0, 0
    for row, length in enumerate((5, 3)):
        count += length
        for left, right in (("query", "key"), ("value", "value")):
            for head in range(2):
                for place in range(length):
                    p, q = (
                        torch.stack(
                            [
                                getattr(s, left)[1][row, head, place] @ getattr(s, right)[1][row, head, key] / 4**0.5
                                for key in range(length)
                            ]
                        ).softmax(0)
                        for s in (teacher, student)
                    )
                    total += (p * (p / q).log()).sum().item() / 2
    loss = build("distill", "minilm", SMALL, SMALL)(student, teacher).item()
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_heads_that_differ_are_refused():
    with pytest.raises(ValueError, match="2 heads and the teacher 4; .* use minilmv2"):
        build("distill", "minilm", SMALL, Shape(layers=2, width=8, heads=4))
    with pytest.raises(ValueError, match="layer 3 .* layers 1 to 2"):
        build("distill", "minilm", SMALL, SMALL, layer=3)


def test_a_shared_rotation_of_queries_and_keys_changes_nothing():
    student, teacher = signals(1), signals(2)
    method = build("distill", "minilm", SMALL, SMALL)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double())[0]
    turned = Signals(
        student.mask, query=[x @ turn for x in student.query], key=[x @ turn for x in student.key], value=student.value
    )
    torch.testing.assert_close(method(turned, teacher), method(student, teacher))


def test_causal_relations_never_see_a_later_place():
    method = build("distill", "minilm", SMALL, SMALL, causal=True)
    student, teacher = signals(1, lengths=(4,)), signals(2, lengths=(4,))
    student.value[-1].requires_grad_()
    first = Signals(student.mask & (torch.arange(4) < 1), query=student.query, key=student.key, value=student.value)
    assert method(first, teacher).item() == 0  # the first place sees itself alone


def test_only_the_layer_asked_for_is_collected():
    wants = build("distill", "minilm", SMALL, Shape(layers=6, width=8, heads=2), layer=4).layers()
    assert wants["teacher"] == {"query": [3], "key": [3], "value": [3]}
    assert wants["student"] == {"query": [1], "key": [1], "value": [1]}
