import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.recommend._inputs import Inputs
from models.recommend._layers import (
    Block,
    Experts,
    Joint,
    ParallelLinear,
    Towers,
    bce_per_task,
    gate,
    half_square,
    mix,
    per_layer,
    relu_dropout,
    reverse_gradient,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_joint_is_separate_linear_layers():
    inputs = Inputs([4, 6], 3, 5)
    joint = Joint(inputs.width, [7, 2], plain=4)
    x = torch.tensor([[1, 5], [3, 0], [0, 2]]), torch.rand(3, 3)
    first, second, plain = joint(inputs, *x)
    e = inputs(*x)
    torch.testing.assert_close(first, F.linear(e, joint.rows(0), joint.bias[:7]))
    torch.testing.assert_close(second, F.linear(e, joint.rows(1), joint.bias[7:]))
    torch.testing.assert_close(plain, F.linear(e, joint.rows(2)))
    assert joint.bias.shape == (9,)
    assert joint.weight.abs().max() <= inputs.width**-0.5


def test_parallel_linear_by_hand():
    layer = ParallelLinear(2, 1, 1)
    layer.weight.data[:] = torch.tensor([2.0, -3.0]).view(2, 1, 1)
    layer.bias.data[:] = torch.tensor([1.0, 0.5]).view(2, 1, 1)
    assert layer(torch.tensor([[[1.0], [10.0]]])).flatten().tolist() == [3.0, -29.5]


@pytest.mark.parametrize("norm", [False, True])
def test_experts_are_separate_perceptrons(norm):
    experts = Experts(3, (4, 6), norm=norm).train()
    first = [torch.randn(16, 4) for _ in range(3)]
    shown = experts(first)
    assert shown.shape == (16, 3, 6)
    linear = experts.layers[1]
    for i in range(3):
        alone = Experts(1, (4, 6), norm=norm).train()
        alone.layers[1].weight.data.copy_(linear.weight[i : i + 1])
        alone.layers[1].bias.data.copy_(linear.bias[i : i + 1])
        torch.testing.assert_close(alone([first[i]])[:, 0], shown[:, i])


@pytest.mark.parametrize("mode", [True, False])
def test_side_by_side_is_one_after_another(mode):
    """The way of a GPU and the way of a CPU: same values, gradients and running statistics."""
    one, other = (Experts(3, (4, 6), norm=True).train(mode) for _ in range(2))
    other.load_state_dict(one.state_dict())
    first = torch.randn(3, 16, 4)
    torch.testing.assert_close(one(first.unbind()), other.layers(first.transpose(0, 1)))
    one(first.unbind()).square().sum().backward()
    other.layers(first.transpose(0, 1)).square().sum().backward()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)  # sums over rows, in another order
    for mine, theirs in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_towers_end_in_one_linear_logit():
    towers = Towers(2, 3, ())
    z = torch.randn(5, 2, 3)
    expected = (z * towers.layers[0].weight[..., 0]).sum(-1) + towers.layers[0].bias[:, 0, 0]
    torch.testing.assert_close(towers(z), expected)


