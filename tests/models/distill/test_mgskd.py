"""MGSKD: tokens, spans and samples by hand, and which tokens count."""

import dataclasses
import math

import pytest
import torch

from models import build
from models.distill._signals import Shape, Signals
from models.distill.mgskd import attended, pair_error, sample_loss, span_means, token_loss
from tests.models.distill._draw import SMALL, signals

# As for CKD: angles of a right-angled student and an equilateral teacher; here half of their squares (smooth-L1).
RIGHT, EQUAL = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]]
ANGLE = (2 * (0.5**0.5 - 0.5) ** 2 + 0.25) / 3 / 2
PAIR = 6 * (0.5 / 2**0.5) ** 2 / 9  # dot products / sqrt(2): six of nine are 1/2 off
SHAPE = Shape(1, 2, 1, classes=2)


def seen(states, spans=None) -> Signals:
    """Level 0 is equilateral for all; states (B, T, 2) are level 1."""
    state = torch.tensor(states)
    level0 = torch.tensor(EQUAL)[None].expand(len(state), -1, -1)[:, : state.shape[1]]
    mask = torch.ones(state.shape[:2], dtype=torch.bool)
    return Signals(mask, embedding=level0, hidden=[state], spans=None if spans is None else torch.tensor(spans))


def make(**settings):
    return build("distill", "mgskd", SHAPE, SHAPE, heads=1, **settings)


def test_tokens_by_hand():
    assert make(span=0)(seen([RIGHT]), seen([EQUAL])).item() == pytest.approx(PAIR + ANGLE, rel=1e-5)


def test_spans_by_hand():
    # spans of one token each are the tokens; a token of no span does not count
    student, teacher = seen([RIGHT], [[0, 1, 2]]), seen([EQUAL], [[0, 1, 2]])
    assert make()(student, teacher).item() == pytest.approx(2 * (PAIR + ANGLE), rel=1e-5)
    # tokens 1 and 3 are one span: (0, 0) and (0, 1) against (1/4, -sqrt(3)/4) and (-1/2, sqrt(3)/2)
    two = [dataclasses.replace(x, spans=torch.tensor([[0, 1, 0]])) for x in (student, teacher)]
    dots = (0 - 0.25) ** 2 + 2 * (0 + 0.5) ** 2 + (1 - 1) ** 2
    assert make(token=0)(*two).item() == pytest.approx(dots / 2 / 4, rel=1e-5)  # two points have no angle
    none = [dataclasses.replace(x, spans=torch.full((1, 3), -1)) for x in (student, teacher)]
    assert make(token=0)(*none).item() == 0


def test_samples_by_hand():
    # three rows of two tokens whose means are the three points
    wide = lambda points: [[[2 * x, 0.0], [0.0, 2 * y]] for x, y in points]
    found = make(lower=0, span=0)(seen(wide(RIGHT)), seen(wide(EQUAL))).item()
    assert found == pytest.approx(4 * ANGLE, rel=1e-5)
    assert sample_loss(torch.zeros(2, 1, 2), torch.ones(2, 1, 2), torch.ones(2, 1, dtype=torch.bool), 1) == 0


def test_last_stage_by_hand():
    mask = torch.ones(1, 1, dtype=torch.bool)
    student, teacher = (Signals(mask, task=torch.tensor([x])) for x in ([math.log(3), 0.0], [0.0, 0.0]))
    assert make(stage="logits")(student, teacher).item() == pytest.approx(math.log(4 / 3) / 2)
    assert make(stage="logits").layers() == {"student": {}, "teacher": {}}


def test_levels_below_the_third_are_near_and_the_others_far():
    shape = Shape(4, 8, 2)
    student, teacher = signals(1, shape, (5, 4, 3)), signals(2, shape, (5, 4, 3))
    whole = build("distill", "mgskd", shape, shape, heads=4)(student, teacher)
    near = build("distill", "mgskd", shape, shape, heads=4, sample=0)(student, teacher)
    far = sum(sample_loss(student.hidden[m], teacher.hidden[m], student.mask, 4) for m in (2, 3))
    torch.testing.assert_close(whole, near + 4 * far)
    changed = dataclasses.replace(student, hidden=[*student.hidden[:2], student.hidden[0], student.hidden[1]])
    assert torch.equal(build("distill", "mgskd", shape, shape, heads=4, sample=0)(changed, teacher), near)


