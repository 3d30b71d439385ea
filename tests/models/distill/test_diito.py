"""DIITO: by hand, and both models changed alike by what the other rows hold."""

import dataclasses
import math

import pytest
import torch

from models import build
from models.distill._hooks import edits_of, inside, watch
from models.distill._rows import halves, rows_of, twice
from models.distill._signals import Shape, Signals
from models.distill.diito import interchange, spans
from tests.models.distill._draw import SMALL, signals
from tests.models.distill._pairs import new, rows, states

SHAPES = Shape(2, 16, 2, 60), Shape(4, 16, 2, 60)


def test_by_hand():
    # Both pairs of logits: tau^2 KL((1/2, 1/2) || (3/4, 1/4)) = 4 * 1/2 ln(4/3); cos((1, 0), (0, 2)) = 0. Place 2 pads.
    mask = torch.tensor([[True, False]])
    skew, even = torch.tensor([[[2 * math.log(3), 0.0], [9.0, 0.0]]]), torch.zeros(1, 2, 2)
    states = torch.tensor([[[1.0, 0.0], [5.0, 5.0]]]), torch.tensor([[[0.0, 2.0], [1.0, 1.0]]])
    student = Signals(mask, logits=skew, hidden=[states[0]], edited=Signals(mask, logits=skew))
    teacher = Signals(mask, logits=even, hidden=[states[1]], edited=Signals(mask, logits=even))
    method = build("distill", "diito", Shape(1, 2, 1, 2), Shape(1, 2, 1, 2))
    assert method(student, teacher).item() == pytest.approx(0.25 * (2 * 4 * math.log(4 / 3) / 2 + 1))
    assert method.hard_weight() == 0.25
    plain = dataclasses.replace(student, edited=Signals(mask, logits=even))
    assert method(plain, teacher).item() == pytest.approx(0.25 * (4 * math.log(4 / 3) / 2 + 1))


def test_the_teacher_itself_loses_nothing():
    seen = dataclasses.replace(signals(1), edited=signals(3))
    other = dataclasses.replace(seen, edited=signals(4))
    method = build("distill", "diito", SMALL, SMALL)
    assert method(seen, seen).item() == pytest.approx(0, abs=1e-9)
    assert method(other, seen).item() > 1e-3


def test_spans_are_equally_long_runs_of_real_tokens():
    mask = torch.arange(20) < torch.tensor([20, 10, 13, 3, 0])[:, None]
    mask[2] = mask[2].flip(0)  # padded in front
    seen = set()
    for seed in range(50):
        into, source = spans(mask, 0.3, torch.Generator().manual_seed(seed))
        assert into.sum(1).tolist() == source.sum(1).tolist() == [3, 3, 0, 0, 0]  # of the shorter of both rows
        assert not (into & ~mask).any() and not (source & ~mask.roll(-1, 0)).any()
        for run in (*into[:2], *source[:2]):
            places = run.nonzero()[:, 0]
            assert (places[1:] - places[:-1] == 1).all()
        seen.add((int(into[0].int().argmax()), int(source[0].int().argmax())))
    assert {start for start, _ in seen} >= {0, 17} and len(seen) > 30  # any start, each its own


def test_an_interchange_by_hand():
    # Three places of two rows, width 1. Row 0 takes place 2 of row 1 at place 0, row 1 takes place 0 of row 0 at 1.
    plain = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])[..., None]
    into = torch.tensor([[True, False, False], [False, True, False]])
    source = torch.tensor([[False, False, True], [True, False, False]])
    changed = interchange(torch.cat([plain, plain + 10]), into, source)
    assert changed[..., 0].tolist() == [[1, 2, 3], [4, 5, 6], [6, 12, 13], [14, 1, 16]]
    with pytest.raises(ValueError, match="batch twice on end: 4 rows of states, got 2"):
        interchange(plain, into, source)


