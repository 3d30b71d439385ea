"""Skipped blocks do not run, gates are honest about what they read, and their gradient is the soft one."""

import pytest
import torch

from models import build
from models.fit import fit
from models.recommend.session._session import left

SMALL = {"skip_sasrec": {"layers": 3, "width": 8, "length": 12}, "skip_nextitnet": {"dilations": [1, 2, 1], "width": 8}}


def make(name: str, seed: int = 0, **settings) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build("recommend.session", name, 9, **{**SMALL[name], **settings})


@pytest.fixture(params=list(SMALL))
def name(request) -> str:
    return request.param


def choose(model: torch.nn.Module, *runs: int) -> None:
    """Gates that only biases decide."""
    choice = model.policy.choose.requires_grad_(False)
    choice.weight.zero_()
    choice.bias.copy_(torch.tensor([[0.0, 2.0 * run - 1.0] for run in runs]).flatten())


def counted(model: torch.nn.Module) -> list[tuple[int, int]]:
    """(block, rows) of every call from here on."""
    calls = []
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda _, args, number=number: calls.append((number, len(args[0]))))
    return calls


ROWS = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 3, 4, 5], [0, 6, 7, 8, 9]])


def test_a_block_that_no_row_wants_is_never_called(name):
    model = make(name).eval()
    choose(model, 1, 0, 1)
    calls = counted(model)
    score = model.score(ROWS)
    assert calls == [(0, 3), (2, 3)]
    items, length = left(ROWS, 9)
    x = model.blocks[2](model.blocks[0](model.embed(items)))
    expected = model.finish(x)[torch.arange(3), length - 1] @ model.item.weight[1:].T
    torch.testing.assert_close(score[:, 1:], expected.detach(), rtol=1e-4, atol=1e-5)


def test_all_blocks_on_is_the_whole_model_and_all_off_runs_none(name):
    model = make(name).eval()
    choose(model, 1, 1, 1)
    torch.testing.assert_close(model.score(ROWS), model.score_all(ROWS))
    choose(model, 0, 0, 0)
    calls = counted(model)
    assert not torch.allclose(model.score(ROWS)[:, 1:], model.score_all(ROWS)[:, 1:])
    assert calls == [(0, 3), (1, 3), (2, 3)]  # those of score_all


def test_rows_that_differ_run_apart(name):
    model = make(name, seed=4).eval()
    model.policy.choose.weight.data.normal_(0, 3)
    model.item.weight.data[1:].normal_()
    wanted = model.wanted(ROWS)
    assert 0 < wanted.float().mean() < 1 and len(wanted.unique(dim=0)) > 1
    calls = counted(model)
    whole = model.score(ROWS)
    assert calls == [(block, int(n)) for block, n in enumerate(wanted.sum(0)) if n]
    for row in range(3):
        torch.testing.assert_close(model.score(ROWS[row : row + 1])[0], whole[row], rtol=1e-4, atol=1e-5)


def test_gates_read_only_what_was_before(name):
    """A gate made from a whole row would tell the trained place about its own label."""
    model = make(name)
    seen = []
    policy = model.policy.forward
    model.policy.forward = lambda x, length: seen.append((x.detach().clone(), length)) or policy(x, length)
    model(torch.tensor([[0, 1, 2, 3]]))
    model(torch.tensor([[0, 1, 2, 9]]))
    assert [length.tolist() for _, length in seen] == [[2], [2]]
    logits = [policy(x, length) for x, length in seen]
    assert torch.equal(*logits)


def test_the_gradient_of_a_gate_is_that_of_the_soft_choice(name):
    model = make(name, temperature=7.0).eval()
    items, length = left(ROWS, 9)
    logit = model.policy(model.item(items), length).detach().requires_grad_()
    model.policy.forward = lambda x, length: logit
    gate = model.gates(items, length)
    assert set(gate.unique().tolist()) <= {0.0, 1.0}
    gate.sum().backward()
    soft = (logit.detach() / 7).softmax(-1)[..., 1]
    torch.testing.assert_close(logit.grad[..., 1], soft * (1 - soft) / 7)


def test_noise_makes_gates_chances(name):
    # Logits 0 and ln 3: a Gumbel choice runs the block with chance 3/4.
    model = make(name).train()
    choice = model.policy.choose.requires_grad_(False)
    choice.weight.zero_()
    choice.bias.copy_(torch.tensor([0.0, 3.0]).log().nan_to_num(neginf=0.0).repeat(3))
    items, length = left(ROWS.repeat(2000, 1), 9)
    assert model.gates(items, length).mean().item() == pytest.approx(0.75, abs=0.02)
    model.step += 1
    first = model.gates(items, length)
    model.step += 1
    assert not torch.equal(first, model.gates(items, length))


def test_a_high_price_switches_blocks_off(name):
    model = make(name, price=30.0, **({"dropout": 0.0} if name == "skip_sasrec" else {}))
    rows = (torch.arange(9)[:, None] + torch.arange(6)) % 9 + 1
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    terms = list(fit(model.train(), [{"items": rows}] * 60, optimizer))
    assert terms[-1]["runs"] < 0.2
    model.eval()
    assert model.wanted(rows).float().mean() < 0.2
    followed = model.score_all(rows[:, :3]).argmax(-1) == rows[:, 3]
    assert followed.float().mean() > 0.8  # the whole model stays a whole model


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"price": -1.0}])
def test_impossible_gates_are_refused(name, settings):
    with pytest.raises(ValueError, match="a temperature above 0 and a price of 0 or more"):
        make(name, **settings)
