"""What every retrieval model promises, also the one added tomorrow."""

from copy import deepcopy
from inspect import signature

import pytest
import torch
from safetensors.torch import load, save

from models import build, method, names
from models.recommend._ranking import rank
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._retrieval import Retrieval
from models.recommend.retrieval._sampling import Pairs

FAMILY = "recommend.retrieval"
SETTINGS = {  # what is too large for eight items: widths, neighbours; a queue as long as a batch is full at once
    "als": {"width": 4},
    "buir": {"width": 8},
    "clrec": {"width": 8, "queue": 13},
    "item_knn": {"neighbours": 3},
    "recdcl": {"width": 8},
}


def log() -> Log:
    """Six users and eight items; user 4 has one pair, user 5 and items 6 and 7 none, and one pair is given twice."""
    user = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 4, 0])
    item = torch.tensor([0, 1, 2, 1, 2, 3, 4, 5, 0, 2, 4, 5, 1, 0])
    return Log.of(user, item, users=6, items=8)


def make(name: str, seed: int = 1) -> Retrieval:
    torch.manual_seed(seed)
    return build(FAMILY, name, log(), **SETTINGS.get(name, {}))


def train(model: Retrieval, pairs: Pairs, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for batch, _ in zip(pairs, range(steps), strict=False):
        loss, _ = model(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step()
        losses.append(loss.item())
    return losses


def sampled(model: Retrieval, batch: int = 5) -> Pairs:
    return Pairs(log(), batch, model.negatives, seed=3)


@pytest.fixture(params=names(FAMILY))
def name(request) -> str:
    return request.param


TRAINED = [name for name in names(FAMILY) if not method(FAMILY, name).fitted]


@pytest.fixture(params=TRAINED)
def trained(request) -> str:
    return request.param


def test_scores_are_finite_and_the_product_of_the_vectors(name):
    model = make(name).eval()
    score = model.score(torch.arange(6))
    assert score.shape == (6, 8)
    assert score.isfinite().all()
    if model.product:
        users, items = model.vectors()
        torch.testing.assert_close(score, users @ items.mT)
        assert not users.requires_grad and not items.requires_grad


def test_scores_do_not_depend_on_the_other_users_asked_for(name):
    model = make(name).eval()
    torch.testing.assert_close(model.score(torch.tensor([3, 0])), model.score(torch.arange(6))[[3, 0]])


def test_a_seen_item_is_never_recommended(name):
    model, seen = make(name).eval(), log()
    ranked = rank(model.vectors() if model.product else model.score, torch.arange(6), seen, None, at=[8])
    for user, items in enumerate(ranked.items.tolist()):
        own = seen.item[seen.user == user].tolist()
        assert sorted([*own, *(item for item in items if item >= 0)]) == list(range(8))
        assert items.count(-1) == len(own)


def test_all_state_is_parameters_or_buffers(name):
    """A plain tensor is neither saved nor moved to the device."""
    for key, module in make(name).named_modules():
        for attribute, value in vars(module).items():
            held = value if isinstance(value, (list, tuple)) else [value]
            assert not any(isinstance(part, torch.Tensor | Log) for part in held), f"{key}.{attribute}"


def test_state_makes_the_same_model(name):
    model, other = make(name, seed=1), make(name, seed=2)
    if not model.fitted:
        train(model, sampled(model), model.optimizer(0.01), 3)
    other.load_state_dict(load(save(model.state_dict())))
    torch.testing.assert_close(other.eval().score(torch.arange(6)), model.eval().score(torch.arange(6)), rtol=0, atol=0)


def test_the_log_is_not_part_of_the_state(name):
    held = make(name).state_dict()
    pairs = log()
    same = lambda value: value.shape == pairs.user.shape and torch.equal(value, pairs.user)
    assert not [key for key, value in held.items() if same(value)]


@pytest.mark.parametrize("name", sorted(set(names(FAMILY)) - set(TRAINED)))
def test_a_fitted_model_refuses_a_step(name):
    with pytest.raises(TypeError, match="no steps"):
        make(name)(torch.tensor([0]), torch.tensor([1]))


def test_training_lowers_the_loss_and_names_its_terms(trained):
    model = make(trained)
    optimizer = model.optimizer(0.02)
    losses = train(model, sampled(model, batch=13), optimizer, 60)
    assert sum(losses[-10:]) < sum(losses[:10])
    loss, terms = model(**next(iter(sampled(model))))
    assert terms and loss.dim() == 0
    assert all(torch.is_tensor(term) and term.dim() == 0 for term in terms.values())


def test_every_parameter_is_trained(trained):
    model = make(trained)
    before = {key: value.clone() for key, value in model.named_parameters()}
    train(model, sampled(model, batch=13), model.optimizer(0.01), 3)
    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []


def test_resumed_equals_unbroken(trained):
    """Model, optimiser and sampler are saved after 4 steps of 9, in the middle of an epoch."""
    whole = make(trained)
    pairs, optimizer = sampled(whole), whole.optimizer(0.01)
    train(whole, pairs, optimizer, 4)
    saved = save(whole.state_dict())
    kept, place = deepcopy(optimizer.state_dict()), pairs.state_dict()
    rest = train(whole, pairs, optimizer, 5)

    again = make(trained, seed=9)
    again.load_state_dict(load(saved))
    optimizer = again.optimizer(0.01)
    optimizer.load_state_dict(kept)
    pairs = sampled(again)
    pairs.load_state_dict(place)
    assert train(again, pairs, optimizer, 5) == rest
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_equal_seeds_make_equal_models(trained):
    one, two = make(trained), make(trained)
    assert train(one, sampled(one), one.optimizer(0.01), 4) == train(two, sampled(two), two.optimizer(0.01), 4)


def test_a_batch_of_one_row_is_finite(trained):
    """Also the smallest batch has a loss and a gradient, in training too."""
    model = make(trained).train()
    batch = {key: value[:1] for key, value in next(iter(sampled(model))).items()}
    loss, _ = model(**batch)
    loss.backward()
    assert torch.isfinite(loss)
    for key, value in model.named_parameters():
        if value.grad is not None:
            assert value.grad.to_dense().isfinite().all(), key


def test_the_order_of_the_pairs_in_the_file_does_not_matter(name):
    given = log()
    shuffled = torch.randperm(len(given), generator=torch.Generator().manual_seed(4))
    models = []
    for pairs in (given, Log.of(given.user[shuffled], given.item[shuffled], 6, 8)):
        torch.manual_seed(0)
        models.append(build(FAMILY, name, pairs, **SETTINGS.get(name, {})).eval().score(torch.arange(6)))
    assert torch.equal(*models)


def test_wrong_settings_are_named(name):
    with pytest.raises(TypeError, match="it accepts"):
        build(FAMILY, name, log(), colour="red")


@pytest.mark.parametrize("bad", [{"width": 0}, {"width": -3}, {"layers": -1}, {"negatives": 0}, {"neighbours": 0}])
def test_numbers_that_cannot_be_are_refused_before_anything_is_made(name, bad):
    (setting,) = bad
    if setting in signature(method(FAMILY, name)).parameters:
        with pytest.raises(ValueError, match=setting):
            build(FAMILY, name, log(), **bad)


def test_users_known_by_their_items_only_are_scored(name):
    model = make(name).eval()
    new = Log.of(torch.tensor([0, 0, 2]), torch.tensor([1, 7, 3]), users=3, items=8)
    score = model.score_histories(new)
    assert score.shape == (3, 8)
    assert score.isfinite().all()
    if model.product:
        assert model.fold_in(new).shape == (3, model.vectors()[1].shape[1])


@pytest.mark.parametrize("name", ["item_knn", "popularity"])
def test_what_knows_no_users_scores_old_and_new_ones_alike(name):
    model = make(name)
    assert torch.equal(model.score_histories(log()), model.score(torch.arange(6)))
