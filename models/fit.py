"""The training loop: a generator of loss terms; the caller logs, evaluates, saves or stops.

A step may be cut into micro-batches and ranks in any way: the loss is the sum over all labels of the step divided by
their number, both counted over all of them before the first forward pass,

    L = sum_ranks sum_micro sum_labels loss / N        N = sum_ranks sum_micro labels

so that it, and its gradient, are those of one big batch. A mean of means is not: cuts with few labels would weigh more.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from models import parallel

__all__ = ["NotFinite", "fit", "total_counts"]


class NotFinite(FloatingPointError):
    """The loss or the gradient of a step is NaN or infinite; the weights are those of the step before.

    Args:
        what: "loss" or "gradient".
        value: of it.
        step: from 1, of the call of `fit`.
        terms: of the loss.
    """

    def __init__(self, what: str, value: float, step: int, terms: Mapping[str, float]):
        super().__init__(what, value, step, terms)
        self.what, self.value, self.step, self.terms = what, value, step, terms

    def __str__(self) -> str:
        return self.told(f"step {self.step}")

    def told(self, where: str) -> str:
        """The message, with a better name of the place."""
        listed = ", ".join(f"{name} {term:.6g}" for name, term in self.terms.items())
        return (f"the {self.what} is {self.value} at {where} ({listed}); lower the learning rate, set clip, or "
                f"look for extreme values in this batch")  # fmt: skip


def fit(
    model: nn.Module,
    steps: Iterable[Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]],
    optimizer: torch.optim.Optimizer,
    clip: float | None = None,
    precision: torch.dtype | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    before: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield the named loss terms after each update.

    Args:
        model: `model(**batch)` returns the loss, a scalar, and a mapping of named terms. One that offers
            `counts(**batch)`, the number of labels by target, is called `model(counts=..., **batch)` and returns sums
            divided by the counts of the whole step; then its terms add up over micro-batches and ranks.
        steps: for each step one batch, or this rank's list of micro-batches, on the model's device. All ranks have
            equally many micro-batches.
        optimizer: over the parameters to train.
        clip: largest norm of the whole gradient; None for no limit.
        precision: of the forward pass's products, by autocast (torch.bfloat16); None for the weights' own.
        scheduler: advanced once after each update.
        before: called with the step (from 1) and the micro-batch (from 0) before each forward pass: where a run seeds
            its dropout.

    Yields:
        The terms of the whole step, detached, with "loss" among them, and with `clip` the "gradient_norm" before it.

    Raises:
        NotFinite: the loss, or with `clip` the gradient, is NaN or infinite; names the step (from 1, of this
            call) and the terms. The weights are those of the step before, on every rank.
        ValueError: micro-batches or ranks for a model without `counts`.
    """
    counted, over = hasattr(parallel.inner(model), "counts"), parallel.ranks(model)
    for step, batch in enumerate(steps, start=1):
        batches = [batch] if isinstance(batch, Mapping) else list(batch)
        if not counted and (len(batches) != 1 or over != 1):
            raise ValueError(f"{type(parallel.inner(model)).__name__} has no `counts`, so its loss over {len(batches)} "
                             f"micro-batches on {over} ranks is unknown; give one whole batch a step")  # fmt: skip
        counts = {"counts": total_counts(model, batches, over)} if counted else {}
        optimizer.zero_grad()
        terms: dict[str, Tensor] = {}
        for micro, part in enumerate(batches):
            if before is not None:
                before(step, micro)
            parallel.synchronise(model, now=micro == len(batches) - 1)
            with torch.autocast(_device(part), precision) if precision else nullcontext():
                loss, found = model(**counts, **part)
            (loss * over if over > 1 else loss).backward()  # takes back the mean that DDP and FSDP make of the ranks
            for name, term in ({"loss": loss} | dict(found)).items():
                terms[name] = term.detach() + terms[name] if name in terms else term.detach()
        terms = parallel.add_up(terms, over)
        _refuse_non_finite(terms["loss"], "loss", step, terms)
        if clip is not None:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            norm = parallel.clip_gradients(trained, clip)
            _refuse_non_finite(norm, "gradient", step, terms)
            terms["gradient_norm"] = norm
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        yield terms


def total_counts(model: nn.Module, batches: Sequence[Mapping[str, Tensor]], over: int = 1) -> dict[str, Tensor]:
    """Labels by target in all these batches of all ranks, at least 1: a target without labels adds 0, not 0 / 0."""
    total: dict[str, Tensor] = {}
    for batch in batches:
        for name, count in parallel.inner(model).counts(**batch).items():
            total[name] = total[name] + count if name in total else count
    return {name: count.clamp(min=1) for name, count in parallel.add_up(total, over).items()}


def _device(batch: Mapping[str, Tensor]) -> str:
    return next(iter(batch.values())).device.type


def _refuse_non_finite(value: Tensor, what: str, step: int, terms: dict[str, Tensor]) -> None:
    if not torch.isfinite(value):
        raise NotFinite(what, value.item(), step, {name: term.item() for name, term in terms.items()})