def test_the_most_attended_are_the_teachers_and_real():
    # One head of width 1. All look at place 2, the longest; of the others it sees place 0 best. Place 3 pads.
    state, mask = torch.tensor([2.0, 1.0, 5.0, 9.0]).view(1, 1, 4, 1), torch.tensor([[True, True, True, False]])
    anchors, others, there = attended(state, mask, 1, 2)
    assert anchors.tolist() == [[2]] and others.tolist() == [[[0, 1]]] and there.all()
    anchors, others, there = attended(state, mask, 20, 20)
    assert anchors[0, 0] == 2 and there.sum(-1)[0].tolist() == [2, 2, 2, 0]  # others of itself and of padding: none
    # heads count together: a second one in which all look at place 1, more sharply
    both = torch.cat([state, torch.tensor([0.0, 9.0, 0.1, 0.0]).view(1, 1, 4, 1)], 1)
    received = torch.stack([(h[:, None] * h).softmax(-1) for h in both[0, :, :3, 0]]).sum((0, 1))
    assert attended(both, mask, 3, 2)[0][0].tolist() == received.argsort(descending=True).tolist()


def test_angles_are_taken_where_the_teacher_looks():
    student, teacher = signals(1, lengths=(7,)).hidden[0], signals(2, lengths=(7,)).hidden[0]
    mask, heads = torch.ones(1, 7, dtype=torch.bool), lambda x: x.unflatten(-1, (4, -1)).transpose(1, 2)
    (anchor,), ((j, k),) = (x[0].tolist() for x in attended(heads(teacher), mask, 1, 2)[:2])
    assert anchor != attended(heads(student), mask, 1, 2)[0].item()
    corner = lambda x: torch.cosine_similarity(x[0, anchor] - x[0, j], x[0, anchor] - x[0, k], 0)
    apart = torch.nn.functional.smooth_l1_loss(corner(student), corner(teacher))
    pair = pair_error(heads(student), heads(teacher)) / (4 * 49)
    torch.testing.assert_close(token_loss(student, teacher, mask, 4, 1, 2), pair + apart)


def test_pairs_are_those_of_all_dot_products():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 6, 3).requires_grad_(), torch.randn(2, 4, 6, 5)
    plain = (ours @ ours.mT / 3**0.5 - theirs @ theirs.mT / 5**0.5).square().sum()
    found = pair_error(ours, theirs)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(*(torch.autograd.grad(x, ours)[0] for x in (found, plain)), rtol=1e-4, atol=1e-4)
    assert abs(pair_error(100 * theirs, 100 * theirs)) < 1e-4


def test_span_means_by_hand():
    state = torch.tensor([[[2.0], [4.0], [7.0], [9.0]]])
    means, there = span_means(state, torch.tensor([[1, 1, -1, 3]]), torch.tensor([[True, True, True, False]]))
    assert means.squeeze(-1).tolist() == [[0.0, 3.0]] and there.tolist() == [[False, True]]


def test_widths_and_depths_may_differ():
    small, large = Shape(2, 8, 2), Shape(4, 12, 3)
    method = build("distill", "mgskd", small, large, heads=4)
    assert torch.isfinite(method(signals(1, small), signals(2, large)))
    assert list(method.parameters()) == []


def test_bad_inputs():
    with pytest.raises(ValueError, match="64 heads do not divide the student's width 8; set heads"):
        build("distill", "mgskd", SMALL, SMALL)
    with pytest.raises(ValueError, match="4 heads do not divide the teacher's width 10"):
        build("distill", "mgskd", SMALL, Shape(2, 10, 2), heads=4)
    with pytest.raises(ValueError, match="does not say where they are; set span: 0"):
        make()(seen([RIGHT]), seen([EQUAL]))
    with pytest.raises(ValueError, match="an anchor and two neighbours; got 20 and 1"):
        make(neighbours=1)
    with pytest.raises(ValueError, match="no stage 'pretrain'"):
        make(stage="pretrain")
