import math

import pytest
import torch
from torch import nn

from models.fit import fit


class Square(nn.Module):
    """loss = mean (w x)^2."""

    def __init__(self, start: float = 1.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start))

    def forward(self, x):
        loss = (self.w * x).square().mean()
        return loss, {"square": loss, "w": self.w}


def test_two_steps_by_hand():
    # dL/dw = 2 w x^2. From w = 1 with x = 1 and rate 1/4: w = 1/2, then 1/4; the losses are 1 and 1/4.
    model = Square()
    terms = list(fit(model, [{"x": torch.ones(1)}] * 2, torch.optim.SGD(model.parameters(), lr=0.25)))
    assert [term["loss"].item() for term in terms] == [1.0, 0.25]
    assert model.w.item() == 0.25
    assert not any(value.requires_grad for term in terms for value in term.values())
    assert set(terms[0]) == {"loss", "square", "w"}


def test_the_caller_may_stop_between_updates():
    model, seen = Square(), []
    endless = iter(lambda: {"x": torch.ones(1)}, None)
    for terms in fit(model, endless, torch.optim.SGD(model.parameters(), lr=0.25)):
        seen.append(terms["loss"].item())
        if len(seen) == 3:
            break
    assert model.w.item() == 0.125


def test_gradients_left_over_do_not_count():
    model = Square()
    model.w.grad = torch.tensor(100.0)
    list(fit(model, [{"x": torch.ones(1)}], torch.optim.SGD(model.parameters(), lr=0.25)))
    assert model.w.item() == 0.5


def test_clip_limits_the_whole_gradient():
    model = Square()
    list(fit(model, [{"x": torch.full((1,), 10.0)}], torch.optim.SGD(model.parameters(), lr=0.25), clip=1.0))
    assert model.w.item() == pytest.approx(0.75)


def test_scheduler_follows_each_update():
    model = Square()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    halved = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    list(fit(model, [{"x": torch.ones(1)}] * 2, optimizer, scheduler=halved))
    assert optimizer.param_groups[0]["lr"] == 0.0625
    assert model.w.item() == 0.5 - 0.125 * 2 * 0.5


def test_precision_reaches_the_products_and_not_the_weights():
    class Shows(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            product = self.linear(x)
            self.seen = product.dtype
            return product.float().square().sum(), {}

    model = Shows()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    list(fit(model, [{"x": torch.ones(1, 2)}], optimizer, precision=torch.bfloat16))
    assert model.seen == torch.bfloat16
    assert model.linear.weight.dtype == torch.float32
    list(fit(model, [{"x": torch.ones(1, 2)}], optimizer))
    assert model.seen == torch.float32


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_loss_stops_before_it_reaches_the_weights(bad):
    model = Square()
    batches = [{"x": torch.ones(1)}, {"x": torch.tensor([bad])}]
    steps = fit(model, batches, torch.optim.SGD(model.parameters(), lr=0.25))
    next(steps)
    with pytest.raises(FloatingPointError, match=rf"the loss is {bad} at step 2 \(loss {bad}, square {bad}, w 0.5\)"):
        next(steps)
    assert model.w.item() == 0.5


def test_a_broken_gradient_stops_too_when_clipped():
    class Root(Square):
        def forward(self, x):
            loss = (self.w * x).sum().sqrt()
            return loss, {"root": loss}

    model = Root()
    with pytest.raises(FloatingPointError, match="the gradient is .* at step 1"):
        list(fit(model, [{"x": torch.zeros(1)}], torch.optim.SGD(model.parameters(), lr=0.1), clip=1.0))
    assert model.w.item() == 1


class Counted(nn.Module):
    """loss = sum over real places of (w x)^2 / their number; with dropout on x."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.dropout = nn.Dropout(dropout)

    def counts(self, x, mask):
        return {"square": mask.sum().float()}

    def forward(self, x, mask, counts=None):
        counts = counts or self.counts(x, mask)
        loss = ((self.dropout(x) @ self.w).square() * mask).sum() / counts["square"]
        return loss, {"square": loss, "real": mask.sum() / counts["square"]}


def whole_batch(padding: int = 0) -> dict:
    torch.manual_seed(3)
    x, mask = torch.randn(6, 4, 3), torch.rand(6, 4) > 0.4
    pad = lambda value, fill: torch.cat([value, torch.full((6, padding, *value.shape[2:]), fill)], 1)
    return {"x": pad(x, 9.0), "mask": pad(mask, False)}


def cut(batch: dict, *sizes: int) -> list[dict]:
    parts = [value.split(sizes) for value in batch.values()]
    return [dict(zip(batch, values, strict=True)) for values in zip(*parts, strict=True)]


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("sizes", [(6,), (1, 5), (2, 2, 2), (1,) * 6])
def test_any_cut_is_the_whole_batch(sizes, padding):
    """Means of means would not be: the micro-batches have 1 to 20 real places."""
    expected = Counted()
    loss, _ = expected(**whole_batch())
    loss.backward()
    model = Counted()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    (terms,) = list(fit(model, [cut(whole_batch(padding), *sizes)], optimizer))
    assert terms["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    assert terms["real"].item() == pytest.approx(1.0)
    torch.testing.assert_close(model.w.grad, expected.w.grad, rtol=1e-6, atol=1e-6)


def test_micro_batches_by_hand():
    # w = 1: places 1, 1 and 3 give (1 + 1 + 9) / 3; a mean of the two means would be (1 + 9) / 2.
    model = Counted()
    with torch.no_grad():
        model.w.copy_(torch.tensor([1.0, 0.0, 0.0]))
    x = torch.tensor([[[1.0, 0, 0], [1.0, 0, 0]], [[3.0, 0, 0], [7.0, 0, 0]]])
    mask = torch.tensor([[True, True], [True, False]])
    (terms,) = list(fit(model, [cut({"x": x, "mask": mask}, 1, 1)], torch.optim.SGD(model.parameters(), lr=0.1)))
    assert terms["loss"].item() == pytest.approx(11 / 3)
    assert model.w[0].item() == pytest.approx(1 - 0.1 * 2 * 11 / 3)


def test_a_step_without_labels_adds_nothing():
    batch = whole_batch() | {"mask": torch.zeros(6, 4, dtype=torch.bool)}
    model = Counted()
    (terms,) = list(fit(model, [[batch]], torch.optim.SGD(model.parameters(), lr=0.1), clip=1.0))
    assert terms["loss"].item() == terms["gradient_norm"].item() == 0


def test_before_each_forward_pass():
    model, called = Counted(), []
    steps = [cut(whole_batch(), 3, 3), cut(whole_batch(), 6)]
    list(fit(model, steps, torch.optim.SGD(model.parameters(), lr=0.1), before=lambda *at: called.append(at)))
    assert called == [(1, 0), (1, 1), (2, 0)]


def test_micro_batches_need_counts():
    model = Square()
    with pytest.raises(ValueError, match="Square has no `counts`, so its loss over 2 micro-batches"):
        next(fit(model, [[{"x": torch.ones(1)}] * 2], torch.optim.SGD(model.parameters(), lr=0.1)))