def test_layers_of_a_step():
    method, drawn = build("distill", "diito", *SHAPES), set()
    for _ in range(20):
        layer, edits = method.drawn(), method.edits()
        block = {1: ["teacher.output.0", "teacher.output.1"], 2: ["teacher.output.2", "teacher.output.3"]}[layer]
        assert list(edits) == [f"student.output.{layer - 1}", *block]
        drawn.add(layer)
        method.advance()
    assert drawn == {1, 2}
    again = build("distill", "diito", *SHAPES)
    again.load_state_dict(method.state_dict())
    assert again.drawn() == method.drawn()
    assert list(build("distill", "diito", *SHAPES, layer=2).edits())[0] == "student.output.1"


@pytest.mark.parametrize("name", ["bert", "gpt2", "ours"])
def test_one_pass_over_the_batch_twice_is_the_interchange(name, tmp_path):
    torch.manual_seed(0)
    model, (ids, mask) = new(name, 4, tmp_path), rows((12, 10, 11))
    method = build("distill", "diito", *SHAPES, layer=1)
    edits, both = edits_of(method.edits(), "teacher"), twice({"ids": ids, "mask": mask})
    with inside(model, edits, both["mask"]), watch(model, {"hidden": [3]}) as seen:
        states(model, **both)
    found = halves(seen.signals(both["mask"]))
    torch.testing.assert_close(found.hidden[3], _last(model, ids, mask))  # the first half is the plain pass
    # by hand in two passes: what layers 1 and 2 leave in the first one is put into the second one
    left = {}
    with inside(model, {f"output.{i}": _keep(left, i) for i in (0, 1)}, mask):
        states(model, ids, mask)
    into, source = spans(mask, 0.3, method.generator(-1))
    swap = {f"output.{i}": _put(left[i], into, source) for i in (0, 1)}
    with inside(model, swap, mask), watch(model, {"hidden": [3]}) as seen:
        states(model, ids, mask)
    torch.testing.assert_close(found.edited.hidden[3][mask], seen.hidden[3][mask])
    assert not torch.allclose(found.edited.hidden[3][mask], found.hidden[3][mask])


def _last(model, ids, mask):
    with watch(model, {"hidden": [3]}) as seen:
        states(model, ids, mask)
    return seen.hidden[3]


def _keep(left, number):
    return lambda state, mask: left.setdefault(number, state)


def _put(clean, into, source):
    def put(state, mask):
        state = state.clone()
        for row in range(len(state)):
            state[row, into[row]] = clean[(row + 1) % len(clean), source[row]]
        return state

    return put


def test_gradients_reach_the_student_and_all_its_lower_layers(tmp_path):
    torch.manual_seed(0)
    student, teacher, batch = new("bert", 2), new("bert", 4), rows((12, 10))
    teacher.requires_grad_(False)
    method, head = build("distill", "diito", *SHAPES, layer=2, soft=0, cosine=0), torch.randn(16, 60)
    both, seen = twice(dict(zip(("ids", "mask"), batch, strict=True))), []
    for who, model in (("student", student), ("teacher", teacher)):
        with inside(model, edits_of(method.edits(), who), both["mask"]):
            seen.append(halves(Signals(both["mask"], logits=states(model, **both) @ head)))
    method(*seen).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.encoder.layer[0].attention.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_rows_of_signals():
    seen = dataclasses.replace(signals(1), edited=signals(2))
    second = rows_of(seen, [1])
    assert torch.equal(second.task, seen.task[1:]) and torch.equal(second.hidden[1], seen.hidden[1][1:])
    assert torch.equal(second.edited.mask, seen.edited.mask[1:])
    assert rows_of(Signals(seen.mask, hidden=[None, seen.hidden[1]]), torch.tensor([0])).hidden[0] is None


def test_bad_inputs():
    with pytest.raises(ValueError, match="share is a part .* got 0"):
        build("distill", "diito", *SHAPES, share=0)
    with pytest.raises(ValueError, match="layer 3 was asked for, but the student has layers 1 to 2"):
        build("distill", "diito", *SHAPES, layer=3)
    with pytest.raises(ValueError, match="student is 8 wide and the teacher 16.*set cosine: 0"):
        build("distill", "diito", Shape(2, 8, 2), SHAPES[1])
    assert build("distill", "diito", Shape(2, 8, 2), SHAPES[1], cosine=0).layers()["student"] == {"hidden": []}
    with pytest.raises(ValueError, match="temperature"):
        build("distill", "diito", *SHAPES, temperature=0)
