"""One number worked out by hand for each method that compares signals, and the schedules of those that have one."""

import math

import pytest
import torch

from models import build
from models.distill._signals import Shape, Signals

LN43 = math.log(4 / 3) / 2  # KL((1/2, 1/2) || (3/4, 1/4)), in nats
EVEN, SKEW = [[0.0, 0.0]], [[math.log(3), 0.0]]  # logits of (1/2, 1/2) and (3/4, 1/4)
ONE = torch.ones(1, 1, dtype=torch.bool)


def shape(layers: int, width: int = 2) -> Shape:
    return Shape(layers=layers, width=width, heads=1, vocabulary=2, classes=2)


def seen(task=None, states=(), logits=None, scores=(), mask=ONE) -> Signals:
    """One row; states from level 0 on, each a list of places."""
    levels = [torch.tensor(state)[None] for state in states]
    return Signals(
        mask,
        task=None if task is None else torch.tensor(task),
        logits=None if logits is None else torch.tensor(logits)[None],
        embedding=levels[0] if levels else None,
        hidden=levels[1:],
        scores=[torch.tensor(s)[None, None] for s in scores],
    )


def loss(name: str, student: Signals, teacher: Signals, layers: int = 1, width: int = 2, **settings) -> float:
    both = shape(layers, width)
    return build("distill", name, both, both, **settings)(student, teacher).item()


def test_kd():
    # tau = 1: CE = KL + entropy of (1/2, 1/2). tau = 2 on logits twice as large: the same, times tau^2 = 4.
    assert loss("kd", seen(SKEW), seen(EVEN), temperature=1.0) == pytest.approx(LN43 + math.log(2))
    twice = [[2 * math.log(3), 0.0]]
    assert loss("kd", seen(twice), seen(EVEN), temperature=2.0) == pytest.approx(4 * (LN43 + math.log(2)))
    bare = loss("kd", seen(twice), seen(EVEN), temperature=2.0, squared=False)
    assert bare == pytest.approx(LN43 + math.log(2))
    with pytest.raises(ValueError, match="temperature .* above 0, and finite; got 0"):
        loss("kd", seen(SKEW), seen(EVEN), temperature=0)


def test_pd():
    assert loss("pd", seen(SKEW), seen(EVEN)) == pytest.approx(LN43 + math.log(2))


def test_pkd():
    # [CLS] of layer 1: (3, 4) has direction (.6, .8), the teacher's (1, 0): mean((.4^2, .8^2)) = .4. Layer 2 is out.
    student = seen(EVEN, [[[0.0, 0.0]], [[3.0, 4.0]], [[9.0, 9.0]]])
    teacher = seen(EVEN, [[[0.0, 0.0]], [[2.0, 0.0]], [[1.0, 5.0]]])
    assert loss("pkd", student, teacher, layers=2) == pytest.approx(100 * 0.4)
    skewed = seen([[10 * math.log(3), 0.0]], [[[0.0, 0.0]], [[2.0, 0.0]], [[9.0, 9.0]]])
    assert loss("pkd", skewed, teacher, layers=2) == pytest.approx(0.5 * 100 * LN43)  # alpha tau^2 KL


def test_distilbert():
    # 5 * 4 * KL of logits halved, and cos((1, 0), (0, 2)) = 0: distance 1. The second place is padding.
    mask = torch.tensor([[True, False]])
    student = seen(None, [[[0.0, 0.0]] * 2, [[1.0, 0.0], [7.0, 7.0]]], [[2 * math.log(3), 0.0], [9.0, 0.0]], mask=mask)
    teacher = seen(None, [[[0.0, 0.0]] * 2, [[0.0, 2.0], [1.0, 1.0]]], [[0.0, 0.0], [0.0, 5.0]], mask=mask)
    assert loss("distilbert", student, teacher) == pytest.approx(5 * 4 * LN43 + 1)


