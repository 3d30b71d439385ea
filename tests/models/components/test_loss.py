import math

import pytest
import torch
from torch.nn import functional as F

from models.components import _loss
from models.components._loss import head_loss

TOKENS, WIDTH, VOCABULARY = 23, 6, 11


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(_loss, "CHUNK", 4 * VOCABULARY)  # four tokens at a time


def case(ignored=(), dtype=torch.float64):
    torch.manual_seed(0)
    hidden, weight, bias = (
        torch.randn(size, dtype=dtype, requires_grad=True) for size in ((TOKENS, WIDTH), (VOCABULARY, WIDTH), (11,))
    )
    label = torch.randint(VOCABULARY, (TOKENS,))
    label[list(ignored)] = -100
    return hidden, weight, bias, label


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


def plain(hidden, weight, bias, label, smoothing, z):
    logits = F.linear(hidden, weight, bias)
    loss = F.cross_entropy(logits, label, reduction="sum", label_smoothing=smoothing)
    return loss + z * logits.logsumexp(-1)[label != -100].square().sum()


def test_by_hand():
    # Logits (ln 3, 0): p = 3/4, 1/4. Label 1 costs ln 4; the gradient in the logits is (3/4, -3/4).
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[math.log(3)], [0.0]], requires_grad=True)
    loss = head_loss(hidden, weight, torch.tensor([1]), z=1.0)
    assert loss.nll.item() == pytest.approx(math.log(4))
    assert loss.z.item() == pytest.approx(math.log(4) ** 2)
    assert loss.total.item() == pytest.approx(math.log(4) + math.log(4) ** 2)
    assert loss.correct.item() == 0
    (grad,) = gradients(head_loss(hidden, weight, torch.tensor([1])).total, weight)
    torch.testing.assert_close(grad, torch.tensor([[0.75], [-0.75]]))


# Ignored: none; here and there; the first chunk; the last two; both ends; all.
@pytest.mark.parametrize("ignored", [(), (1, 7, 8), range(4), range(15, 23), (0, 22), range(23)])
@pytest.mark.parametrize(("smoothing", "z"), [(0.0, 0.0), (0.1, 0.0), (0.2, 1e-2)])
def test_equals_the_plain_loss_and_all_its_gradients(ignored, smoothing, z):
    hidden, weight, bias, label = case(ignored, torch.float32)
    loss = head_loss(hidden, weight, label, bias, smoothing, z)
    wanted = plain(*(x.double() for x in (hidden, weight, bias)), label, smoothing, z)
    torch.testing.assert_close(loss.total.double(), wanted, rtol=1e-6, atol=0)
    ours = gradients(loss.total / 3, hidden, weight, bias)
    for got, expected in zip(ours, gradients(wanted / 3, hidden, weight, bias), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_in_double_precision_to_the_last_digits():
    hidden, weight, bias, label = case((3,))
    check = lambda *inputs: head_loss(*inputs[:2], label, inputs[2], 0.1, 1e-2).total
    assert torch.autograd.gradcheck(check, (hidden, weight, bias))


def test_counts_right_answers():
    hidden, weight, bias, label = case((3, 4))
    right = (F.linear(hidden, weight, bias).argmax(-1) == label).sum()
    assert head_loss(hidden, weight, label, bias).correct == right


def test_a_very_wrong_answer_stays_finite():
    hidden, weight = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[500.0], [0.0]])
    loss = head_loss(hidden, weight, torch.tensor([1])).total
    assert loss.item() == 500
    assert gradients(loss, hidden)[0].item() == 500


def test_never_more_than_a_chunk_of_logits(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "softmax", lambda x, *_, out: seen.append(len(x)) or out.copy_(x.softmax(-1)))
    hidden, weight, bias, label = case()
    head_loss(hidden, weight, label, bias)
    assert seen == [4, 4, 4, 4, 4, 3]


def test_without_gradients_none_are_made():
    hidden, weight, bias, label = case()
    with torch.no_grad():
        loss = head_loss(hidden, weight, label, bias).total
    assert not loss.requires_grad
    frozen = head_loss(hidden, weight.detach(), label, None).total
    assert gradients(frozen, hidden)[0].shape == hidden.shape


def test_backward_twice_gives_the_same():
    hidden, weight, bias, label = case()
    loss = head_loss(hidden, weight, label, bias).total * 0.5
    first = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, weight)[0])


def test_bfloat16_products_float32_sums():
    hidden, weight, bias, label = case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(hidden, weight, label, bias)
    assert loss.total.dtype == torch.float32
    exact = plain(hidden, weight, bias, label, 0.0, 0.0)
    torch.testing.assert_close(loss.total, exact, rtol=1e-2, atol=0)
    ours = gradients(loss.total, hidden, weight, bias)
    for got, expected in zip(ours, gradients(exact, hidden, weight, bias), strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).norm() < 2e-2 * expected.norm()
