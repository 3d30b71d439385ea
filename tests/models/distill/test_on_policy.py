"""On-policy distillation: whose text, which places, which divergence."""

import dataclasses
import math

import pytest
import torch

from models import build
from models.distill._divergence import KINDS
from models.distill._sequences import Text
from models.distill._signals import Shape, Signals
from tests.models.distill._texts import DATA, END, LM, PAD, Bigram, text


def gkd(student=LM, teacher=LM, **settings):
    return build("distill", "on_policy", student, teacher, **settings)


def sources(it, steps: int) -> list[str]:
    found = []
    for _ in range(steps):
        found.append(it.source())
        it.advance()
    return found


def test_by_hand():
    # Only the first place counts: (3/4, 1/4) against (1/2, 1/2), m = (5/8, 3/8).
    mask = torch.tensor([[True, False]])
    student = Signals(mask, logits=torch.tensor([[[math.log(3), 0.0], [5.0, 0.0]]]))
    teacher = Signals(mask, logits=torch.zeros(1, 2, 2))
    shape = Shape(1, 1, 1, 2)
    jsd = 0.25 * (math.log(4 / 5) + math.log(4 / 3)) + 0.5 * (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3))
    assert gkd(shape, shape)(student, teacher).item() == pytest.approx(jsd)
    forward = gkd(shape, shape, divergence="forward")(student, teacher).item()
    assert forward == pytest.approx(math.log(4 / 3) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_itself_loses_nothing(kind):
    it, teacher = gkd(divergence=kind), Bigram(1)
    assert it(teacher.signals(DATA), teacher.signals(DATA)).item() == pytest.approx(0, abs=1e-12)
    assert it(Bigram(2).signals(DATA), teacher.signals(DATA)).item() > 0.01


def test_prompts_padding_and_the_order_of_rows_do_not_count():
    student, teacher, it = Bigram(1), Bigram(2), gkd()
    loss = it(student.signals(DATA), teacher.signals(DATA))
    order = torch.tensor([2, 0, 1])
    turned = Text(DATA.ids[order], DATA.mask[order], DATA.completion[order])
    padded = Text(*(torch.nn.functional.pad(x, (2, 3)) for x in (DATA.ids, DATA.mask, DATA.completion)))
    other = dataclasses.replace(DATA, ids=DATA.ids.clone())
    other.ids[:, :2] = 9  # the last prompt token is what the first prediction reads
    for same in (turned, padded, other):
        torch.testing.assert_close(it(student.signals(same), teacher.signals(same)), loss, rtol=1e-9, atol=0)


def test_uneven_micro_batches_equal_one_batch():
    student, teacher, it = Bigram(1), Bigram(2), gkd()
    whole = it(student.signals(DATA), teacher.signals(DATA))
    count = DATA.predicts(END).sum()
    parts = [Text(DATA.ids[p], DATA.mask[p], DATA.completion[p]) for p in (slice(0, 1), slice(1, 3))]
    summed = sum(it(student.signals(part), teacher.signals(part), count) for part in parts)
    torch.testing.assert_close(summed, whole)
    grads = (torch.autograd.grad(loss, [student.word, student.head]) for loss in (whole, summed))
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected)
    means = sum(it(student.signals(part), teacher.signals(part)) for part in parts) / 2
    assert abs(means - whole) > 1e-4  # a mean of means is another objective


def test_a_head_in_place_of_logits_changes_nothing():
    student, teacher, it = Bigram(1), Bigram(2), gkd()
    losses = [it(student.signals(DATA, words), teacher.signals(DATA, words)) for words in (False, True)]
    torch.testing.assert_close(*losses)
    for got, expected in zip(*(torch.autograd.grad(x, [student.word, student.head]) for x in losses), strict=True):
        torch.testing.assert_close(got, expected)


