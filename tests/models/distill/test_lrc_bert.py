"""LRC-BERT: the contrast by hand and by loops, and the second pass on a shifted embedding."""

import math

import pytest
import torch
from torch.nn import functional as F

from models import build
from models.distill._hooks import edits_of, inside, watch
from models.distill._signals import Shape, Signals
from models.distill.lrc_bert import contrast
from tests.models.distill._draw import SMALL, signals
from tests.models.distill._pairs import new, rows, states

SHAPES = Shape(2, 16, 2), Shape(4, 16, 2)


def test_by_hand():
    # Two rows of one token. Student (1, 0) and (0, 1), teacher (1, 0) and (1, 0): g_00 = 0, g_01 = 0, g_10 = g_11 = 1.
    # l_0 = 1 - (0 - 0) / 2 + 0 = 1, l_1 = 1 - (1 - 1) / 2 + 1 = 2. With teacher (0, 3) for row 1: both 1 - 1/2.
    mask = torch.ones(2, 1, dtype=torch.bool)
    student = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    method = build("distill", "lrc_bert", Shape(1, 2, 1), Shape(1, 2, 1))
    loss = lambda teacher: method(Signals(mask, hidden=[student]), Signals(mask, hidden=[torch.tensor(teacher)])).item()
    assert loss([[[1.0, 0.0]], [[1.0, 0.0]]]) == pytest.approx(1.5)
    assert loss([[[1.0, 0.0]], [[0.0, 3.0]]]) == pytest.approx(0.5)


def test_the_second_stage_by_hand():
    mask, one = torch.ones(1, 1, dtype=torch.bool), [torch.ones(1, 1, 2)]
    student = Signals(mask, hidden=one, task=torch.tensor([[1.1 * math.log(3), 0.0]]))
    method = build("distill", "lrc_bert", Shape(1, 2, 1), Shape(1, 2, 1), stage="all")
    # alone in its batch, with its teacher's direction: inner 1; and tau^2 KL((1/2, 1/2) || (3/4, 1/4))
    found = method(student, Signals(mask, hidden=one, task=torch.zeros(1, 2))).item()
    assert found == pytest.approx(1 + 1.1**2 * math.log(4 / 3) / 2)
    assert method.hard_weight() == 3 and build("distill", "lrc_bert", *SHAPES).hard_weight() == 0


def test_the_contrast_is_the_loop_over_rows():
    student, teacher = signals(1, lengths=(5, 3, 4)), signals(2, lengths=(5, 3, 4))
    s, t, mask, terms = student.hidden[0], teacher.hidden[0], student.mask, []
    g = lambda i, j, place: 1 - F.cosine_similarity(s[i, place], t[j, place], 0)
    for i in range(3):
        for place in range(5):
            if mask[i, place]:
                others = [g(i, j, place) - g(i, i, place) for j in range(3) if j != i and mask[j, place]]
                terms.append(1 - sum(others) / (2 * max(len(others), 1)) + g(i, i, place))
    torch.testing.assert_close(contrast(s, t, mask), sum(terms) / len(terms))


def test_widths_meet_in_one_map_without_bias():
    method = build("distill", "lrc_bert", Shape(2, 8, 2), Shape(4, 12, 2)).double()
    assert [tuple(p.shape) for p in method.parameters()] == [(12, 8)]
    found = method(signals(1, Shape(2, 8, 2)), signals(2, Shape(4, 12, 2)))
    found.backward()
    assert torch.isfinite(found) and method.project.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["bert", "gpt2", "ours"])
def test_the_second_pass_runs_on_the_shifted_embedding(name, tmp_path):
    torch.manual_seed(0)
    student, (ids, mask) = new(name, 2, tmp_path), rows()
    method, met = build("distill", "lrc_bert", *SHAPES), []

    def run():
        with inside(student, edits_of(method.edits(), "student"), mask), watch(student, {"hidden": [1]}) as seen:
            states(student, ids, mask)
        met.append(seen.hidden[1])
        return seen.hidden[1][mask].square().sum()

    method.perturb(run())
    assert all(p.grad is None for p in student.parameters())  # nothing is learned from the first pass
    change = method._change
    torch.testing.assert_close(change[mask].norm(dim=-1), torch.ones(int(mask.sum())))
    run().backward()
    assert any(p.grad is not None for p in student.parameters())
    with inside(student, {"embedding": lambda state, mask: state + change}, mask), watch(student, {"hidden": [1]}) as s:
        states(student, ids, mask)
    torch.testing.assert_close(met[1], s.hidden[1])
    assert not torch.allclose(met[0][mask], met[1][mask])
    run()  # the next step's first pass is plain again
    torch.testing.assert_close(met[2], met[0])


def test_the_change_is_the_direction_of_the_gradient():
    method = build("distill", "lrc_bert", *SHAPES)
    embed = method.edits()["student.embedding"]
    state = embed(torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), None)
    method.perturb((state * torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])).sum())
    # (3, 4) has length 5; a place without gradient, such as padding, stays where it is
    torch.testing.assert_close(embed(torch.zeros(1, 2, 2), None), torch.tensor([[[0.6, 0.8], [0.0, 0.0]]]))


def test_bad_inputs():
    with pytest.raises(RuntimeError, match="run the first one inside its edits"):
        build("distill", "lrc_bert", *SHAPES).perturb(torch.zeros(()))
    assert build("distill", "lrc_bert", *SHAPES, perturbed=False).edits() == {}
    with pytest.raises(ValueError, match="no stage 'last'"):
        build("distill", "lrc_bert", *SHAPES, stage="last")
    with pytest.raises(ValueError, match="more than the teacher's"):
        build("distill", "lrc_bert", SHAPES[1], SHAPES[0])
    alone = build("distill", "lrc_bert", SMALL, SMALL).double()(signals(1, lengths=(4,)), signals(2, lengths=(4,)))
    assert torch.isfinite(alone)
