"""What every click model promises, also the one added tomorrow."""

import inspect

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from models import build, method, names
from models.fit import fit
from models.metrics import auc, logloss

FAMILY = names("recommend.ctr")
SIZES, DENSE = [5, 11, 3], 2


def make(name: str, seed: int = 1, **settings) -> nn.Module:
    torch.manual_seed(seed)
    return build("recommend.ctr", name, SIZES, DENSE, **settings)


def batch(model: nn.Module, count: int = 40, seed: int = 3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    made = {
        "categorical": torch.stack([torch.randint(0, size, (count,), generator=draw) for size in SIZES], 1).int(),
        "numerical": torch.rand(count, DENSE, generator=draw),
        "label": (torch.rand(count, generator=draw) < 0.5).float(),
    }
    if "position" in inspect.signature(model.forward).parameters:
        made["position"] = torch.arange(count) % model.positions + 1
    return made


def scored(model: nn.Module, data: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.eval().score(data["categorical"], data["numerical"]).detach()


@pytest.fixture(params=FAMILY)
def name(request) -> str:
    return request.param


def test_all_of_merrecs_models_are_here():
    assert {"wide_deep", "deepfm", "xdeepfm", "nfm", "afm", "dcnv2"} <= set(FAMILY)


def test_every_parameter_is_trained(name):
    model = make(name)
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters())
    for seed in (3, 4, 5):
        model(**batch(model, seed=seed))[0].backward()
        optimizer.step()
    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []


def test_all_state_is_parameters_or_buffers(name):
    for key, module in make(name).named_modules():
        for attribute, value in vars(module).items():
            held = value if isinstance(value, (list, tuple)) else [value]
            assert not any(isinstance(part, (torch.Tensor, nn.Module)) for part in held), f"{key}.{attribute}"


def test_score_is_the_sigmoid_of_the_trained_logits(name):
    model = make(name).eval()
    data = batch(model)
    score = model.score(data["categorical"], data["numerical"])
    assert score.shape == (40,) and score.dtype == torch.float32
    torch.testing.assert_close(score, model.logits(data["categorical"], data["numerical"]).sigmoid())
    _, terms = model(**data)
    expected = logloss(score, data["label"]).item()
    assert terms.get("click", terms["loss"]).item() == pytest.approx(expected, rel=1e-5)


def test_a_row_depends_on_itself_alone(name):
    model = make(name)
    model(**batch(model))  # running statistics that are not the initial ones
    data = batch(model)
    part = {key: value[5:9] for key, value in data.items()}
    torch.testing.assert_close(scored(model, data)[5:9], scored(model, part), rtol=1e-5, atol=1e-6)


def test_an_absent_label_costs_nothing(name):
    model = make(name).eval()
    data = batch(model, 12)
    data["label"][4:] = torch.nan
    first = {key: value[:4] for key, value in data.items()}
    torch.testing.assert_close(model(**data)[0], model(**first)[0])
    data["label"][:] = -1
    loss, _ = model(**data)
    assert loss == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_one_row_is_a_batch(name):
    model = make(name)
    loss, _ = model(**batch(model, 1))
    loss.backward()
    assert torch.isfinite(loss)
    assert scored(model, batch(model, 1)).shape == (1,)


def test_an_id_outside_its_table_is_refused(name):
    model = make(name)
    data = batch(model)
    data["categorical"][3, 1] = 11
    with pytest.raises(ValueError, match="row 3, field 1: 11"):
        model(**data)


def test_labels_of_another_shape_are_refused(name):
    model = make(name)
    data = batch(model)
    data["label"] = data["label"][:7]
    with pytest.raises(ValueError, match="labels must be"):
        model(**data)


def test_state_survives_safetensors(name):
    model, other = make(name), make(name, seed=2)
    model(**batch(model))
    other.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(scored(model, batch(model)), scored(other, batch(model)))
    assert model(**batch(model))[0] == other(**batch(model))[0]


def test_the_seed_decides(name):
    def trained(seed):
        model = make(name, seed)
        for _ in fit(model, [batch(model), batch(model, seed=4)], torch.optim.Adam(model.parameters())):
            pass
        return model.state_dict()

    first, again, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_bfloat16_keeps_the_loss_in_float32(name):
    model = make(name).eval()
    data = batch(model)
    exact, _ = model(**data)
    with torch.autocast("cpu", torch.bfloat16):
        loss, terms = model(**data)
    loss.backward()
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize(("sizes", "dense"), [([6, 4], 0), ([4], 3)])
def test_columns_of_one_kind_are_enough(name, sizes, dense):
    torch.manual_seed(0)
    model = build("recommend.ctr", name, sizes, dense)
    logit = model.logits(torch.zeros(3, len(sizes), dtype=torch.long), torch.rand(3, dense))
    assert logit.shape == (3,) and torch.isfinite(logit).all()


def test_a_pair_of_ids_that_decides_is_learned(name):
    """The click is the equality of two ids: no first-order model can know it."""
    torch.manual_seed(0)
    small = {"embedding": 8, "dropout": 0.0}
    if "deep" in inspect.signature(method("recommend.ctr", name)).parameters:
        small["deep"] = [16, 16]
    if name == "xdeepfm":
        small["cin"] = [8, 8]
    if name == "position_bias":
        small = {"embedding": 8, "positions": 2, "settings": {"deep": [16, 16]}}
    model = build("recommend.ctr", name, [4, 4], 0, **small)
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 4, (256, 2), generator=draw)
    data = {"categorical": ids, "numerical": torch.empty(256, 0), "label": (ids[:, 0] == ids[:, 1]).float()}
    if name == "position_bias":
        data["position"] = torch.randint(1, 3, (256,), generator=draw)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in fit(model, [data] * 120, optimizer):
        pass
    assert auc(scored(model, data), data["label"]) > 0.95


def test_an_unknown_setting_is_refused(name):
    with pytest.raises(TypeError, match="it accepts: embedding"):
        make(name, wings=2)


def test_the_signature_starts_alike(name):
    first = list(inspect.signature(method("recommend.ctr", name)).parameters.values())
    assert [parameter.name for parameter in first[:3]] == ["sizes", "dense", "embedding"]
    assert all(parameter.default is not parameter.empty for parameter in first[2:])
