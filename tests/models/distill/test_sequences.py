"""Which places count, sampling, and the buffer."""

import pytest
import torch

from models.distill._sequences import Replay, Sampling, Text, mixed, sample
from tests.models.distill._texts import DATA, END, PAD, Bigram, text

PROMPTS = DATA.prompts()


def draw(how=None, seed=0, writer=None, prompts=PROMPTS, end=END, pad=PAD) -> Text:
    generator = torch.Generator().manual_seed(seed)
    return sample(writer or Bigram(1), prompts, how or Sampling(6), end, pad, generator)


def test_exactly_one_end_counts_also_where_padding_is_the_end():
    # "a b END pad pad" after the prompt "p"
    ids = torch.tensor([[7, 5, 6, END, END, END]])
    completion = torch.tensor([[False, True, True, True, True, True]])
    it = Text(ids, torch.ones_like(completion), completion)
    assert it.predicts(END).tolist() == [[True, True, True, False, False, False]]
    assert ids[:, 1:][it.predicts(END)[:, :-1]].tolist() == [5, 6, END]
    # what a naive mask keeps: no end at all, so the student never stops
    assert END not in ids[:, 1:][(ids != END)[:, 1:]]


def test_an_end_within_the_prompt_ends_nothing():
    assert text([([3, END, 5], [6, END])]).predicts(END).tolist() == [[False, False, True, True, False]]


def test_prompts_move_to_the_right():
    assert PROMPTS.ids.tolist() == [[5, 6, 7], [PAD, PAD, 4], [PAD, 2, 2]]
    assert PROMPTS.mask.sum(1).tolist() == [3, 1, 2] and not PROMPTS.completion.any()
    assert DATA.positions[1].tolist() == [0, 0, 0, 1, 2, 2, 2]
    shifted = Text(*(torch.nn.functional.pad(x, (0, 2)) for x in (DATA.ids, DATA.mask, DATA.completion)))
    assert torch.equal(shifted.prompts().ids, PROMPTS.ids)


def test_sampled_texts_stop_at_their_first_end():
    it = draw(Sampling(40))
    assert torch.equal(it.ids[:, :3], PROMPTS.ids)
    for ids, mask, completion in zip(it.ids, it.mask, it.completion, strict=True):
        told = ids[completion].tolist()
        assert told.count(END) == 1 and told[-1] == END
        assert not (mask & ~completion)[3:].any() and (ids[3:][~mask[3:]] == PAD).all()
    assert not it.truncated(END).any()
    assert draw(Sampling(1), end=99).truncated(99).all()


def test_a_seed_fixes_the_text_and_a_row_does_not_see_its_neighbours():
    assert torch.equal(draw(seed=3).ids, draw(seed=3).ids)
    assert not torch.equal(draw(Sampling(6), 3, end=99).ids, draw(Sampling(6), 4, end=99).ids)
    first = draw(Sampling(6), 3, end=99).ids[0]
    others = Text(PROMPTS.ids.clone(), PROMPTS.mask, PROMPTS.completion)
    others.ids[1:] = 9
    assert torch.equal(draw(Sampling(6), 3, end=99, prompts=others).ids[0], first)


def test_words_are_chosen_as_often_as_they_are_likely():
    share = torch.tensor([0.1, 0.4, 0.2, 0.3])
    logits = share.log().expand(1000, 4)
    chances = (torch.arange(1000) + 0.5) / 1000
    count = lambda how: (torch.bincount(how.choose(logits, chances.double()), minlength=4) / 1000).tolist()
    assert count(Sampling()) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.002)
    assert count(Sampling(top_k=2)) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.002)
    assert count(Sampling(top_p=0.8)) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9], abs=0.002)
    sharp = share**2 / (share**2).sum()
    assert count(Sampling(temperature=0.5)) == pytest.approx(sharp.tolist(), abs=0.002)
    assert Sampling(top_k=1).choose(logits[:1], torch.ones(1, dtype=torch.float64)).item() == 1


def test_mixed_words_by_hand():
    # student (1/4, 3/4), teacher (1/2, 1/2), a fifth of the teacher: (0.3, 0.7)
    student = lambda ids, mask: torch.tensor([[1.0, 3.0]]).log()
    teacher = lambda ids, mask: torch.zeros(1, 2)
    assert mixed(student, teacher, 0.2)(None, None).exp()[0].tolist() == pytest.approx([0.3, 0.7])
    assert mixed(student, teacher, 0.0) is student


def test_the_buffer_forgets_the_oldest_and_survives_saving():
    buffer = Replay(capacity=4, length=9)
    with pytest.raises(LookupError, match="no text"):
        buffer.draw(1, torch.Generator())
    buffer.push(DATA)
    assert len(buffer) == 3 and not buffer.full
    buffer.push(text([([2], [END]), ([3], [END])]))
    assert len(buffer) == 4 and buffer.full
    firsts = sorted(buffer.ids[:, :7].tolist())
    assert [5, 6, 7, 8, 9, 1, 0] not in firsts and [3, 1, 0, 0, 0, 0, 0] in firsts
    for _ in range(5):
        buffer.push(DATA)
        assert len(buffer) == 4
    again = Replay(4, 9)
    again.load_state_dict(buffer.state_dict())
    drawn = [it.draw(6, torch.Generator().manual_seed(1)) for it in (buffer, again)]
    assert torch.equal(drawn[0].ids, drawn[1].ids)
    assert drawn[0].ids.shape[1] <= 7 and drawn[0].ids.dtype == torch.int64
    known = {tuple(row) for row in DATA.ids.tolist()}
    for row, completion in zip(drawn[0].ids.tolist(), drawn[0].completion, strict=True):
        assert tuple(row + [0] * (7 - len(row))) in known and completion.any()


def test_a_batch_larger_than_the_buffer_leaves_its_last_texts():
    buffer = Replay(2, 7)
    buffer.push(DATA)
    assert sorted(buffer.ids.tolist()) == sorted(DATA.ids[1:].tolist())


def test_what_cannot_be_sampled_or_kept_is_refused():
    right = Text(PROMPTS.ids.flip(1), PROMPTS.mask.flip(1), PROMPTS.completion)
    with pytest.raises(ValueError, match="on the left"):
        draw(prompts=right)
    with pytest.raises(ValueError, match="7 tokens do not fit a buffer of length 6"):
        Replay(4, 6).push(DATA)
    with pytest.raises(ValueError, match="at least one text"):
        Replay(0, 6)
    for wrong in ({"new_tokens": 0}, {"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampling(**wrong)
