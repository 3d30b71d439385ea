"""A training that dies at a batch, and one that goes on from what it kept."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from tasks.engine import Run


def killed(module: ModuleType, go: Callable[[], object], batch: int) -> None:
    """`go` trains by `module.run`, which dies when it asks for the rows of that batch."""
    real = module.run

    def dies(learner, source, settings, *rest):
        rows = source.rows

        def until(indices):
            if indices[0] // settings.batch == batch:
                raise KeyboardInterrupt
            return rows(indices)

        source.rows = until
        return real(learner, source, settings, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run", dies)
        with pytest.raises(KeyboardInterrupt):
            go()


def continued(module: ModuleType, go: Callable[[], object]) -> Run:
    """What the first run of `go` gave, which trains by `module.run`."""
    real, seen = module.run, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run", lambda *given: seen.append(real(*given)) or seen[-1])
        go()
    return seen[0]


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
