"""What every session model promises, also the one added tomorrow."""

import inspect

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from models import build, method, names
from models.fit import fit

ITEMS = 12
SMALL = {
    "gru4rec": {"width": 16},
    "nextitnet": {"width": 16, "dilations": [1, 2]},
    "sasrec": {"width": 16, "length": 10},
    "bert4rec": {"width": 16, "length": 10, "layers": 1},
    "skip_sasrec": {"width": 16, "length": 10, "layers": 2},
    "skip_nextitnet": {"width": 16, "dilations": [1, 2]},
    "mercatran": {"width": 16, "inner": 32, "length": 10},
}
NEXT = [name for name in names("recommend.session") if "label" not in
        inspect.signature(method("recommend.session", name).forward).parameters]  # fmt: skip
OF_IDS = [name for name in NEXT if name != "mercatran"]


def make(name: str, seed: int = 1, **settings) -> nn.Module:
    torch.manual_seed(seed)
    words = torch.randint(1, 30, (ITEMS + 1, 5), generator=torch.Generator().manual_seed(0))
    first = (ITEMS, words) if name == "mercatran" else (ITEMS,)
    return build("recommend.session", name, *first, **{**SMALL.get(name, {}), **settings})


def rows(count: int = 8, places: int = 9, seed: int = 3) -> torch.Tensor:
    """Rows of 2 to `places` items, padding in front."""
    draw = torch.Generator().manual_seed(seed)
    items = torch.randint(1, ITEMS + 1, (count, places), generator=draw)
    length = torch.randint(2, places + 1, (count, 1), generator=draw)
    return items.masked_fill(torch.arange(places) < places - length, 0)


def batch(model: nn.Module, seed: int = 3) -> dict[str, torch.Tensor]:
    made = {"items": rows(seed=seed)}
    if "targets" in inspect.signature(model.forward).parameters:
        made["targets"] = rows(8, model.steps, seed + 50).flip(1)
    return made


@pytest.fixture(params=NEXT)
def name(request) -> str:
    return request.param


def test_all_of_merrecs_models_are_here():
    assert {"gru4rec", "nextitnet", "sasrec", "bert4rec", "skip_sasrec", "skip_nextitnet", "mercatran"} <= set(NEXT)
    assert set(names("recommend.session")) - set(NEXT) == {"intent"}


def test_every_parameter_is_trained(name):
    model = make(name)
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters())
    for seed in range(4):
        model(**batch(model, seed))[0].backward()
        optimizer.step()
    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []


def test_all_state_is_parameters_or_buffers(name):
    for key, module in make(name).named_modules():
        for attribute, value in vars(module).items():
            if attribute == "_flat_weights":  # torch's recurrent networks list their own parameters
                continue
            held = value if isinstance(value, (list, tuple)) else [value]
            assert not any(isinstance(part, (torch.Tensor, nn.Module)) for part in held), f"{key}.{attribute}"


def test_scores_are_of_all_items_and_never_of_padding(name):
    score = make(name).eval().score(rows())
    assert score.shape == (8, ITEMS + 1) and score.dtype == torch.float32
    assert bool((score[:, 0] == -torch.inf).all()) and bool(score[:, 1:].isfinite().all())
    assert not score.requires_grad


def test_padding_in_front_changes_nothing(name):
    model = make(name).eval()
    items = rows()
    padded = torch.cat([torch.zeros(8, 7, dtype=torch.long), items], 1)
    assert torch.equal(model.score(items), model.score(padded))
    if name == "bert4rec":  # its masks are drawn by place
        return
    one, two = (model(**{**batch(model), "items": each})[0] for each in (items, padded))
    torch.testing.assert_close(one, two)


def test_a_row_depends_on_itself_alone(name):
    model, items = make(name).eval(), rows()
    whole = model.score(items)
    for row in range(len(items)):
        torch.testing.assert_close(model.score(items[row : row + 1])[0], whole[row], rtol=1e-4, atol=1e-5)


def test_only_the_last_place_scores(name):
    """Published code of the benchmark averages the logits of all places: then a prefix would be part of the score."""
    model, items = make(name).eval(), torch.tensor([[0, 3, 4, 5]])
    torch.testing.assert_close(model.score(items), model.score(torch.tensor([[3, 4, 5]])))
    swapped = model.score(torch.tensor([[0, 3, 4, 6]]))
    assert not torch.allclose(model.score(items)[:, 1:], swapped[:, 1:])


@pytest.mark.parametrize("name", [name for name in OF_IDS if method("recommend.session", name).causal])
def test_a_later_item_changes_no_earlier_place(name):
    model = make(name).eval()
    items, length = torch.arange(1, 9)[None], torch.tensor([8])
    other = items.clone()
    other[0, 5] = 11
    with torch.no_grad():
        one, two = model.hidden(items, length), model.hidden(other, length)
    assert torch.equal(one[:, :5], two[:, :5])
    assert bool((one[:, 5:] != two[:, 5:]).any(-1).all())
    for place in range(1, 8):  # and what a place gives is what the row cut there would score from
        cut = model.hidden(items[:, :place], torch.tensor([place]))
        torch.testing.assert_close(cut[:, -1], one[:, place - 1], rtol=1e-4, atol=1e-5)