def test_block_normalises_each_feature_by_itself():
    block = Block(2, 3, dropout=0.0, norm=True).train()
    x = torch.randn(50, 2, 3) * 10 + 4
    shown = block(x)
    expected = F.relu((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt())
    torch.testing.assert_close(shown, expected)
    block.eval()
    torch.testing.assert_close(block(x)[:1], block(x[:1]))


def test_one_row_uses_and_keeps_the_running_statistics():
    block = Block(1, 2, dropout=0.0, norm=True).train()
    block(torch.randn(50, 1, 2) * 3 + 1)
    mean = block.norm.running_mean.clone()
    alone = torch.tensor([[[2.0, -1.0]]])
    trained = block(alone)
    assert torch.equal(block.norm.running_mean, mean)
    assert torch.equal(trained, block.eval()(alone))


def test_dropout_only_while_training():
    block = Block(1, 1000, dropout=0.25, norm=False)
    x = torch.ones(1, 1, 1000)
    dropped = block.train()(x)
    assert 200 < (dropped == 0).sum() < 300
    assert dropped.max().item() == pytest.approx(4 / 3)
    assert torch.equal(block.eval()(x), x)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_relu_dropout_keeps_the_mean_and_draws_evenly(rate):
    x = torch.randn(1000, 1001, requires_grad=True)  # no multiple of four: the last word is cut
    y = relu_dropout(x, rate)
    kept = y > 0
    assert not kept[x <= 0].any()
    share = kept.sum().item() / (x > 0).sum().item()
    assert share == pytest.approx(1 - rate, abs=4 * (rate * (1 - rate) / 5e5) ** 0.5)
    torch.testing.assert_close(y[kept], x[kept] / (1 - rate), rtol=1e-4, atol=0)
    quarters = relu_dropout(torch.ones(250_000, 4), rate).gt(0).float().mean(0)  # the four draws of a random number
    torch.testing.assert_close(quarters, torch.full((4,), 1 - rate), rtol=0, atol=0.004)
    gradient = torch.randn_like(x)
    y.backward(gradient)
    torch.testing.assert_close(x.grad, torch.where(kept, gradient / (1 - rate), 0), rtol=1e-4, atol=0)


def test_relu_dropout_follows_the_seed():
    x = torch.ones(8, 100)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(relu_dropout(x, 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_dropout_rates_fit_the_layers():
    assert per_layer(0.2, (8, 4)) == [0.2, 0.2]
    assert per_layer((0.1, 0.3), (8, 4)) == [0.1, 0.3]
    for wrong in ((0.1,), 1.0, (0.1, -0.1)):
        with pytest.raises(ValueError, match="dropout must be"):
            per_layer(wrong, (8, 4))


def test_gates_are_distributions_and_mix_is_linear():
    weights = gate(torch.randn(7, 2 * 3) * 5, 2)
    assert weights.shape == (7, 2, 3)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(7, 2))
    f = torch.randn(7, 3, 4)
    torch.testing.assert_close(mix(weights, 3 * f), 3 * mix(weights, f))
    torch.testing.assert_close(mix(weights, f)[0, 1], sum(weights[0, 1, i] * f[0, i] for i in range(3)))


def test_masked_bce_by_hand():
    # Task 0: labels 1, 0 at logits 0, ln 3: -ln 1/2 and -ln 1/4, mean 3/2 ln 2. Task 1: only the second row, ln 2.
    logit = torch.tensor([[0.0, 9.0], [math.log(3), 0.0]], requires_grad=True)
    loss = bce_per_task(logit, torch.tensor([[1.0, torch.nan], [0.0, 1.0]]))
    assert loss.tolist() == pytest.approx([1.5 * math.log(2), math.log(2)])
    loss.sum().backward()
    assert logit.grad[0, 1] == 0
    assert logit.grad.flatten().tolist() == pytest.approx([-0.25, 0, 0.375, -0.5])


def test_a_task_without_labels_gives_zero():
    logit = torch.tensor([[3.0]], requires_grad=True)
    loss = bce_per_task(logit, torch.tensor([[torch.nan]]))
    loss.sum().backward()
    assert loss.item() == 0
    assert logit.grad.item() == 0


def test_half_square_by_hand_and_in_float32():
    weight = torch.full((300, 300), 3e-3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        total = half_square(weight, torch.tensor([3.0, 4.0]))
    total.backward()
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(0.5 * 90_000 * 9e-6 + 12.5, rel=1e-5)
    torch.testing.assert_close(weight.grad, weight.detach())
    zero = torch.zeros(3, requires_grad=True)
    half_square(zero).backward()
    assert zero.grad.tolist() == [0, 0, 0]


def test_reversed_gradient_is_minus_alpha():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse_gradient(x, torch.tensor(0.25))
    assert torch.equal(y, x)
    (y * torch.tensor([4.0, 8.0])).sum().backward()
    assert x.grad.tolist() == [-1.0, -2.0]


def test_reversed_gradient_trains_the_reader_forward():
    reader = nn.Linear(1, 1, bias=False)
    reader(reverse_gradient(torch.ones(1, 1), torch.tensor(1.0))).sum().backward()
    assert reader.weight.grad.item() == 1
