import math

import pytest
import torch

from models.distill._maths import masked_mse, score_mse
from models.distill._relation_kl import relation_kl
from models.distill._relations import compared, divergence, relation


def draw(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()


def test_one_number_by_hand():
    """Scores (ln 3, 0) and (0, 0) in one head of width 1 at one query: KL((1/2, 1/2) || (3/4, 1/4)) twice."""
    x, y = torch.ones(1, 1, 2, 1), torch.tensor([math.log(3), 0.0]).view(1, 1, 2, 1)
    flat = torch.zeros(1, 1, 2, 1)
    expected = 2 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert relation_kl((x, y), (flat, flat), torch.ones(1, 2, dtype=torch.bool)).item() == pytest.approx(expected)


@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_divergence_of_whole_relations_with_its_gradients(causal):
    x, y = draw(3, 2, 4, 5).requires_grad_(), draw(3, 2, 4, 5, seed=1).requires_grad_()
    theirs = draw(3, 2, 4, 6, seed=2), draw(3, 2, 4, 6, seed=3)
    plain = divergence(relation(x, y, MASK, causal), relation(*theirs, MASK, causal), MASK)
    fused = compared((x, y), theirs, MASK, causal)
    assert fused.item() == pytest.approx(plain.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(fused, [x, y]), torch.autograd.grad(plain, [x, y]), strict=True):
        torch.testing.assert_close(a, b)


def test_one_tensor_on_both_ends_gets_both_gradients():
    x, t = draw(3, 2, 4, 5).requires_grad_(), draw(3, 2, 4, 5, seed=2)
    plain = divergence(relation(x, x, MASK), relation(t, t, MASK), MASK)
    gradients = [torch.autograd.grad(loss, x)[0] for loss in (compared((x, x), (t, t), MASK), plain)]
    torch.testing.assert_close(*gradients)


def test_autocast_does_not_round_it():
    x, t = draw(1, 2, 4, 8), draw(1, 2, 4, 8, seed=2)
    whole = relation_kl((x, x), (t, t), MASK[:1]).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert relation_kl((x, x), (t, t), MASK[:1]).item() == whole


def test_only_padding_gives_zero_and_no_gradient():
    x = draw(1, 2, 4, 5).requires_grad_()
    loss = compared((x, x), (x.detach() + 1, x.detach()), MASK[2:])
    loss.backward()
    assert loss.item() == 0 and not x.grad.any()


@pytest.mark.parametrize("mask", [MASK, torch.ones(3, 4, dtype=torch.bool)])
def test_scores_are_compared_where_both_ends_are_real(mask):
    s, t = draw(3, 2, 4, 4).requires_grad_(), draw(3, 2, 4, 4, seed=1)
    pairs = mask[:, :, None] & mask[:, None, :]
    plain = (s - t).square().permute(0, 2, 3, 1)[pairs].mean()
    assert score_mse(s, t, mask).item() == pytest.approx(plain.item())
    torch.testing.assert_close(torch.autograd.grad(score_mse(s, t, mask), s)[0], torch.autograd.grad(plain, s)[0])
    assert masked_mse(s[:, 0], t[:, 0], mask).item() == pytest.approx((s - t)[:, 0][mask].square().mean().item())
