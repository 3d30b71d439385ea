"""A multi-task network that is taught: what its towers read, shown beside its logits; it alone is served."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models import build
from models.recommend._layers import Head, MultiTask

__all__ = ["BODIES", "Taught", "before_towers", "quietly"]

BODIES = ("mmoe", "omoe", "ple", "shared_bottom", "stem")  # each has `towers`, which read one vector for each task


class Taught(MultiTask):
    """A student, which is any of `BODIES`, and all that is asked of a multi-task model, answered by the student.

    Args:
        name: of the teaching method, for errors.
        method: the student's.
        settings: of that method.

    Attributes:
        student: the plain network; save it alone, as a model of `serves`, and no teacher is served.
        serves: its method, and the settings that build it.

    Raises:
        ValueError: `method` is none of `BODIES`.
    """

    def __init__(
        self, name: str, method: str, sizes: list[int], dense: int, tasks: int, embedding: int, settings: Mapping | None
    ):
        super().__init__()
        if method not in BODIES:
            raise ValueError(f"{name} teaches one of {', '.join(BODIES)}; got {method!r}")
        self.serves = method, {"embedding": embedding, **(settings or {})}
        self.student = build("recommend", method, sizes, dense, tasks, **self.serves[1])
        self.weigh = self.student.weigh

    @property
    def read(self) -> int:
        """Width of what a tower of the student reads."""
        return self.student.towers.layers[0].weight.shape[1]

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """The student's: (B, T)."""
        return self.student.logits(categorical, numerical)

    def represent(self, categorical: Tensor, numerical: Tensor) -> dict[str, Tensor]:
        """What the student shows to a head. Needs eval mode."""
        return self.student.represent(categorical, numerical)

    def head(self, towers: Sequence[int] | None = None, dropout: float | None = None) -> Head:
        """A new task's head on the frozen student; what is None is as in the student."""
        return self.student.head(towers, dropout)


def before_towers(model: nn.Module, categorical: Tensor, numerical: Tensor) -> tuple[Tensor, Tensor]:
    """What the towers of a model read (B, T, H), and its logits (B, T)."""
    read = []
    hook = model.towers.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        logit_BT = model.logits(categorical, numerical)
    finally:
        hook.remove()
    return read[0], logit_BT


def quietly(make):
    """Call `make`, and leave the random numbers that follow as if it had drawn none.

    What only teaches then changes nothing of a student that does not listen: its run is the plain one, bit for bit.
    """
    with torch.random.fork_rng():
        return make()