def test_tinybert():
    # Scores differ by 1 in one of 4 pairs: 1/4. Level 0 by 2 in one of 4 numbers: 1. Level 1 by 1 in all: 1.
    mask = torch.ones(1, 2, dtype=torch.bool)
    zero = [[0.0, 0.0], [0.0, 0.0]]
    student = seen(
        None, [[[2.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]], scores=[[[1.0, 0.0], [0.0, 0.0]]], mask=mask
    )
    teacher = seen(None, [zero, zero], scores=[zero], mask=mask)
    assert loss("tinybert", student, teacher) == pytest.approx(0.25 + 1 + 1)
    assert loss("tinybert", seen(SKEW), seen(EVEN), stage="logits") == pytest.approx(LN43 + math.log(2))
    with pytest.raises(ValueError, match="no stage 'last'; its stages: pretrain, inner, logits"):
        loss("tinybert", student, teacher, stage="last")


def test_tinybert_leaves_padded_scores_out():
    mask = torch.tensor([[True, False]])
    lowest = torch.finfo(torch.float32).min
    zero = [[0.0, 0.0], [0.0, 0.0]]
    student = seen(None, [zero, zero], scores=[[[1.0, lowest], [3.0, lowest]]], mask=mask)
    teacher = seen(None, [zero, zero], scores=[[[0.0, -1e4], [0.0, -1e4]]], mask=mask)
    assert loss("tinybert", student, teacher) == pytest.approx(1.0)  # the one real pair


def test_mobilebert():
    # Stage 1 of 3: embedding (1, 1) apart: .1 * 1. Layer 1: KL 1/2 ln(4/3) at both places, states 2 apart in one of 4.
    mask = torch.ones(1, 2, dtype=torch.bool)
    zero, scores = [[0.0, 0.0], [0.0, 0.0]], [[math.log(3), 0.0]] * 2
    student = seen(None, [[[1.0, 1.0]] * 2, [[2.0, 0.0], [0.0, 0.0]], zero], scores=[scores, zero], mask=mask)
    teacher = seen(None, [zero, zero, zero], scores=[zero, zero], mask=mask)
    method = build("distill", "mobilebert", shape(2), shape(2))
    method.set_total(9)
    assert method(student, teacher).item() == pytest.approx(0.5 * (0.1 + LN43 + 1))
    assert method.hard_weight() == 0
    for _ in range(3):
        method.advance()
    assert method.taught == 2
    assert method(student, teacher).item() == pytest.approx(0.5 * 0.1 * (1 + LN43 + 1))
    for _ in range(3):
        method.advance()
    assert method.taught == 3 and method.hard_weight() == 1
    assert method(student, teacher).item() == pytest.approx(0.5 * 0.1 * (1 + LN43 + 1))


def test_sid():
    # Layer 1: KL of scores, and 1 - cos((1, 0), (3, 4)) = 1 - .6. Only after the last stage do logits count.
    mask = torch.ones(1, 2, dtype=torch.bool)
    zero = [[0.0, 0.0], [0.0, 0.0]]
    student = seen(SKEW, [zero, [[1.0, 0.0], [5.0, 5.0]]], scores=[[[math.log(3), 0.0]] * 2], mask=mask)
    teacher = seen(EVEN, [zero, [[3.0, 4.0], [0.0, 1.0]]], scores=[zero], mask=mask)
    method = build("distill", "sid", shape(1), shape(1))
    method.set_total(2)
    assert method(student, teacher).item() == pytest.approx(LN43 + 0.4)
    method.advance()
    assert method(student, teacher).item() == pytest.approx(LN43 + 0.4 + LN43 + math.log(2))


def test_stages_of_progressive_methods():
    method = build("distill", "sid", shape(3), shape(3))
    method.set_total(10)
    stages = []
    for step in range(10):
        assert method.taught == 1 + step * 4 // 10
        stages.append(method.taught)
        method.advance()
    assert stages == [1, 1, 1, 2, 2, 3, 3, 3, 4, 4]


def test_alp_kd():
    # c_s = (ln 3, 0), teachers (1, 0) and (0, 4): shares (3/4, 1/4), mixture (3/4, 1).
    student = seen(EVEN, [[[0.0, 0.0]], [[math.log(3), 0.0]], [[math.log(3), 0.0]]])
    teacher = seen(EVEN, [[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 4.0]]])
    apart = ((math.log(3) - 0.75) ** 2 + 1) / 2
    found = loss("alp_kd", student, teacher, layers=2, temperature=1.0)
    assert found == pytest.approx(0.7 * math.log(2) + 0.2 * 2 * apart, rel=1e-5)


