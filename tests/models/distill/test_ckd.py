"""CKD: each relation by hand, and against loops."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from models import build
from models.distill._signals import Shape, Signals
from models.distill.ckd import windows
from tests.models.distill._draw import SMALL, signals

# A right-angled student and an equilateral teacher. Cosines: student 0, -1, 0, teacher -1/2 each. At its corners the
# student has the angles 1/sqrt(2), 0, 1/sqrt(2), the teacher 1/2 thrice.
RIGHT, EQUAL = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]]
P = 1 / (1 + math.exp(-1))
DISTANCE = 2 * -0.5 * math.log(4 * P * (1 - P)) / 3  # KL((1/2, 1/2) || (P, 1 - P)) at two of three corners
ANGLE = (2 * (0.5**0.5 - 0.5) ** 2 + 0.25) / 3
TERMS = ("soft", "word_distance", "layer_distance", "word_angle", "layer_angle")


def loss(student, teacher, layers=1, **settings):
    """Of one term or more, at weight 1; levels of one row, from the embedding on."""
    seen = []
    for levels in (student, teacher):
        tensors = [torch.tensor(level)[None] for level in levels]
        mask = torch.ones(1, len(levels[0]), dtype=torch.bool)
        seen.append(Signals(mask, task=torch.zeros(1, 2), embedding=tensors[0], hidden=tensors[1:]))
    shape = Shape(layers, 2, 1, classes=2)
    return build("distill", "ckd", shape, shape, **dict.fromkeys(TERMS, 0.0) | settings)(*seen).item()


def test_word_relations_by_hand():
    # level 0 is the same on both sides: half of the anchors lose nothing
    pair = ([EQUAL, RIGHT], [EQUAL, EQUAL])
    assert loss(*pair, word_distance=1.0) == pytest.approx(DISTANCE / 2, rel=1e-5)
    assert loss(*pair, word_angle=1.0) == pytest.approx(ANGLE / 2, rel=1e-5)


def test_layer_relations_by_hand():
    # one token whose states at three levels are the three points
    pair = ([[x] for x in RIGHT], [[x] for x in EQUAL])
    assert loss(*pair, layers=2, layer_distance=1.0) == pytest.approx(DISTANCE, rel=1e-5)
    assert loss(*pair, layers=2, layer_angle=1.0) == pytest.approx(ANGLE, rel=1e-5)
    assert loss(*pair, layers=2, word_distance=1.0, word_angle=1.0) == 0  # a token alone has no others


def test_the_sum_by_hand():
    found = loss([EQUAL, RIGHT], [EQUAL, EQUAL], soft=0.9, word_distance=1.0, word_angle=10.0)
    assert found == pytest.approx(0.9 * 9 * math.log(2) + DISTANCE / 2 + 10 * ANGLE / 2, rel=1e-5)
    assert build("distill", "ckd", SMALL, SMALL).hard_weight() == 0.1


def test_a_window_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    at, there = windows(mask, 3)
    assert at[1].tolist() == [0, 2]
    assert there.tolist() == [[[False, True], [True, True], [True, False], [False, False]]]
    # with a window of 3 only the middle one of three tokens has two others: its angle is 0, the teacher's 1/2
    assert loss([EQUAL, RIGHT], [EQUAL, EQUAL], word_angle=1.0, window=3) == pytest.approx(0.25 / 2, rel=1e-5)


def test_against_loops():
    student, teacher = signals(1, lengths=(6, 4)), signals(2, lengths=(6, 4))
    mask, kls, angles = student.mask, [], []
    cos = lambda x, i, j: F.cosine_similarity(x[i], x[j], 0)
    corner = lambda x, i, j, k: F.cosine_similarity(x[i] - x[j], x[i] - x[k], 0)
    for m in range(3):
        for b, length in enumerate((6, 4)):
            s, t = student.level(m)[b], teacher.level(m)[b]
            for i in range(length):
                others = [j for j in range(length) if j != i]
                q, p = (torch.stack([cos(x, i, j) for j in others]).log_softmax(0) for x in (s, t))
                kls.append((p.exp() * (p - q)).sum())
                near = [j for j in others if abs(i - j) <= 2]
                angles += [
                    (corner(s, i, j, k) - corner(t, i, j, k)) ** 2 for j in near for k in near if j != k
                ]  # fmt: skip
    only = lambda **one: build("distill", "ckd", SMALL, SMALL, window=5, **dict.fromkeys(TERMS, 0.0) | one)
    torch.testing.assert_close(only(word_distance=1.0)(student, teacher), sum(kls) / len(kls))
    torch.testing.assert_close(only(word_angle=1.0)(student, teacher), sum(angles) / len(angles))
    swapped = [_transposed(seen) for seen in (student, teacher)]
    assert mask.sum() == 10 and len(swapped[0].hidden) == 5
    # the levels of each token, read as the tokens of a row: layer relations are word relations
    tall = Shape(5, 8, 2, classes=3)
    whole = lambda one: build("distill", "ckd", tall, tall, **dict.fromkeys(TERMS, 0.0) | {one: 1.0})
    full = [dataclasses.replace(signals(n, lengths=(6,)), mask=torch.ones(1, 6, dtype=torch.bool)) for n in (1, 2)]
    turned = [_transposed(seen) for seen in full]
    for layer, word in (("layer_distance", "word_distance"), ("layer_angle", "word_angle")):
        small = build("distill", "ckd", SMALL, SMALL, **dict.fromkeys(TERMS, 0.0) | {layer: 1.0})
        torch.testing.assert_close(small(*full), whole(word)(*turned))


def _transposed(seen: Signals) -> Signals:
    """Levels as tokens and tokens as levels."""
    levels = torch.stack([seen.level(m) for m in range(3)], 2)  # (B, T, M, D)
    mask = torch.ones(len(levels), 3, dtype=torch.bool)
    return Signals(mask, task=seen.task, embedding=levels[:, 0], hidden=list(levels[:, 1:].unbind(1)))


def test_matching_terms_are_0_at_the_teacher_and_under_turns():
    seen, method = signals(1), build("distill", "ckd", SMALL, SMALL, soft=0)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double())[0]
    turned = dataclasses.replace(seen, embedding=seen.embedding @ turn, hidden=[3 * x @ turn for x in seen.hidden])
    assert method(seen, seen).item() == pytest.approx(0, abs=1e-12)
    only_words = build("distill", "ckd", SMALL, SMALL, soft=0, layer_distance=0, layer_angle=0)
    assert only_words(turned, seen).item() == pytest.approx(0, abs=1e-12)  # neither turns nor scale count
    assert method(signals(2), seen).item() > 1e-3


def test_any_widths_and_depths_meet():
    small, large = Shape(2, 8, 2, classes=3), Shape(5, 12, 3, classes=3)
    method = build("distill", "ckd", small, large)
    assert method.layers()["teacher"] == {"hidden": [2, 4]}
    assert torch.isfinite(method(signals(1, small), signals(2, large)))


def test_bad_inputs():
    for window in (0, 1, 20):
        with pytest.raises(ValueError, match=f"3, 5, 7, ..., not {window}"):
            build("distill", "ckd", SMALL, SMALL, window=window)
    one = signals(1, lengths=(1, 1)), signals(2, lengths=(1, 1))
    assert torch.isfinite(build("distill", "ckd", SMALL, SMALL)(*one))
