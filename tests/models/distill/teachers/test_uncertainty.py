"""Uncertainty by hand, and who teaches whom."""

import math

import pytest
import torch

from models import build
from models.distill._signals import Shape, Signals
from models.distill.teachers.uncertainty import hard_choice, soft_choice, uncertainty

SMALL, LARGE = Shape(1, 2, 1, classes=2), Shape(2, 2, 1, classes=2)
KL = math.log(4 / 3) / 2


def seen(*task) -> Signals:
    return Signals(torch.ones(len(task), 1, dtype=torch.bool), task=torch.tensor(task))


def make(teachers=(SMALL, LARGE), **settings):
    return build("distill.teachers", "uncertainty", SMALL, list(teachers), **settings)


def test_uncertainty_by_hand():
    # even: 1; sure: 0; (3/4, 1/4): (3/4 ln(4/3) + 1/4 ln 4) / ln 2
    found = uncertainty(torch.tensor([[1.0, 1.0], [99.0, 0.0], [math.log(3), 0.0]]))
    assert found.tolist() == pytest.approx([1, 0, (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)])


def test_samples_sorted_by_entropy_land_on_teachers_from_the_smallest():
    unsure = torch.tensor([0.1, 0.9, 0.4, 0.8, 0.2, 0.6])
    assert hard_choice(unsure, 3).int().argmax(1).tolist() == [2, 0, 1, 0, 2, 1]
    assert hard_choice(torch.rand(7), 3).sum(0).tolist() == [3, 2, 2]  # as even as can be
    assert hard_choice(torch.rand(2), 3).sum(1).tolist() == [1, 1]  # fewer rows than teachers
    task = torch.tensor([[float(k), 0.0] for k in range(8)])  # ever surer
    assert hard_choice(uncertainty(task), 4).int().argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_soft_weights_by_hand():
    # sure: 0, 1/3, 2/3; unsure: 2/3, 1/3, 0; in between: equal
    weight = soft_choice(torch.tensor([0.0, 1.0, 0.5]), 3)
    torch.testing.assert_close(weight, torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [1.0, 1.0, 1.0]]) / 3)


def test_the_loss_by_hand():
    # Row 0 (3/4, 1/4) is surer than row 1, even: the large teacher has row 0, the small one row 1.
    student = seen([math.log(3), 0.0], [0.0, 0.0])
    small, large = seen([9.0, 0.0], [0.0, 0.0]), seen([0.0, 0.0], [-9.0, 0.0])
    assert make()(student, [small, large]).item() == pytest.approx(0.5 * (KL + 0) / 2)
    assert make().hard_weight() == 0.5
    # soft: row 1 is all the small teacher's; row 0 as u and 1 - u say
    u = uncertainty(student.task)[0].item()
    sure = math.exp(-9) / (1 + math.exp(-9))
    apart = (1 - sure) * math.log((1 - sure) / 0.75) + sure * math.log(sure / 0.25)
    expected = 0.5 * (u * apart + (1 - u) * KL) / 2
    assert make(choice="soft")(student, [small, large]).item() == pytest.approx(expected, rel=1e-4)


def test_the_choice_has_no_gradient():
    task = torch.tensor([[1.0, 0.0], [0.2, 0.0]], requires_grad=True)
    student = Signals(torch.ones(2, 1, dtype=torch.bool), task=task)
    teachers = [seen([0.0, 1.0], [1.0, 0.0]), seen([2.0, 1.0], [0.0, 0.0])]
    make(choice="soft")(student, teachers).backward()
    weight = soft_choice(uncertainty(task), 2)
    # KL's gradient is p_s - p_t at temperature 1
    apart = torch.stack([task.detach().softmax(-1) - t.task.softmax(-1) for t in teachers])
    torch.testing.assert_close(task.grad, 0.5 * (weight.T[..., None] * apart).sum(0) / 2)


def test_bad_inputs():
    with pytest.raises(ValueError, match="chosen hard or soft, not 'random'"):
        make(choice="random")
    with pytest.raises(
        ValueError, match="from the smallest to the largest, but their layers and widths are 2 x 2, 1 x 2"
    ):
        make((LARGE, SMALL))
    with pytest.raises(ValueError, match="needs two; it has 0"):
        build("distill.teachers", "uncertainty", Shape(1, 2, 1), [Shape(1, 2, 1)] * 2)
    with pytest.raises(ValueError, match="temperature"):
        make(temperature=0)
