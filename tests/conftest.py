"""What every test shares: one thread each (two run at a time), no telemetry, real data when it is there."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("ROOTSTOCK_SLOTS", "64")  # slots are the host's: no test waits for a real training

import pytest
import torch
from _warm import Warm

from tasks.command import quiet

quiet()
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
LONGEST = {
    "test_days.py", "test_distillation.py", "test_language.py", "test_models_that_write.py", "test_promise.py",
    "test_real_faults.py", "test_recommenders.py", "test_runner.py", "test_scale_out.py", "test_task_distillation.py",
    "test_unattended.py",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of minutes come first: one begun last would keep one worker busy alone."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def shared_data() -> Path | None:
    """The folder of real logs beside the checkout, or None: tests then use their own small data."""
    folder = ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def warm(tmp_path_factory) -> Iterator[str]:
    """A `python` whose processes have their libraries already; see _warm.py."""
    with Warm(tmp_path_factory.mktemp("warm")) as made:
        yield str(made.python)


@pytest.fixture(scope="module", autouse=True)
def own_path():
    """Each file begins with the path it found: MLflow puts a loaded version's code, its `models`, in front for good."""
    before = list(sys.path)
    yield
    sys.path[:] = before