def test_one_item_and_no_item_are_scored(name):
    model = make(name).eval()
    one = model.score(torch.tensor([[0, 0, 5]]))
    assert bool(one[:, 1:].isfinite().all())
    none = model.score(torch.zeros(2, 3, dtype=torch.long))
    assert none.shape == (2, ITEMS + 1) and bool(none[:, 1:].isfinite().all())
    both = model.score(torch.tensor([[0, 0, 5], [0, 0, 0]]))
    torch.testing.assert_close(both[:1], one, rtol=1e-5, atol=1e-6)


def test_longer_rows_are_scored_from_their_last_items(name):
    model = make(name).eval()
    items = torch.randint(1, ITEMS + 1, (2, 30), generator=torch.Generator().manual_seed(0))
    score = model.score(items)
    assert bool(score[:, 1:].isfinite().all())
    if model.keep:
        torch.testing.assert_close(score, model.score(items[:, -model.keep :]))


def test_state_survives_safetensors(name):
    model, other = make(name), make(name, seed=2)
    model(**batch(model))
    other.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(model.eval().score(rows()), other.eval().score(rows()))
    assert model(**batch(model))[0] == other(**batch(model))[0]


def test_a_resumed_run_is_the_unbroken_one(name):
    def steps(model, optimizer, seeds):
        for _ in fit(model.train(), [batch(model, seed) for seed in seeds], optimizer):
            pass

    settings = {} if name in ("gru4rec", "nextitnet", "skip_nextitnet") else {"dropout": 0.0}
    whole, first, second = make(name, **settings), make(name, **settings), make(name, 2, **settings)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (whole, first, second)]
    steps(whole, optimizers[0], range(4))
    steps(first, optimizers[1], range(2))
    second.load_state_dict(load(save(first.state_dict())))
    steps(second, optimizers[2], range(2, 4))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_it_learns_what_follows_what(name):
    """Item i is followed by i + 1, the last by the first."""
    model = make(name, 0, width=32, **({} if name in ("gru4rec", "nextitnet", "skip_nextitnet") else {"dropout": 0.0}))
    start = torch.arange(ITEMS)[:, None]
    rows = (start + torch.arange(7)) % ITEMS + 1
    data, known = {"items": rows}, 6
    if name == "mercatran":
        data, known = {"items": rows[:, :3], "targets": rows[:, 3:]}, 3
    steps, lr = (250, 0.003) if name == "bert4rec" else (80, 0.01)  # a tenth of its labels are the last items
    for _ in fit(model.train(), [data] * steps, torch.optim.Adam(model.parameters(), lr=lr)):
        pass
    best = model.eval().score(rows[:, :known]).argmax(-1)
    assert (best == rows[:, known]).float().mean() >= 0.9


def test_bfloat16_keeps_the_loss_in_float32(name):
    model = make(name).eval()
    exact, _ = model(**batch(model))
    with torch.autocast("cpu", torch.bfloat16):
        loss, terms = model(**batch(model))
    loss.backward()
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_impossible_rows_are_refused(name):
    model = make(name)
    with pytest.raises(ValueError, match=r"1 ids are outside 0..12, the first in row 0, place 1: 13"):
        model.score(torch.tensor([[1, 13]]))
    with pytest.raises(ValueError, match=r"1 rows, the first is 1, have padding \(0\) after an item"):
        model.score(torch.tensor([[1, 2, 3], [1, 0, 3]]))
    with pytest.raises(ValueError, match=r"items must be \(rows, places\) integers"):
        model.score(torch.tensor([1, 2]))


@pytest.mark.parametrize("name", OF_IDS)
def test_rows_without_a_next_item_teach_nothing_and_say_so(name):
    model = make(name).eval()
    with pytest.raises(ValueError, match="none of 2 rows has two items"):
        model(torch.tensor([[0, 4], [0, 5]]))
    items = rows()
    more = torch.cat([items, torch.tensor([[0] * 8 + [4]])])
    if name != "bert4rec":
        torch.testing.assert_close(model(items)[0], model(more)[0])


@pytest.mark.parametrize("name", OF_IDS)
@pytest.mark.parametrize(
    "loss", [{"loss": "sampled", "negatives": 5}, {"loss": "bce"}, {"loss": "bpr_max", "negatives": 5}]
)
def test_every_loss_trains_and_draws_anew(name, loss):
    model = make(name, **loss)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    first, _ = model(rows())
    first.backward()
    assert torch.isfinite(first) and model.item.weight.grad.any()
    assert model.step == 1
    model.eval()
    assert model(rows())[0] == model(rows())[0]


@pytest.mark.parametrize(
    "bad", [{"width": 0}, {"length": 0}, {"layers": 0}, {"heads": 7}, {"kernel": 0}, {"dilations": ()}]
)
@pytest.mark.parametrize("name", OF_IDS)
def test_sizes_that_cannot_be_are_refused(name, bad):
    (setting,) = bad
    if setting in inspect.signature(method("recommend.session", name)).parameters:
        told = {"dilations": "a block|dilation", "heads": "does not divide"}.get(setting, setting)
        with pytest.raises(ValueError, match=told):
            build("recommend.session", name, 12, **bad)


@pytest.mark.parametrize("settings", [{"loss": "hinge"}, {"loss": "sampled"}, {"loss": "full", "negatives": 3}])
def test_impossible_losses_are_refused(settings):
    with pytest.raises(ValueError, match="loss one of full, sampled, bce, bpr_max"):
        make("gru4rec", **settings)
