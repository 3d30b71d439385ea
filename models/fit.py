"""The training loop: a generator of loss terms; the caller logs, evaluates, saves or stops."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

__all__ = ["fit"]


def fit(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    clip: float | None = None,
    precision: torch.dtype | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield the named loss terms after each update.

    Args:
        model: `model(**batch)` returns the loss, a scalar, and a mapping of named terms.
        batches: of tensors on the model's device.
        optimizer: over the parameters to train.
        clip: largest norm of the whole gradient; None for no limit.
        precision: of the forward pass's products, by autocast (torch.bfloat16); None for the weights' own.
        scheduler: advanced once after each update.

    Yields:
        The terms, detached, with "loss" among them.

    Raises:
        FloatingPointError: the loss, or with `clip` the gradient, is NaN or infinite; names the step (from 1, of this
            call) and the terms. The weights are those of the step before.
    """
    for step, batch in enumerate(batches, start=1):
        device = next(iter(batch.values())).device.type
        with torch.autocast(device, precision) if precision else nullcontext():
            loss, terms = model(**batch)
        terms = {"loss": loss.detach()} | {name: term.detach() for name, term in terms.items()}
        _refuse_non_finite(loss, "loss", step, terms)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            _refuse_non_finite(nn.utils.clip_grad_norm_(trained, clip), "gradient", step, terms)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        yield terms


def _refuse_non_finite(value: Tensor, what: str, step: int, terms: dict[str, Tensor]) -> None:
    if torch.isfinite(value):
        return
    listed = ", ".join(f"{name} {term.item():.6g}" for name, term in terms.items())
    raise FloatingPointError(
        f"the {what} is {value.item()} at step {step} ({listed}); lower the learning rate, set clip, or look for "
        f"extreme values in this batch"
    )
