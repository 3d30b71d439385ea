"""Learning-rate schedules: the share of the top rate at a step, one function each.

Every schedule but `constant` rises linearly from 0 over the warm-up. `warmup` and `decay` below 1 are shares of the
run, from 1 on whole steps. `floor` is the share of the top rate that remains at the end.
"""

import math
from collections.abc import Callable
from difflib import get_close_matches
from inspect import signature

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["names", "schedule", "share"]


def schedule(optimizer: Optimizer, name: str, steps: int, **settings) -> LambdaLR:
    """The scheduler of a run of `steps` updates, to be advanced after each.

    Raises:
        LookupError: no such schedule; names the closest.
        ValueError: a setting that this schedule does not have, or a value that cannot work.
    """
    check(name, steps, **settings)
    return LambdaLR(optimizer, lambda step: share(name, step, steps, **settings))


def share(name: str, step: int, steps: int, **settings) -> float:
    """The learning rate's share of its top at `step` (from 0) of `steps`.

    >>> [share("linear", step, 10, warmup=2) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return SCHEDULES[name](step, steps, **settings)


def names() -> list[str]:
    """All schedules."""
    return sorted(SCHEDULES)


def check(name: str, steps: int, **settings) -> None:
    """Refuse before the run what would fail within it; the errors are those of `schedule`."""
    if name not in SCHEDULES:
        close = ", ".join(get_close_matches(name, SCHEDULES) or names())
        raise LookupError(f"there is no schedule {name!r}; closest: {close}")
    known = list(signature(SCHEDULES[name]).parameters)[2:]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"schedule {name} has no setting {', '.join(unknown)}; it has: {', '.join(known) or 'none'}")
    for setting in ("warmup", "decay", "hold"):
        if setting in settings and not 0 <= _steps(settings[setting], steps) <= steps:
            raise ValueError(f"schedule {name}: {setting} {settings[setting]} is more than the {steps} steps of the "
                             f"run, or less than none")  # fmt: skip
    if not 0 <= settings.get("floor", 0.0) <= 1:
        raise ValueError(f"schedule {name}: floor is a share of the top rate, 0..1; got {settings['floor']}")
    if settings.get("shape", "sqrt") not in ("linear", "sqrt"):
        raise ValueError(f"schedule {name}: shape is linear or sqrt; got {settings['shape']!r}")
    if name == "tri_stage" and settings.get("floor") == 0:
        raise ValueError("schedule tri_stage falls exponentially, which never reaches 0; give a floor such as 0.01")


def constant(step: int, steps: int) -> float:
    """Always the top rate."""
    return 1.0


def constant_with_warmup(step: int, steps: int, warmup: float = 0.1) -> float:
    """Top rate from the warm-up on."""
    return _rise(step, _steps(warmup, steps))


def linear(step: int, steps: int, warmup: float = 0.1, floor: float = 0.0) -> float:
    """Straight down to `floor` (BERT, arXiv:1810.04805)."""
    return _then(step, steps, warmup, lambda done: floor + (1 - floor) * (1 - done))


def cosine(step: int, steps: int, warmup: float = 0.1, floor: float = 0.1) -> float:
    """Half a cosine down to `floor` (Loshchilov and Hutter, arXiv:1608.03983, without restarts)."""
    return _then(step, steps, warmup, lambda done: floor + (1 - floor) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


def cosine_with_restarts(step: int, steps: int, warmup: float = 0.1, cycles: int = 2) -> float:
    """`cycles` equal half cosines, each from the top to 0 (arXiv:1608.03983)."""
    return _then(step, steps, warmup,
                 lambda done: 0.0 if done >= 1 else (1 + math.cos(math.pi * (cycles * done % 1.0))) / 2)  # fmt: skip


def polynomial(step: int, steps: int, warmup: float = 0.1, power: float = 1.0, floor: float = 0.0) -> float:
    """(1 - share done)^power down to `floor`."""
    return _then(step, steps, warmup, lambda done: floor + (1 - floor) * max(0.0, 1 - done) ** power)


def inverse_sqrt(step: int, steps: int, warmup: float = 0.1) -> float:
    """sqrt(warm-up / step) (Vaswani et al., arXiv:1706.03762, scaled to reach 1); 10,000 without warm-up."""
    rise = _steps(warmup, steps)
    scale = rise or 10_000
    return _rise(step, rise) if step < rise else 1 / math.sqrt((step + scale - rise) / scale)


def tri_stage(
    step: int, steps: int, warmup: float = 0.1, hold: float = 0.4, start: float = 0.01, floor: float = 0.01
) -> float:
    """Up from `start`, hold, exponentially down to `floor` (SpecAugment, arXiv:1904.08779; as in wav2vec 2.0)."""
    rise, flat = _steps(warmup, steps), _steps(hold, steps)
    if step < rise:
        return start + (1 - start) * step / rise
    if step < rise + flat:
        return 1.0
    return math.exp(math.log(floor) * min(1.0, (step - rise - flat) / max(1, steps - rise - flat)))


def wsd(
    step: int, steps: int, warmup: float = 0.1, decay: float = 0.2, shape: str = "sqrt", floor: float = 0.0
) -> float:
    """Warm-up, stable, decay (MiniCPM, arXiv:2404.06395); `sqrt` is 1 - sqrt(share of decay) (arXiv:2405.18392)."""
    fall = _steps(decay, steps)
    done = max(0.0, min(1.0, (step - (steps - fall)) / max(1, fall)))
    return min(
        _rise(step, _steps(warmup, steps)), floor + (1 - floor) * (1 - (done if shape == "linear" else done**0.5))
    )


SCHEDULES: dict[str, Callable[..., float]] = {
    made.__name__: made
    for made in (constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial, inverse_sqrt,
                 tri_stage, wsd)
}  # fmt: skip


def _steps(value: float, steps: int) -> int:
    return round(value * steps) if 0 <= value < 1 else int(value)


def _rise(step: int, warmup: int) -> float:
    return step / max(1, warmup) if step < warmup else 1.0


def _then(step: int, steps: int, warmup: float, after: Callable[[float], float]) -> float:
    rise = _steps(warmup, steps)
    return _rise(step, rise) if step < rise else max(0.0, after((step - rise) / max(1, steps - rise)))