def test_who_writes():
    student, teacher = Bigram(1), Bigram(2)
    for settings, calls in (
        ({"on_policy": 0.0}, (0, 0)),
        ({"on_policy": 0.0, "sequence": True}, (0, 1)),
        ({"on_policy": 1.0}, (1, 0)),
    ):
        it = gkd(new_tokens=3, **settings)
        for _ in range(20):
            student.calls = teacher.calls = 0
            made = it.texts(DATA, student, teacher, END, PAD)
            assert (student.calls > 0, teacher.calls > 0) == tuple(map(bool, calls))
            assert (made is DATA) == (calls == (0, 0))
            it.advance()


def test_lambda_is_the_share_of_student_texts_and_may_ramp():
    assert 0.4 < sources(gkd(), 400).count("student") / 400 < 0.6
    it = gkd(on_policy=1.0, ramp=0.5)
    it.set_total(400)
    made = sources(it, 400)
    assert made[200:] == ["student"] * 200
    assert 0.3 < made[:200].count("student") / 200 < 0.7 and made[:10].count("student") < 3


def test_ranks_agree_on_the_draw_and_a_resumed_run_goes_on():
    first, second = gkd(on_policy=0.5, new_tokens=4), gkd(on_policy=0.5, new_tokens=4)
    whole = sources(first, 20)
    assert len(set(whole)) == 2
    sources(second, 7)
    resumed = gkd(on_policy=0.5)
    resumed.load_state_dict(second.state_dict())
    assert sources(resumed, 13) == whole[7:]
    always, student = gkd(on_policy=1.0, new_tokens=6), Bigram(1)
    texts = [always.texts(DATA, student, student, 99, PAD, rank).ids for rank in (0, 1, 0)]
    assert torch.equal(texts[0], texts[2]) and not torch.equal(texts[0], texts[1])


@pytest.mark.parametrize("settings", [{}, {"divergence": "reverse"}, {"divergence": "skew_reverse", "mix": 0.1}])
def test_a_student_learns_on_its_own_text(settings):
    """On fixed prompts the KL to the teacher falls below a tenth of what it was."""
    student, teacher = Bigram(1, 0.3, width=12), Bigram(2, 1.5)
    before = [p.clone() for p in (teacher.word, teacher.head)]
    it = gkd(on_policy=1.0, new_tokens=12, **settings)
    prompts = text([([word], []) for word in range(2, 12)])
    optimizer, losses = torch.optim.Adam([student.word, student.head], 0.05), []
    for _ in range(150):
        made = it.texts(prompts, student, teacher, END, PAD)
        with torch.no_grad():
            told = teacher.signals(made)
        loss = it(student.signals(made, words=True), told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        it.advance()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < losses[0] / 10
    assert all(torch.equal(x, y) for x, y in zip(before, (teacher.word, teacher.head), strict=True))
    assert teacher.word.grad is None


def test_padded_tables_are_cut_to_the_true_words_when_told():
    student, teacher = Bigram(1), Bigram(2)
    more = torch.full((*DATA.ids.shape, 3), 9.0, dtype=torch.float64)
    wide = lambda it: dataclasses.replace(it, logits=torch.cat([it.logits, more], -1))
    large = dataclasses.replace(LM, vocabulary=15)
    wanted = gkd()(student.signals(DATA), teacher.signals(DATA))
    for shapes, seen in (((LM, large), (lambda x: x, wide)), ((large, large), (wide, wide))):
        loss = gkd(*shapes, words=12)(seen[0](student.signals(DATA)), seen[1](teacher.signals(DATA)))
        torch.testing.assert_close(loss, wanted)
    with pytest.raises(ValueError, match="12 logits and the teacher 15"):
        gkd(LM, large)
    with pytest.raises(ValueError, match="1..12"):
        gkd(LM, large, words=13)


@pytest.mark.parametrize("settings", [{"on_policy": 1.5}, {"ramp": -0.1}, {"temperature": 0.0}, {"mix": 1.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"\[0, 1\]|above 0|between 0 and 1"):
        gkd(**settings)
