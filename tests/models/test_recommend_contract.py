"""What every multi-task recommender promises, also the one added tomorrow."""

import inspect

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from models import build, method, names
from models.metrics import logloss

FAMILY = names("recommend")
SIZES, DENSE, TASKS = [5, 11, 3], 2, 2


def make(name: str, seed: int = 1, **settings) -> nn.Module:
    torch.manual_seed(seed)
    return build("recommend", name, SIZES, DENSE, TASKS, **settings)


def rows(count: int = 40, seed: int = 3) -> dict[str, torch.Tensor]:
    """Labels are ordered steps, a conversion needs a click: then every method reads them alike."""
    draw = torch.Generator().manual_seed(seed)
    click = (torch.rand(count, generator=draw) < 0.6).float()
    return {
        "categorical": torch.stack([torch.randint(0, size, (count,), generator=draw) for size in SIZES], 1).int(),
        "numerical": torch.rand(count, DENSE, generator=draw),
        "labels": torch.stack([click, click * (torch.rand(count, generator=draw) < 0.5)], 1),
    }


def batch(model: nn.Module, count: int = 40, seed: int = 3) -> dict[str, torch.Tensor]:
    """A batch of what the model's forward takes; a pseudo-domain only where it asks for one."""
    made = rows(count, seed)
    if "domain" in inspect.signature(model.forward).parameters:
        made["domain"] = torch.arange(count) % TASKS
        model.total.fill_(1)
        model.step.fill_(1)  # the end of the training: the adversary at full strength
    return made


def shown(model: nn.Module, count: int = 40) -> dict[str, torch.Tensor]:
    made = rows(count)
    return model.eval().represent(made["categorical"], made["numerical"])


@pytest.fixture(params=FAMILY)
def name(request) -> str:
    return request.param


def test_every_parameter_is_trained(name):
    model = make(name)
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters())
    for seed in (3, 4):
        model(**batch(model, seed=seed))[0].backward()
        optimizer.step()
    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []


def test_all_state_is_parameters_or_buffers(name):
    """A layer in a plain list is never trained, saved or moved; a plain tensor is neither saved nor moved."""
    for key, module in make(name).named_modules():
        for attribute, value in vars(module).items():
            held = value if isinstance(value, (list, tuple)) else [value]
            assert not any(isinstance(part, (torch.Tensor, nn.Module)) for part in held), f"{key}.{attribute}"


