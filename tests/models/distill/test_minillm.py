"""MiniLLM: rewards, weights and the two parts of the gradient."""

import math

import pytest
import torch

from models import build
from models.distill._sequences import Text
from models.distill.minillm import Rollout, long_gain
from tests.models.distill._texts import DATA, END, LM, PAD, WORDS, Bigram, text


def minillm(**settings):
    return build("distill", "minillm", LM, LM, **{"new_tokens": 4, **settings})


def test_what_follows_by_hand():
    # Four words, rewards 1, 2, 4, 6: after the first (2 + 4 + 6) / 3, then (4 + 6) / 2, then 6, then nothing.
    reward = torch.tensor([[9.0, 1.0, 2.0, 4.0, 6.0, 9.0]])
    mask = torch.tensor([[False, True, True, True, True, False]])
    assert long_gain(reward, mask).tolist() == [[0, 4, 5, 6, 0, 0]]
    assert long_gain(reward, mask & False).tolist() == [[0] * 6]


def test_measured_rewards_and_weights():
    student, teacher = Bigram(1), Bigram(2)
    it = minillm()
    seen = student.signals(DATA), teacher.signals(DATA)
    rollout = it.measure(*seen, DATA)
    q, p = (s.logits.log_softmax(-1) for s in seen)
    mask = seen[0].mask
    for row, place in mask.nonzero().tolist():
        word = DATA.ids[row, place + 1]
        log_q, log_p = q[row, place, word], p[row, place, word]
        assert rollout.old[row, place] == pytest.approx(log_q.item())
        wanted = log_q.exp() / (0.2 * log_p.exp() + 0.8 * log_q.exp())
        assert rollout.weight[row, place] == pytest.approx(wanted.item())
    # the second row says 3 END: after 3 comes the reward of END alone
    first = int(mask[1].nonzero()[0])
    reward = (p - q)[1, first + 1, END].item()
    assert rollout.gain[1].tolist() == pytest.approx([0] * first + [reward] + [0] * (len(mask[1]) - first - 1))
    assert not any(x.requires_grad for x in (rollout.old, rollout.gain, rollout.weight))
    assert not rollout.weight[~mask].any()
    held = minillm(reward_clip=1e-3).measure(*seen, DATA)
    assert held.gain.abs().max() <= 1e-3


def test_weights_are_one_where_the_student_writes_alone():
    student, teacher = Bigram(1), Bigram(2)
    rollout = minillm(share=0.0).measure(student.signals(DATA), teacher.signals(DATA), DATA)
    mask = DATA.predicts(END)
    assert (rollout.weight[mask] == 1).all()


def test_without_a_rollout_it_is_the_exact_reverse_kl():
    student, teacher = Bigram(1).signals(DATA), Bigram(2).signals(DATA)
    q, p = (s.logits[s.mask].log_softmax(-1) for s in (student, teacher))
    loss = minillm()(student, teacher)
    torch.testing.assert_close(loss, (q.exp() * (q - p)).sum(-1).mean())


def test_the_long_part_is_the_policy_gradient():
    student, teacher, it = Bigram(1), Bigram(2), minillm()
    rollout = it.measure(student.signals(DATA), teacher.signals(DATA), DATA)
    for words in (False, True):
        seen = student.signals(DATA, words), teacher.signals(DATA, words)
        long = it(*seen, rollout=rollout) - it(*seen)
        mask = seen[0].mask
        log_q = student.signals(DATA).logits.log_softmax(-1).gather(-1, rollout.chosen[..., None])[..., 0]
        wanted = -(rollout.weight * rollout.gain * log_q)[mask].sum() / mask.sum()
        pairs = zip(*(torch.autograd.grad(x, [student.word, student.head]) for x in (long, wanted)), strict=True)
        for got, expected in pairs:
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_the_clip_stops_a_ratio_that_has_run_away():
    student, teacher, it = Bigram(1), Bigram(2), minillm()
    rollout = it.measure(student.signals(DATA), teacher.signals(DATA), DATA)
    seen = student.signals(DATA), teacher.signals(DATA)

    def slope(shift: float, sign: float) -> float:
        moved = Rollout(rollout.chosen, rollout.old - shift, sign * rollout.gain.abs(), rollout.weight)
        long = it(*seen, rollout=moved) - it(*seen)
        return torch.autograd.grad(long, student.head, retain_graph=True)[0].abs().max().item()

    assert slope(0.1, 1) > 1e-3 and slope(-0.1, -1) > 1e-3
    assert slope(0.3, 1) < 1e-9 and slope(-0.3, -1) < 1e-9  # likelier than e^0.2: no more praise; nor less blame
    assert slope(0.3, -1) > 1e-3 and slope(-0.3, 1) > 1e-3  # but the way back stays open


