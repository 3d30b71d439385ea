"""Schedules: a number by hand each, and transformers' values where it has the same one."""

import math

import pytest
import torch

from models import schedules
from models.schedules import names, schedule, share

STEPS, RISE = 40, 8


@pytest.mark.parametrize(
    ("name", "settings", "step", "value"),
    [
        ("constant", {}, 0, 1.0),
        ("constant_with_warmup", {"warmup": 4}, 3, 0.75),
        ("linear", {"warmup": 0.2, "floor": 0.1}, 24, 0.55),  # half-way down from 1 to 0.1
        ("cosine", {"warmup": RISE}, 24, 0.55),  # (1 + cos 90 degrees) / 2 of the way between 1 and the floor 0.1
        ("cosine", {"warmup": RISE}, 40, 0.1),
        ("cosine_with_restarts", {"warmup": RISE, "cycles": 2}, 24, 1.0),  # the second cycle begins at the top
        ("polynomial", {"warmup": 0, "power": 2.0}, 30, 1 / 16),
        ("inverse_sqrt", {"warmup": 10}, 40, 0.5),
        ("tri_stage", {"warmup": 10, "hold": 10}, 5, 0.505),
        ("tri_stage", {"warmup": 10, "hold": 10}, 15, 1.0),
        ("tri_stage", {"warmup": 10, "hold": 10}, 30, 0.1),  # half-way to 0.01 in the exponent
        ("wsd", {"warmup": 4, "decay": 16}, 24, 1.0),
        ("wsd", {"warmup": 4, "decay": 16}, 28, 0.5),  # 1 - sqrt(4/16)
        ("wsd", {"warmup": 4, "decay": 16, "shape": "linear"}, 28, 0.75),
    ],
)
def test_by_hand(name, settings, step, value):
    assert share(name, step, STEPS, **settings) == pytest.approx(value)


def test_same_as_transformers():
    from transformers import optimization as theirs

    made = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    pairs = [
        ("constant_with_warmup", {}, theirs.get_constant_schedule_with_warmup(made, RISE)),
        ("linear", {}, theirs.get_linear_schedule_with_warmup(made, RISE, STEPS)),
        ("cosine", {"floor": 0.0}, theirs.get_cosine_schedule_with_warmup(made, RISE, STEPS)),
        ("cosine", {}, theirs.get_cosine_with_min_lr_schedule_with_warmup(made, RISE, STEPS, min_lr_rate=0.1)),
        ("cosine_with_restarts", {"cycles": 3},
         theirs.get_cosine_with_hard_restarts_schedule_with_warmup(made, RISE, STEPS, 3)),
        ("polynomial", {"floor": 0.05},
         theirs.get_polynomial_decay_schedule_with_warmup(made, RISE, STEPS, lr_end=0.05)),
        ("inverse_sqrt", {}, theirs.get_inverse_sqrt_schedule(made, RISE)),
        ("inverse_sqrt", {"warmup": 0}, theirs.get_inverse_sqrt_schedule(made, 0)),
        ("wsd", {"decay": 10}, theirs.get_wsd_schedule(made, RISE, 10, STEPS, decay_type="1-sqrt")),
        ("wsd", {"decay": 10, "shape": "linear", "floor": 0.0},
         theirs.get_wsd_schedule(made, RISE, 10, STEPS, decay_type="linear")),
    ]  # fmt: skip
    for name, settings, reference in pairs:
        ours = [share(name, step, STEPS, **({"warmup": RISE} | settings)) for step in range(STEPS + 1)]
        assert ours == pytest.approx([reference.lr_lambdas[0](step) for step in range(STEPS + 1)], abs=1e-12), name


@pytest.mark.parametrize("name", names())
def test_every_schedule_drives_an_optimizer(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=2.0)
    made = schedule(optimizer, name, STEPS)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        made.step()
    assert rates == [share(name, step, STEPS) for step in range(STEPS)]
    assert max(rates) == 1.0
    assert all(math.isfinite(rate) and rate >= 0 for rate in rates)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("cosin", {}, "closest: cosine"),
        ("constant", {"warmup": 3}, "constant has no setting warmup; it has: none"),
        ("linear", {"warmup": 41}, "warmup 41 is more than the 40 steps"),
        ("linear", {"floor": 2}, "floor is a share"),
        ("wsd", {"shape": "cubic"}, "linear or sqrt; got 'cubic'"),
        ("tri_stage", {"floor": 0}, "never reaches 0"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(name, settings, said):
    with pytest.raises((ValueError, LookupError), match=said):
        schedules.check(name, STEPS, **settings)
