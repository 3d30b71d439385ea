"""Layer maps and the shared losses, by hand."""

import math

import pytest
import torch

from models.distill._maths import (
    check_temperature,
    kl,
    layer_map,
    masked_mean,
    masked_mse,
    soft_cross_entropy,
    token_kl,
)


@pytest.mark.parametrize(
    ("student", "teacher", "ends"),
    [
        (6, 12, [2, 4, 6, 8, 10, 12]),
        (4, 12, [3, 6, 9, 12]),
        (3, 12, [4, 8, 12]),
        (6, 24, [4, 8, 12, 16, 20, 24]),
        (5, 12, [3, 6, 9, 11, 12]),
        (5, 24, [5, 10, 15, 20, 24]),
        (3, 3, [1, 2, 3]),
    ],
)
def test_layer_maps(student, teacher, ends):
    assert layer_map(student, teacher) == ends


def test_a_student_deeper_than_its_teacher_is_refused():
    with pytest.raises(ValueError, match="4 layers, more than the teacher's 3"):
        layer_map(4, 3)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), math.inf, "0.5", None])
def test_a_temperature_that_cannot_divide_is_refused(temperature):
    with pytest.raises(ValueError, match="above 0"):
        check_temperature(temperature)


def test_divergences_by_hand():
    even, skew = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])  # (1/2, 1/2) and (3/4, 1/4)
    assert kl(skew, even).item() == pytest.approx(math.log(4 / 3) / 2)
    assert kl(2 * skew, even, 2.0).item() == pytest.approx(4 * math.log(4 / 3) / 2)
    entropy = math.log(2)
    assert soft_cross_entropy(skew, even).item() == pytest.approx(math.log(4 / 3) / 2 + entropy)


def test_the_soft_gradient_keeps_its_size_with_the_temperature():
    student, teacher = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0)).double()
    norms = []
    for temperature in (50.0, 100.0):
        z = student.clone().requires_grad_()
        kl(z, teacher, temperature).mean().backward()
        norms.append(z.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_padding_never_counts():
    mask = torch.tensor([[True, True, False]])
    x, y = torch.tensor([[[1.0], [2.0], [99.0]]]), torch.tensor([[[0.0], [0.0], [0.0]]])
    assert masked_mse(x, y, mask).item() == 2.5
    assert masked_mean(x[..., 0], mask).item() == 1.5
    assert masked_mse(x, y, mask & False).item() == 0
    assert token_kl(x.expand(1, 3, 4), y.expand(1, 3, 4), mask & False).item() == 0