def test_uneven_micro_batches_equal_one_batch():
    student, teacher, it = Bigram(1), Bigram(2), minillm()
    count = DATA.predicts(END).sum()

    def loss(rows: slice, count=None):
        part = Text(DATA.ids[rows], DATA.mask[rows], DATA.completion[rows])
        seen = student.signals(part), teacher.signals(part)
        return it(*seen, count=count, rollout=it.measure(*seen, part))

    torch.testing.assert_close(loss(slice(0, 1), count) + loss(slice(1, 3), count), loss(slice(0, 3)))


def test_the_expected_gradient_is_that_of_the_reverse_kl_of_texts():
    """Over all texts of two words, each as often as the student alone writes it: one remains, so its mean is its sum.

    An end does not end them here. With the teacher's help the second word's exact part would need the first one's
    weight, which the published method leaves out.
    """
    student, teacher, it = Bigram(1), Bigram(2), minillm(share=0.0)
    (q1, q2), (p1, p2) = (
        ((m.word[5] @ m.head.T).log_softmax(-1), (m.word @ m.head.T).log_softmax(-1)) for m in (student, teacher)
    )
    exact = (q1.exp() * (q1 - p1)).sum() + (q1.exp() * (q2.exp() * (q2 - p2)).sum(-1)).sum()
    wanted = torch.autograd.grad(exact, student.head)[0]
    total = torch.zeros_like(wanted)
    for first in range(WORDS):
        for second in range(WORDS):
            one = text([([5], [first, second])])
            seen = [m.signals(one) for m in (student, teacher)]
            for signals in seen:
                signals.mask[:] = torch.tensor([[True, True, False]])
            loss = it(*seen, count=1, rollout=it.measure(*seen, one))
            chance = (q1[first] + q2[first, second]).exp().item()
            total += chance * torch.autograd.grad(loss, student.head)[0]
    torch.testing.assert_close(total, wanted, rtol=1e-9, atol=1e-12)


def test_the_teacher_helps_to_write():
    student, teacher = Bigram(1), Bigram(2)
    for share in (0.0, 0.2):
        student.calls = teacher.calls = 0
        made = minillm(share=share).texts(DATA, student, teacher, END, PAD)
        assert made.completion.any() and student.calls > 0
        assert (teacher.calls > 0) == (share > 0)


def test_it_learns():
    student, teacher = Bigram(1, 0.3, width=12), Bigram(2, 1.5)
    it, prompts, losses = minillm(new_tokens=8), text([([word], []) for word in range(2, WORDS)]), []
    optimizer = torch.optim.Adam([student.word, student.head], 0.05)
    for _ in range(100):
        made = it.texts(prompts, student, teacher, END, PAD)
        with torch.no_grad():
            told = teacher.signals(made)
            rollout = it.measure(student.signals(made), told, made)
        losses.append(it(student.signals(made), told).item())
        for _ in range(2):
            loss = it(student.signals(made, words=True), told, rollout=rollout)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        it.advance()
    assert sum(losses[-5:]) / 5 < losses[0] / 10


@pytest.mark.parametrize("settings", [{"share": 1.0}, {"share": -0.1}, {"clip": 0.0}, {"reward_clip": math.nan}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="share must be"):
        minillm(**settings)
