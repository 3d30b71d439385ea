"""Likelihoods of continuations and the choice among options, with probabilities that are known."""

import math

import pytest
import torch

from models.language._likelihood import Asked, likelihoods
from models.language.choices import Choices, choose
from tests.models._bigram import bigram, small

TABLE = ([0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2])


def test_likelihoods_by_hand():
    asked = [Asked([0], [[1, 2], [2]]), Asked([2, 1], [[0], [1], [2]])]
    first, second = likelihoods(bigram(*TABLE), asked, length=8)
    assert first.tolist() == pytest.approx([math.log(0.25 * 0.8), math.log(0.25)])  # p(1 | 0) p(2 | 1), p(2 | 0)
    assert second.tolist() == pytest.approx([math.log(p) for p in TABLE[1]])


def test_a_long_option_is_judged_by_its_size():
    # p = 0.2 for two tokens of 8 characters together, 0.25 for one of 3: the sum prefers the latter, a character's
    # share of it the former: ln 0.2 / 8 = -0.201, ln 0.25 / 3 = -0.462.
    choices = Choices(bigram(*TABLE), length=8)
    asked = [Asked([0], [[1, 2], [2]])]
    assert choices.answers(asked) == [1]
    assert choices.answers(asked, sizes=[[8, 3]]) == [0]
    assert choices.scores(asked, sizes=[[8, 3]])[0].tolist() == pytest.approx([math.log(0.2) / 8, math.log(0.25) / 3])


def test_it_is_what_transformers_says_of_the_whole_text():
    model, ids = small(), [3, 9, 27, 31, 4, 12]
    found = likelihoods(model, [Asked(ids[:2], [ids[2:]])], length=32)[0]
    log_p = model.model(input_ids=torch.tensor([ids])).logits.log_softmax(-1)[0]
    wanted = sum(log_p[place - 1, ids[place]].item() for place in range(2, 6))
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_a_head_that_is_no_linear_layer_is_read_as_it_is():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from models.language._causal import Causal

    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 0.01}  # fmt: skip
    model = Causal(Gemma2ForCausalLM(Gemma2Config(vocab_size=40, **settings)).eval()).eval()
    assert not model.chunked
    found = likelihoods(model, [Asked([5], [[7]])], length=8)[0]
    assert found.item() == pytest.approx(-math.log(40), abs=0.03)  # logits are capped at 0.01: nearly uniform


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_changes_no_answer(batch):
    generator = torch.Generator().manual_seed(1)
    draw = lambda count: torch.randint(50, (count,), generator=generator).tolist()
    asked = [Asked(draw(1 + n % 9), [draw(1 + (n + o) % 4) for o in range(4)]) for n in range(20)]
    asked += [Asked([4, 4], [[7], [7], [8]])]  # two equal options: the first
    sizes = [[1 + len(option) for option in one.options] for one in asked]
    model = small()
    alone, together = Choices(model, 32, batch=100), Choices(model, 32, batch=batch)
    torch.testing.assert_close(together.scores(asked), alone.scores(asked), rtol=1e-5, atol=1e-5)
    assert together.answers(asked, sizes) == alone.answers(asked, sizes)
    assert choose(torch.tensor([-3.0, -1.0, -1.0])) == 1


def test_a_chunk_of_logits_changes_nothing(monkeypatch):
    asked = [Asked([1, 2, 3], [[4, 5, 6, 7], [8, 9]])]
    whole = likelihoods(small(), asked, 32)
    monkeypatch.setattr("models.language._likelihood.CHUNK", 100)  # two places at a time
    torch.testing.assert_close(likelihoods(small(), asked, 32), whole)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Asked([], [[1]]), "beginning 0 of 1: it and each of its continuations need a token"),
        (Asked([1], [[1], []]), "need a token"),
        (Asked([1] * 8, [[1], [2, 2]]), "a row of 9 tokens, but the model reads 8"),
    ],
)
def test_what_cannot_be_asked_is_named(asked, words):
    with pytest.raises(ValueError, match=words):
        likelihoods(bigram(*TABLE), [asked], length=8)


def test_an_option_without_characters_is_refused():
    with pytest.raises(ValueError, match="question 0 of 1 has an option without characters"):
        Choices(bigram(*TABLE), 8).scores([Asked([0], [[1], [2]])], sizes=[[3, 0]])