def test_annealing_kd():
    method = build("distill", "annealing_kd", shape(1), shape(1))
    method.set_total(14)
    student, teacher = seen([[1.0, 0.0]]), seen([[7.0, 0.0]])
    steps = []
    for _ in range(15):
        steps.append(method(student, teacher).item())
        method.advance()
    phi = [k / 7 for k in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7)]
    assert steps == pytest.approx([(1 - 7 * p) ** 2 / 2 for p in phi])
    assert build("distill", "annealing_kd", shape(1), shape(1), stage="hard").hard_weight() == 1


def test_continuation_kd():
    method = build("distill", "continuation_kd", shape(1), shape(1))
    method.set_total(1000)
    # At step 0, phi = 1/10 and psi = 0: u = ((1 - 1)^2 + (2 - 0)^2) / 2 = 2 > phi.
    assert method(seen([[1.0, 2.0]]), seen([[10.0, 0.0]])).item() == pytest.approx(2.0)
    assert method(seen([[1.0, 0.4]]), seen([[10.0, 0.0]])).item() == 0  # u = .08 is learned already
    method.step.fill_(666)
    assert method.hard_weight() == pytest.approx(0.4996, abs=1e-4)
    method.step.fill_(667)
    assert method.hard_weight() == 1
    assert method(seen([[1.0, 2.0]]), seen([[10.0, 0.0]])).item() == 0


def test_rail_kd():
    # Both pooled states through one map without change: directions (1, 0) and (0, 1), squared distance 2.
    method = build("distill", "rail_kd", shape(2), shape(2), temperature=1.0, width=2)
    for map_ in (*method.student_maps, *method.teacher_maps):
        torch.nn.init.eye_(map_.weight)
        torch.nn.init.zeros_(map_.bias)
    mask = torch.tensor([[True, True, False]])
    student = seen(EVEN, [[[0.0, 0.0]] * 3, [[1.0, 0.0], [3.0, 0.0], [0.0, 9.0]], [[0.0, 0.0]] * 3], mask=mask)
    teacher = seen(EVEN, [[[0.0, 0.0]] * 3, [[0.0, 1.0], [0.0, 1.0], [9.0, 0.0]], [[0.0, 0.0]] * 3], mask=mask)
    assert method(student, teacher).item() == pytest.approx((math.log(2) + 2) / 3)


def test_rail_kd_draws_sorted_layers_once_an_epoch():
    method = build("distill", "rail_kd", shape(4), shape(12), width=2)
    method.set_total(40, epochs=20)
    drawn = []
    for _ in range(40):
        drawn.append(method.drawn())
        method.advance()
    assert all(numbers == sorted(set(numbers)) and len(numbers) == 3 and max(numbers) < 11 for numbers in drawn)
    assert all(drawn[2 * e] == drawn[2 * e + 1] for e in range(20))
    assert len({tuple(numbers) for numbers in drawn}) > 10
    with pytest.raises(ValueError, match="inner layers"):
        build("distill", "rail_kd", shape(1), shape(3))


def test_universal_kd():
    # One layer each counts. Maps are the identity: S = (ln 3, 0), the one teacher state (0, 0) is its own mixture.
    student = seen(EVEN, [[[0.0, 0.0]], [[math.log(3), 0.0]], [[5.0, 5.0]]])
    teacher = seen(EVEN, [[[0.0, 0.0]], [[0.0, 0.0]], [[7.0, 1.0]]])
    assert loss("universal_kd", student, teacher, layers=2) == pytest.approx(0.5 * LN43)
    assert build("distill", "universal_kd", shape(2), shape(2), stage="hard").hard_weight() == 1
