"""A mix is the sum of its methods; the gold labels count once."""

import pytest
import torch

from models import build
from models.distill._objective import Objective
from models.distill._signals import Method, Shape, Signals

SHAPE = Shape(layers=2, width=8, heads=2, classes=3)


def signals(seed: int) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator)
    return Signals(
        torch.ones(4, 5, dtype=torch.bool),
        task=draw(4, 3),
        hard=draw(4).abs(),
        hidden=[draw(4, 5, 8) for _ in range(2)],
    )


def test_a_mix_is_the_sum_and_labels_count_once():
    student, teacher = signals(1), signals(2)
    kd, pkd = build("distill", "kd", SHAPE, SHAPE), build("distill", "pkd", SHAPE, SHAPE)
    loss, terms = Objective({"kd": kd, "pkd": pkd}, {"pkd": 0.5})(student, teacher)
    hard = student.hard.mean()
    torch.testing.assert_close(loss, kd(student, teacher) + 0.5 * pkd(student, teacher) + 1.0 * hard)
    assert set(terms) == {"kd", "pkd", "hard"} and terms["hard"] == hard
    fixed, _ = Objective({"kd": kd, "pkd": pkd}, hard=0.0)(student, teacher)
    torch.testing.assert_close(fixed, kd(student, teacher) + pkd(student, teacher))


def test_only_what_somebody_wants_is_collected():
    methods = {name: build("distill", name, SHAPE, SHAPE) for name in ("kd", "pkd", "minilm")}
    needs = Objective(methods).needs()
    assert needs["student"] == {"task": [], "hard": [], "hidden": [0], "query": [1], "key": [1], "value": [1]}
    assert "scores" not in needs["teacher"] and "logits" not in needs["teacher"]


def test_labels_that_weigh_but_are_not_there_are_refused():
    bare = Signals(torch.ones(4, 5, dtype=torch.bool), task=torch.randn(4, 3))
    with pytest.raises(ValueError, match="the batch has no labels"):
        Objective({"kd": build("distill", "kd", SHAPE, SHAPE)})(bare, bare)


def test_unknown_weights_and_empty_mixes_are_refused():
    with pytest.raises(ValueError, match="at least one method"):
        Objective({})
    with pytest.raises(ValueError, match="weights for tinybert"):
        Objective({"kd": build("distill", "kd", SHAPE, SHAPE)}, {"tinybert": 1.0})


def test_rivals_for_one_place_are_refused():
    class Editor(Method):
        def edits(self):
            return {"layer": lambda x: x}

    with pytest.raises(ValueError, match="a and b both change layer"):
        Objective({"a": Editor(SHAPE, SHAPE), "b": Editor(SHAPE, SHAPE)})


def test_the_step_is_part_of_the_state():
    mix = Objective({"kd": build("distill", "kd", SHAPE, SHAPE)})
    mix.set_total(10)
    mix.advance()
    again = Objective({"kd": build("distill", "kd", SHAPE, SHAPE)})
    again.load_state_dict(mix.state_dict())
    assert again.methods["kd"].progress == 0.1
    drawn = [m.methods["kd"].generator().initial_seed() for m in (mix, again)]
    assert drawn[0] == drawn[1]
    mix.advance()
    assert mix.methods["kd"].generator().initial_seed() != drawn[1]
