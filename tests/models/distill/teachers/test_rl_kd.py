"""RL-KD: both stages by hand, and a policy that finds the better teacher."""

import math

import pytest
import torch

from models import build
from models.distill._signals import Shape, Signals

SHAPE = Shape(1, 2, 1, classes=2)
KL = math.log(4 / 3) / 2


def seen(*task, hard=None, state=None) -> Signals:
    mask = torch.ones(len(task), 1, dtype=torch.bool)
    hidden = [] if state is None else [torch.tensor(state)[:, None]]
    hard = torch.zeros(len(task)) if hard is None else torch.tensor(hard)
    return Signals(mask, task=torch.tensor(task), hard=hard, hidden=hidden)


def make(stage="policy", **settings):
    torch.manual_seed(0)
    return build("distill.teachers", "rl_kd", SHAPE, [SHAPE, SHAPE], stage=stage, method="pd", **settings)


def fixed(method, *logits: float):
    """A policy that thinks the same of every row."""
    for layer in (method.by_state, method.by_logits):
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    method.by_state.bias.data = torch.tensor(logits)
    return method


STUDENT = seen([math.log(3), 0.0], [0.0, 0.0], hard=[2.0, 4.0])
TEACHERS = [seen([0.0, 0.0], [0.0, 0.0], hard=[0.5, 1.0]), seen([math.log(3), 0.0], [0.0, 0.0], hard=[0.2, 0.3])]
ROWS = [[KL + math.log(2), math.log(2)], [0.75 * math.log(4 / 3) + 0.25 * math.log(4), math.log(2)]]


def test_the_average_by_hand():
    method = make("average")
    expected = 0.5 * sum(map(sum, ROWS)) / 4
    assert method(STUDENT, TEACHERS).item() == pytest.approx(expected, rel=1e-5)
    assert method.hard_weight() == 0.5 and make("average", alpha=0.8).hard_weight() == pytest.approx(0.2)
    assert list(method.parameters()) == []
    default = build("distill.teachers", "rl_kd", SHAPE, [SHAPE, SHAPE])
    assert default.stage == "average" and default.methods[0].temperature == 10


def test_only_chosen_teachers_teach():
    # a policy as good as sure: teacher 0 on all rows, teacher 1 on none; the mean is over rows and teachers
    method = fixed(make(), 99.0, -99.0)
    assert method(STUDENT, TEACHERS).item() == pytest.approx(0.5 * sum(ROWS[0]) / 4, rel=1e-5)
    none = fixed(make(), -99.0, -99.0)
    assert none(STUDENT, TEACHERS).item() == 0


def test_the_policy_reads_state_losses_and_logits():
    method = fixed(make(encoder=2), 0.0, 0.0)
    encoder = seen([0.0], [0.0], state=[[1.0, 2.0], [3.0, 4.0]])
    row = method.seen(TEACHERS, encoder)[0].tolist()
    assert row == pytest.approx([1, 2, 0.5, 0.2, 0, 0, math.log(3), 0])
    method.by_state.weight.data[0, :3] = torch.tensor([1.0, 10.0, 100.0])
    method.by_logits.weight.data[1, 2] = 2.0
    found = method.logits(method.seen(TEACHERS, encoder))
    torch.testing.assert_close(found, torch.tensor([[71.0, 2 * math.log(3)], [143.0, 0.0]]))
    with pytest.raises(ValueError, match="separate encoder, whose signals are missing"):
        method(STUDENT, TEACHERS)


@pytest.mark.parametrize("reward", [1, 2])
def test_the_policy_learns_one_step_late_and_from_log_pi(reward):
    method = fixed(make(reward=reward), math.log(3), 0.0)  # pi = (3/4, 1/2)
    first = method(STUDENT, TEACHERS)
    assert not first.requires_grad  # nothing is known of the choices yet
    chosen = method._before[1].double()
    method.advance()
    later = seen([0.0, 0.0], [0.0, 0.0], hard=[1.0, 2.0])
    method.alpha = 0.0
    loss = method(later, TEACHERS)
    gain = -1.5 if reward == 1 else -1.5 - (0.75 + 0.25) / 2
    pi = torch.tensor([0.75, 0.5]).double()
    log_pi = (chosen * pi.log() + (1 - chosen) * (1 - pi).log()).sum(-1).mean()
    assert loss.item() == pytest.approx(-gain * log_pi.item(), rel=1e-5)
    loss.backward()
    # of log pi by the bias: a - pi; the sum of pi alone would have given (2a - 1) pi (1 - pi)
    expected = -gain * (chosen - pi).mean(0)
    torch.testing.assert_close(method.by_state.bias.grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_rewards_the_same_choices():
    method = make()
    method(STUDENT, TEACHERS)
    method.advance()
    again = make()
    again.load_state_dict(method.state_dict())
    assert torch.equal(again._before[0], method._before[0]) and torch.equal(again._before[1], method._before[1])
    assert torch.equal(again(STUDENT, TEACHERS), method(STUDENT, TEACHERS))
    fresh = make()
    fresh.load_state_dict(make().state_dict())
    assert fresh._before is None


def test_evaluation_leaves_the_policy_alone():
    method = make().eval()
    method(STUDENT, TEACHERS)
    assert method._before is None


def test_the_policy_finds_the_teacher_that_helps():
    # the student loses 1 whenever it listened to teacher 1 in the step before, and nothing otherwise
    method, listened = fixed(make(), 0.0, 0.0), False
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    for _ in range(400):
        student = seen([0.0, 0.0], hard=[1.0 if listened else 0.0])
        loss = method(student, [seen([0.0, 0.0]), seen([0.0, 0.0])])
        listened = bool(method._before[1][0, 1])
        if loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        method.advance()
    pi = method.logits(torch.zeros(1, 6)).sigmoid()[0]
    assert pi[1] < 0.1


def test_bad_inputs():
    with pytest.raises(ValueError, match="rewards 1 and 2, not 3"):
        make(reward=3)
    with pytest.raises(ValueError, match="alpha is a share, from 0 to 1; got 2"):
        make(alpha=2)
    bare = Shape(1, 2, 1)
    with pytest.raises(ValueError, match="they have no classes"):
        build("distill.teachers", "rl_kd", bare, [bare, bare], stage="policy")
    with pytest.raises(ValueError, match="a teacher's `hard` is missing"):
        make()(STUDENT, [Signals(t.mask, task=t.task) for t in TEACHERS])
