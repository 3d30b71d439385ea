"""A run of training: stopped anywhere and taken up again, it is the unbroken run."""

import numpy as np
import pytest
import torch
from torch import nn

from models import build
from tasks.batches import Batches
from tasks.train import fit_backbone
from tasks.training import Training, train

ROWS, SETTINGS = 300, Training(epochs=4, batch=32, lr=0.01, patience=4, checkpoint_steps=3, seed=5)


class Killed(BaseException):
    """What no handler of ours may catch, as no handler can catch a kill."""


def rows() -> dict:
    rng = np.random.default_rng(0)
    categorical, numerical = rng.integers(0, 5, (ROWS, 2), dtype=np.int32), rng.random((ROWS, 2), dtype=np.float32)
    return dict.fromkeys(("train", "val", "test"), (categorical, numerical))


def labels() -> dict:
    seen = rows()["train"]
    answer = np.stack([seen[0][:, 0] > 2, seen[1][:, 0] > 0.5], 1).astype(np.float32)
    answer[::7, 1] = np.nan
    return dict.fromkeys(("train", "val", "test"), torch.from_numpy(answer))


def backbone(checkpoints=None, settings=SETTINGS, kill_at=None):
    torch.manual_seed(settings.seed)
    model = build("recommend", "mpt_rec", [5, 5], 2, 2, experts=[8, 4], towers=[4], dropout=0.2)
    if kill_at:
        forward, calls = model.forward, iter(range(1, 10_000))

        def dies(**batch):
            if next(calls) == kill_at:
                raise Killed
            return forward(**batch)

        model.forward = dies
    done = fit_backbone(model, ["a", "b"], rows(), labels(), settings, checkpoints)
    return model.state_dict(), done


@pytest.mark.parametrize("kill_at", [1, 5, 10, 11, 24, 40])
def test_a_resumed_run_equals_the_unbroken_one(tmp_path, kill_at):
    """With dropout, an adversary and pseudo-domains: weights, order, random state and labels all continue."""
    whole, unbroken = backbone()
    with pytest.raises(Killed):
        backbone(tmp_path, kill_at=kill_at)
    resumed, done = backbone(tmp_path)
    assert done.resumed_at == kill_at - 1 - _lost(kill_at)
    assert done.curve == unbroken.curve
    assert done.best_epoch == unbroken.best_epoch
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def _lost(kill_at: int) -> int:
    """Steps since the last checkpoint: one every 3 steps, and one after each epoch of 10."""
    done = kill_at - 1
    return done - max(step for step in range(done + 1) if step % 10 == 0 or step % 3 == 0)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, _ = backbone(tmp_path)
    again, done = backbone(tmp_path, kill_at=1)  # a single step more would raise
    assert done.resumed_at == 40
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_best_epoch_is_kept_and_patience_ends_the_run():
    model = nn.Linear(1, 1)
    scores = iter([0.5, 0.9, 0.8, 0.7, 0.6])
    weights = []

    def validate():
        weights.append(model.weight.item())
        return {"score": next(scores)}

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = model

        def forward(self, x):
            loss = (self.line(x) ** 2).mean()
            return loss, {}

    batches = Batches({"x": np.ones((8, 1), np.float32)}, 4, 0)
    done = train(Line(), batches, Training(epochs=9, batch=4, patience=2, lr=0.1), validate, "line")
    assert len(done.curve) == 4
    assert done.best_epoch == 2
    assert model.weight.item() == weights[1] != weights[-1]
    assert [row["step"] for row in done.system] == [2, 4, 6, 8]


def test_nan_validation_is_no_best_epoch():
    class Line(nn.Linear):
        def forward(self, x):
            return super().forward(x).mean(), {}

    batches = Batches({"x": np.ones((4, 1), np.float32)}, 4, 0)
    with pytest.raises(ValueError, match="no epoch had a finite validation score"):
        train(Line(1, 1), batches, Training(epochs=1, batch=4), lambda: {"score": float("nan")}, "line")


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch": 1.5}, {"lr": "1e-3"}, {"precision": "half"}, {"epoch": 3}])
def test_settings_that_cannot_work(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Training.read(bad)
