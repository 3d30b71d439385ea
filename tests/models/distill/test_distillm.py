"""DistiLLM: the skewed loss, and which text when."""

import math

import pytest
import torch

from models import build
from models.distill._signals import Shape, Signals
from tests.models.distill._texts import DATA, END, LM, PAD, Bigram


def distillm(shape=LM, **settings):
    return build("distill", "distillm", shape, shape, **{"capacity": 6, "length": 12, "new_tokens": 4, **settings})


def test_by_hand():
    # Student (3/4, 1/4), teacher (1/2, 1/2), a = 1/10: m = (0.725, 0.275); reversed: m = (0.525, 0.475).
    mask = torch.tensor([[True]])
    student, teacher = (Signals(mask, logits=torch.tensor([[x]])) for x in ([math.log(3), 0.0], [0.0, 0.0]))
    shape = Shape(1, 1, 1, 2)
    forward = 0.5 * math.log(0.5 / 0.725) + 0.5 * math.log(0.5 / 0.275)
    reverse = 0.75 * math.log(0.75 / 0.525) + 0.25 * math.log(0.25 / 0.475)
    assert distillm(shape)(student, teacher).item() == pytest.approx(forward, rel=1e-5)
    assert distillm(shape, reverse=True)(student, teacher).item() == pytest.approx(reverse, rel=1e-5)


def test_phi_follows_the_validation_losses():
    it, path = distillm(), []
    for loss in (3.0, 2.0, 2.05, 2.2, 2.25, 2.0, 2.2, 2.4):
        it.validated(loss)
        path.append(round(it.phi.item(), 6))
    assert path == [0, 0, 0, 0.1, 0.1, 0.1, 0.2, 0.3]
    # compared with the last loss that raised it, as in published code, 2.2 after 3.0 would raise nothing
    for _ in range(2):
        for loss in range(20):
            it.validated(loss)
    assert it.phi.item() == 1


def test_by_default_every_text_is_given():
    it, student = distillm(), Bigram(1)
    assert all(it.texts(DATA, student, None, END, PAD) is DATA for _ in range(5))
    assert student.calls == 0


def test_the_student_writes_until_the_buffer_is_full_and_then_less_and_less():
    it, student, made = distillm(), Bigram(1), []
    it.set_total(400)
    it.phi.fill_(0.8)
    for _ in range(400):
        made.append(it.source())
        before = student.calls
        text = it.texts(DATA, student, None, END, PAD)
        assert (student.calls > before) == (made[-1] == "student")
        assert (text is DATA) == (made[-1] == "data")
        assert len(it.replay) <= 6
        it.advance()
    wanted = [it for it in made if it != "data"]
    assert 0.75 < len(wanted) / 400 < 0.85
    assert wanted[:2] == ["student"] * 2
    quarters = [made[i : i + 100].count("student") / 100 for i in range(0, 400, 100)]
    for number, share in enumerate(quarters):  # phi (1 - t / T) in the middle of each
        assert share == pytest.approx(0.8 * (1 - (number + 0.5) / 4), abs=0.12)
    assert made[300:].count("buffer") > 40


def test_a_resumed_run_takes_the_same_texts():
    first, student = distillm(), Bigram(1)
    first.set_total(40)
    first.phi.fill_(0.9)
    for _ in range(10):
        first.texts(DATA, student, None, END, PAD)
        first.advance()
    second = distillm()
    second.load_state_dict(first.state_dict())
    assert second.previous == first.previous and len(second.replay) == len(first.replay) == 6
    for _ in range(30):
        assert first.source() == second.source()
        texts = [it.texts(DATA, student, None, END, PAD) for it in (first, second)]
        assert torch.equal(texts[0].ids, texts[1].ids)
        first.advance(), second.advance()


def test_texts_of_the_buffer_can_be_learned_from():
    it, student, teacher = distillm(), Bigram(1), Bigram(2)
    it.set_total(1)
    it.phi.fill_(1.0)
    for _ in range(3):
        it.texts(DATA, student, None, END, PAD)
    it.advance()
    assert it.source() == "buffer"
    text = it.texts(DATA, student, None, END, PAD)
    loss = it(student.signals(text), teacher.signals(text))
    loss.backward()
    assert loss > 0 and student.head.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "settings", [{"skew": 0.0}, {"skew": 1.0}, {"tolerance": -1.0}, {"rise": 0.0}, {"capacity": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="between 0 and 1|tolerance|at least one"):
        distillm(**settings)
