"""Purchase intent: reads items, events and pauses, nothing of padding, nothing later."""

import math

import pytest
import torch
from safetensors.torch import load, save

from models import build
from models.fit import fit
from models.metrics import auc


def make(seed: int = 0, **settings) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build("recommend.session", "intent", 9, **{"dropout": 0.0, "units": 16, **settings})


def rows(count: int = 200, seed: int = 1) -> dict[str, torch.Tensor]:
    """Who carted (event 3) after a short pause buys."""
    draw = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 7, (count, 1), generator=draw)
    real = torch.arange(6) >= 6 - length
    events = torch.randint(1, 4, (count, 6), generator=draw) * real
    gaps = torch.randint(0, 2, (count, 6), generator=draw) * 500.0 * real
    label = ((events == 3) & (gaps == 0)).any(1).float()
    return {
        "items": torch.randint(1, 10, (count, 6), generator=draw) * real,
        "events": events,
        "gaps": gaps,
        "label": label,
    }


def test_a_silent_model_gives_even_chances():
    model = make().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.out.bias.fill_(math.log(3))
    data = rows(4)
    label = data.pop("label")
    assert model.score(**data).tolist() == pytest.approx([0.75] * 4)
    label[:] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    expected = -(3 * math.log(0.75) + math.log(0.25)) / 4
    assert model(**data, label=label)[0].item() == pytest.approx(expected, rel=1e-5)


def test_it_learns_from_events_and_pauses():
    model, data = make(), rows(300)
    for _ in fit(model, [data] * 120, torch.optim.Adam(model.parameters(), lr=0.01)):
        pass
    fresh = rows(300, seed=2)
    label = fresh.pop("label")
    assert auc(model.eval().score(**fresh).detach(), label) > 0.9


def test_padding_changes_nothing():
    model, data = make().eval(), rows(20)
    data.pop("label")
    wide = {key: torch.cat([torch.zeros(20, 4, dtype=value.dtype), value], 1) for key, value in data.items()}
    wide["gaps"][:, :4] = 99.0  # whatever stands at padding
    torch.testing.assert_close(model.score(**data), model.score(**wide))
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in data.items()}
        torch.testing.assert_close(model.score(**alone)[0], model.score(**data)[row])


def test_an_absent_label_and_every_parameter():
    model, data = make(), rows(20)
    data["label"][5:] = torch.nan
    first = {key: value[:5] for key, value in data.items()}
    torch.testing.assert_close(model(**data)[0], model(**first)[0])
    model(**rows())[0].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    twin = make(1)
    twin.load_state_dict(load(save(model.state_dict())))
    assert model(**first)[0] == twin(**first)[0]


def test_impossible_rows_are_refused():
    model, data = make(), rows(3)
    data["events"][0, -1] = 7
    with pytest.raises(ValueError, match="outside 0..6"):
        model(**data)
    data = rows(3)
    data["events"][:] = 0
    with pytest.raises(ValueError, match="one shape and one padding"):
        model(**data)
    data = rows(3)
    data["items"][1], data["events"][1] = 0, 0
    with pytest.raises(ValueError, match="1 of 3 rows have no event"):
        model(**data)
    with pytest.raises(ValueError, match="must be 1 or more"):
        make(events=0)
