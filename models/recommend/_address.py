"""A method by its address: `mpt_rec`, or `ctr/deepfm`, a click model in the form of a method with one task."""

from inspect import signature

import torch
from torch import Tensor, nn

from models import build

__all__ = ["OneTask", "multi_task"]


class OneTask(nn.Module):
    """A click model that takes labels (B, 1) and gives probabilities (B, 1), as methods of many tasks do.

    Args:
        model: of models/recommend/ctr/.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, categorical: Tensor, numerical: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its terms; labels (B, 1), NaN or negative where absent."""
        return self.model(categorical, numerical, labels[:, 0])

    def score(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """Served probabilities (B, 1), float32."""
        return self.model.score(categorical, numerical)[:, None]

    def represent(self, categorical: Tensor, numerical: Tensor) -> dict[str, Tensor]:
        """Refused: there is nothing shared for a new task to read.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{type(self.model).__name__} learns one task and has no head for another; take a method of "
                         f"models/recommend/ as recommend.backbone.method")  # fmt: skip

    def head(self, **settings) -> nn.Module:
        """Refused, as `represent` is."""
        return self.represent(torch.empty(0), torch.empty(0))


def multi_task(address: str, sizes: list[int], dense: int, tasks: int, **settings) -> nn.Module:
    """Build the method of an address for these columns and tasks.

    Raises:
        LookupError: no such method.
        ValueError: several tasks for a click model, or one that reads positions.
    """
    kind, _, name = address.rpartition("/")
    if not kind:
        return build("recommend", name, sizes, dense, tasks, **settings)
    if tasks != 1:
        raise ValueError(f"{address} learns one task, {tasks} are declared; make an entry for each")
    built = build(f"recommend.{kind}", name, sizes, dense, **settings)
    if "position" in signature(built.forward).parameters:
        raise ValueError(f"{address} learns from the place at which an item was shown, which these rows do not have")
    return OneTask(built)
