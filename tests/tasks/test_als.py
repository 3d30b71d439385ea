"""ALS fitted by the `implicit` library, and its closed form for a new user."""

import numpy as np
import pytest
import torch
from _bars import seen
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

from models import build
from models.recommend.retrieval._log import Log
from tasks.als import fit_als


def blocks() -> Log:
    """Two groups of ten users and six items; each user has four items of its group, user 20 none."""
    draw = torch.Generator().manual_seed(0)
    item = torch.cat([torch.randperm(6, generator=draw)[:4] + 6 * (user % 2) for user in range(20)])
    return Log.of(torch.arange(20).repeat_interleave(4), item, users=21, items=12)


def fitted(seed: int = 0, width: int = 4):
    model = build("recommend.retrieval", "als", blocks(), width=width, alpha=5.0, regularization=0.2)
    fit_als(model, blocks(), seed=seed)
    return model


def test_users_get_the_items_of_their_group():
    score = fitted(width=2).score(torch.arange(20))
    own = torch.arange(12)[None] // 6 == torch.arange(20)[:, None] % 2
    assert score[own].min() > score[~own].max()


def test_equal_seeds_give_equal_factors_and_a_user_without_items_has_none():
    one, two = fitted(), fitted()
    assert torch.equal(one.user, two.user) and torch.equal(one.item, two.item)
    assert not torch.equal(one.item, fitted(seed=1).item)
    assert one.user[20].tolist() == [0.0] * 4


def test_a_bar_counts_the_passes(monkeypatch):
    bars = seen(monkeypatch)
    fitted()
    assert [(bar.desc, bar.total, bar.n) for bar in bars] == [("als", 15, 15)]


def test_fold_in_is_the_library_s():
    model = fitted()
    library = AlternatingLeastSquares(factors=4, alpha=5.0, regularization=0.2)
    library.item_factors, library.user_factors = model.item.numpy(), model.user.numpy()
    new = Log.of(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 7, 2, 3, 11]), users=3, items=12)
    matrix = csr_matrix((np.ones(5, np.float32), new.item.numpy(), new.starts.numpy()), (3, 12))
    expected = np.stack([library.recalculate_user(user, matrix[user]) for user in range(3)])
    np.testing.assert_allclose(model.fold_in(new).numpy(), expected, rtol=1e-4, atol=1e-6)
    assert model.fold_in(new)[2].tolist() == [0.0] * 4


def test_factors_that_diverge_are_refused():
    with pytest.raises(ValueError, match="item factors must be finite"):
        fitted().set(torch.zeros(21, 4), torch.full((12, 4), torch.inf))
