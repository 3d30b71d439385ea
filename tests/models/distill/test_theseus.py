"""Theseus: who runs when, and that only the student learns."""

import hashlib

import pytest
import torch

from models import build
from models.distill._hooks import edits_of, inside
from models.distill._signals import Shape, Signals
from tests.models.distill._pairs import new, rows, states

STUDENT, TEACHER = Shape(3, 16, 2), Shape(6, 16, 2)


def make(step: int = 0, total: int = 100, **settings):
    method = build("distill", "theseus", STUDENT, TEACHER, **settings)
    method.set_total(total)
    method.step.fill_(step)
    return method


def test_by_hand():
    # p = .3 + .7 * step / (.66 total): at 33 of 100 half of the way from .3 to 1 is done.
    assert make(0).probability == pytest.approx(0.3)
    assert make(33).probability == pytest.approx(0.65)
    assert make(65).probability == pytest.approx(0.3 + 0.7 * 65 / 66)
    assert [make(s).probability for s in (66, 80, 100)] == [1.0] * 3
    assert make(80).edits() == {}
    assert make().segments == [[0, 1], [2, 3], [4, 5]]
    assert build("distill", "theseus", Shape(5, 16, 2), Shape(12, 16, 2)).segments[3:] == [[9, 10], [11]]


def test_every_step_has_a_student_layer_and_a_resumed_run_draws_the_same():
    method, counts = make(total=2000, start=0.05), []
    for _ in range(300):
        chosen = method.drawn()
        assert any(chosen)
        assert method.edits() == {f"student.layer.{i}": method.segments[i] for i in range(3) if not chosen[i]}
        counts.append(sum(chosen))
        method.advance()
    assert {1, 2} <= set(counts)
    again = make(total=2000, start=0.05)
    again.load_state_dict(method.state_dict())
    assert again.drawn() == method.drawn()


def test_layers_run_as_often_as_p_says():
    method = make(total=10**6, start=0.6)
    share = 0.0
    for step in range(2000):
        method.step.fill_(step)
        share += sum(method.drawn()) / 6000
    # conditional on at least one of three: .6 / (1 - .4^3)
    assert share == pytest.approx(0.6 / (1 - 0.4**3), abs=0.02)


@pytest.mark.parametrize("name", ["bert", "gpt2", "ours"])
def test_only_the_layers_that_run_learn_and_the_teacher_stays(name, tmp_path):
    torch.manual_seed(0)
    student, teacher, batch = new(name, 3, tmp_path / "s"), new(name, 6, tmp_path / "t"), rows()
    teacher.requires_grad_(False)
    digest = lambda: hashlib.sha256(b"".join(x.numpy().tobytes() for x in teacher.state_dict().values())).hexdigest()
    before, method = digest(), make(total=10**6)
    while method.drawn() != [True, False, True]:
        method.advance()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    with inside(student, edits_of(method.edits(), "student"), lender=teacher):
        states(student, *batch).square().mean().backward()
    optimizer.step()
    layers = {"bert": lambda: student.encoder.layer, "gpt2": lambda: student.h}.get(
        name, lambda: student.encoder.layers
    )()
    learned = [any(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters()) for layer in layers]
    assert learned == [True, False, True]  # layer 0 learns through the teacher's layers 2 and 3
    assert digest() == before and all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", ["bert", "ours"])
def test_at_p_1_the_model_is_the_plain_student(name, tmp_path):
    student, teacher, batch = new(name, 3, tmp_path / "s"), new(name, 6, tmp_path / "t"), rows()
    plain = states(student, *batch)
    with inside(student, edits_of(make(66).edits(), "student"), lender=teacher):
        assert torch.equal(states(student, *batch), plain)


def test_nothing_is_compared():
    seen = Signals(torch.ones(2, 3, dtype=torch.bool), hard=torch.ones(2))
    method = make()
    assert method(seen, seen).item() == 0 and method.hard_weight() == 1


def test_bad_inputs():
    with pytest.raises(ValueError, match="student is 8 wide and the teacher 16"):
        build("distill", "theseus", Shape(3, 8, 2), TEACHER)
    with pytest.raises(ValueError, match="7 layers, more than the teacher's 6"):
        build("distill", "theseus", Shape(7, 16, 2), TEACHER)
    for wrong in ({"start": 0}, {"start": 1.2}, {"full": 0}):
        with pytest.raises(ValueError, match="start is a probability and full a share"):
            make(**wrong)