def test_an_absent_label_costs_nothing(name):
    model = make(name).eval()  # no dropout: the losses of two calls can be compared
    data = batch(model)
    data["labels"][:, 0] = 1  # a product with an absent factor is absent only where the other factor is 1
    data["labels"][:, 1] = torch.nan
    loss, terms = model(**data)
    assert torch.isfinite(loss)
    assert terms["task_1"] == 0
    gradients = torch.autograd.grad(terms["task_1"], list(model.parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    data["labels"][:, 1] = -1
    assert torch.equal(model(**data)[0], loss)


def test_an_absent_row_leaves_the_mean_of_the_others(name):
    model = make(name).eval()
    data = batch(model, 12)
    data["labels"][4:, 1] = torch.nan
    data["labels"][4:, 0] = 1
    first = {key: value[:4] for key, value in data.items()}
    torch.testing.assert_close(model(**data)[1]["task_1"], model(**first)[1]["task_1"])


def test_score_is_what_forward_trains(name):
    model = make(name).eval()
    data = batch(model)
    _, terms = model(**data)
    score = model.score(data["categorical"], data["numerical"])
    assert score.shape == (40, TASKS)
    assert score.dtype == torch.float32
    assert bool(((score > 0) & (score < 1)).all())
    for task in range(TASKS):
        expected = logloss(score[:, task], data["labels"][:, task]).item()
        assert terms[f"task_{task}"].item() == pytest.approx(expected, rel=1e-5)


def test_terms_are_scalars_and_hold_the_loss(name):
    model = make(name)
    loss, terms = model(**batch(model))
    assert terms["loss"] is loss
    assert all(term.shape == () and term.dtype == torch.float32 for term in terms.values())


def test_a_head_trains_and_the_backbone_does_not_move(name):
    model = make(name).eval().requires_grad_(False)
    data = rows()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    old = model.score(data["categorical"], data["numerical"])
    head = model.head().train()
    start = {key: value.clone() for key, value in head.named_parameters()}
    optimizer = torch.optim.Adam(head.parameters())
    for _ in range(3):
        head.loss(shown(model), data["labels"][:, 1]).backward()
        optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model.score(data["categorical"], data["numerical"]), old)
    assert [key for key, value in head.named_parameters() if torch.equal(value, start[key])] == []
    shared = {value.data_ptr() for value in model.state_dict().values()}
    assert not shared & {value.data_ptr() for value in head.state_dict().values()}


def test_a_head_gives_one_logit_per_row_and_masks_labels(name):
    model = make(name)
    head = model.head().eval()
    table = shown(model)
    logit = head(table)
    assert logit.shape == (40,)
    label = rows()["labels"][:, 0]
    assert torch.isfinite(head.loss(table, label))
    absent = head.loss(table, torch.full_like(label, torch.nan))
    label[7:] = torch.nan
    few = head.loss({key: value[:7] for key, value in table.items()}, label[:7])
    # What stays without labels are penalties of weights; they are the same in both.
    torch.testing.assert_close(head.loss(table, label), few)
    expected = nn.functional.binary_cross_entropy_with_logits(logit[:7], label[:7])
    torch.testing.assert_close(few - absent, expected)


def test_represent_keeps_rows_apart_and_repeats_itself(name):
    model = make(name)
    model(**batch(model))  # running statistics that are not the initial ones
    data, table = rows(), shown(model)
    again = shown(model)
    part = model.represent(data["categorical"][5:9], data["numerical"][5:9])
    for key, value in table.items():
        assert torch.equal(value, again[key])
        assert not value.requires_grad
        torch.testing.assert_close(part[key], value[5:9], rtol=1e-5, atol=1e-6)


def test_represent_refuses_training_mode(name):
    data = rows()
    with pytest.raises(RuntimeError, match="training mode"):
        make(name).train().represent(data["categorical"], data["numerical"])


def test_one_row_is_a_batch(name):
    model = make(name)
    loss, _ = model(**batch(model, 1))
    loss.backward()
    assert torch.isfinite(loss)
    table = shown(model, 1)
    assert model.score(*list(rows(1).values())[:2]).shape == (1, TASKS)
    head = model.head().train()
    assert torch.isfinite(head.loss(table, torch.ones(1)))
    assert head.eval()(table).shape == (1,)


def test_state_survives_safetensors(name):
    model = make(name, seed=1)
    model(**batch(model))
    other = make(name, seed=2)
    other.load_state_dict(load(save(model.state_dict())))
    data = rows()
    columns = data["categorical"], data["numerical"]
    assert torch.equal(model.eval().score(*columns), other.eval().score(*columns))
    head, twin = model.head(), other.head()
    twin.load_state_dict(load(save(head.state_dict())))
    table = shown(model)
    assert torch.equal(head.eval()(table), twin.eval()(table))


def test_the_seed_decides(name):
    def trained(seed):
        model = make(name, seed)
        optimizer = torch.optim.Adam(model.parameters())
        for step in range(2):
            optimizer.zero_grad()
            model(**batch(model, seed=step))[0].backward()
            optimizer.step()
        return model.state_dict()

    first, second, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(first[key], second[key]) for key in first)
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
    assert all(value.dtype != torch.bfloat16 for value in model.state_dict().values())


def test_an_unknown_setting_is_refused(name):
    with pytest.raises(TypeError, match="it accepts: sizes, dense|it accepts: embedding"):
        make(name, wings=2)
    with pytest.raises(TypeError, match="wings"):
        make(name).head(wings=2)


def test_labels_of_another_shape_are_refused(name):
    model = make(name)
    data = batch(model)
    data["labels"] = torch.cat([data["labels"], data["labels"]], 1)
    with pytest.raises(ValueError, match="labels must be"):
        model(**data)


def test_the_signature_starts_alike(name):
    first = list(inspect.signature(method("recommend", name)).parameters.values())
    assert [parameter.name for parameter in first[:4]] == ["sizes", "dense", "tasks", "embedding"]
    assert all(parameter.default is not parameter.empty for parameter in first[3:])
    assert all(p.default is not p.empty for p in list(inspect.signature(make(name).head).parameters.values()))
