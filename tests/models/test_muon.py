"""Muon: one step by hand, which parameters are its, and one optimizer to schedules and checkpoints."""

import json
from copy import deepcopy

import pytest
import torch
from torch import nn

from models.components._model import assemble
from models.muon import Muon, matrices_of_layers

BERT = {"width": 8, "vocabulary": 20, "embedding": {"word": {}, "position": {"length": 6}}, "target": {"mlm": {}},
        "encoder": {"transformer": {"layers": 2, "heads": 2, "inner": 12}}}  # fmt: skip


def made() -> nn.Module:
    torch.manual_seed(3)
    return assemble(BERT)


def optimizer_of(model: nn.Module, lr: float = 0.1) -> Muon:
    matrices, rest = parted(model)
    return Muon(matrices, [{"params": rest, "weight_decay": 0.0}], lr, (0.9, 0.95), 0.1)


def parted(model: nn.Module) -> tuple[list, list]:
    matrices = matrices_of_layers(model)
    return matrices, [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def test_the_first_step_by_hand():
    """The gradient (3, 4) has one singular value; made 1, five steps of 3.4445 x - 4.775 x^3 + 2.0315 x^5 bring it to
    0.7010, 1.1136, 0.7207, 1.0900, 0.6964; the step is lr .2 sqrt(2) times that along (.6, .8)."""
    value = 1.0
    for _ in range(5):
        value = 3.4445 * value - 4.775 * value**3 + 2.0315 * value**5
    matrix = nn.Parameter(torch.zeros(1, 2))
    matrix.grad = torch.tensor([[3.0, 4.0]])
    Muon([matrix], [{"params": [nn.Parameter(torch.zeros(1))]}], 0.5, (0.9, 0.95), 0.0).step()
    expected = -0.5 * 0.2 * 2**0.5 * value * torch.tensor([[0.6, 0.8]])
    assert torch.allclose(matrix, expected, rtol=0.03)  # bfloat16 inside


def test_layers_have_matrices_and_nothing_else_does():
    model = made()
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(p)] for p in matrices_of_layers(model)]
    assert len(found) == 2 * 6 and all(name.startswith("encoder.layers.") for name in found)
    model.encoder.layers[0].requires_grad_(False)
    assert len(matrices_of_layers(model)) == 6


def test_it_is_torchs_two_optimizers():
    one, two = made(), made()
    matrices, rest = parted(two)
    parts = [torch.optim.Muon(matrices, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
             torch.optim.AdamW(rest, lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)]  # fmt: skip
    whole = optimizer_of(one)
    for seed in range(3):
        stepped(one, whole, seed)
        stepped(two, parts[0], seed)
        parts[1].step()
    for ours, apart in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(ours, apart, atol=1e-6)


def test_a_schedule_reaches_both():
    model = made()
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    stepped(model, optimizer, 0)
    schedule.step()
    before = deepcopy(model.state_dict())
    stepped(model, optimizer, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_its_state_goes_on():
    one, two = made(), made()
    first, second = optimizer_of(one), optimizer_of(two)
    for seed in range(2):
        stepped(one, first, seed)
    state = first.state_dict()
    assert sorted(state["state"]) == list(range(len(list(one.parameters()))))
    groups = json.loads(json.dumps(state["param_groups"]))
    two.load_state_dict(one.state_dict())
    second.load_state_dict({"state": deepcopy(state["state"]), "param_groups": groups})
    for model, optimizer in ((one, first), (two, second)):
        stepped(model, optimizer, 5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    for group in second.param_groups:
        group["lr"] = 0.0
    before = deepcopy(two.state_dict())
    stepped(two, second, 6)
    assert all(torch.equal(value, before[name]) for name, value in two.state_dict().items())


def test_a_matrix_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="2D"):
        Muon([nn.Parameter(torch.zeros(3))], [{"params": [nn.Parameter(torch.zeros(1))]}], 0.1, (0.9, 0.95), 0.0)
