"""Training steps on texts that models write, and on the teacher itself: what a row gives, who writes, what narrows."""

import pytest
import torch

from models import build
from models.components._model import assemble
from models.distill._inheriting import Inheriting, updates
from models.distill._objective import Mix, Objective
from models.distill._signals import Shape
from models.distill._student import shape_of
from models.distill._writing import Writing, next_words, text_of
from tests.models.distill._draw import SMALL, signals

RECIPE = {
    "width": 8, "vocabulary": 13, "dropout": 0.0, "embedding": {"word": {}, "position": {"length": 32}, "norm": "none"},
    "encoder": {"transformer": {"layers": 1, "heads": 2, "inner": 16, "mask": "causal", "norm_first": True}},
    "target": {"lm": {}},
}  # fmt: skip
END, PAD = 12, 0


def writing(name="on_policy", prompt=2, **settings) -> Writing:
    torch.manual_seed(0)
    models = [assemble(RECIPE) for _ in range(2)]
    for model in models:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    shape = shape_of(RECIPE)
    method = build("distill", name, shape, shape, new_tokens=4, **settings)
    return Writing(*models, Objective({name: method}), END, PAD, prompt)


def batch():
    ids = torch.randint(1, 12, (3, 6), generator=torch.Generator().manual_seed(1))
    labels = torch.cat([ids[:, 1:], torch.full((3, 1), -100)], 1)
    return {"ids": ids, "mask": torch.arange(6) < torch.tensor([6, 4, 2])[:, None], "labels_lm": labels}


def test_a_row_gives_its_first_document_and_never_the_whole_of_it():
    rows = batch() | {"documents": torch.tensor([[0, 0, 0, 1, 1, 1], [0] * 6, [0] * 6])}
    text = text_of(rows, prompt=3)
    assert text.mask.sum(-1).tolist() == [3, 4, 2]
    assert text.completion.int().tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]]
    prompts = text.prompts()
    assert prompts.mask.int().tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert prompts.ids[2, -1] == rows["ids"][2, 0]


def test_given_text_is_compared_where_its_next_word_counts():
    it, rows = writing(on_policy=0.0, divergence="forward"), batch()
    loss, terms = it(**rows)
    text = text_of(rows, 2)
    mask = text.predicts(END)
    assert mask.sum() == 4 + 2 + 1
    ours, theirs = (m.predict("lm", ids=rows["ids"], mask=rows["mask"]).log_softmax(-1)[mask]
                    for m in (it.student, it.teacher))  # fmt: skip
    torch.testing.assert_close(loss, (theirs.exp() * (theirs - ours)).sum(-1).mean(), rtol=1e-4, atol=1e-5)
    assert list(terms) == ["on_policy"]


def test_what_counts_wrote_is_what_the_step_learns_on():
    it, rows, at = writing(on_policy=1.0).train(), batch(), torch.tensor(3)
    counts = it.counts(step=at, **rows)
    ((text, sampled),) = it._written
    assert sampled and text.ids.shape == (3, 2 + 4)
    assert counts["tokens"] == text.predicts(END).sum()
    first, _ = it(counts=counts, step=at, **rows)
    assert not it._written
    again = it.counts(step=at, **rows)
    assert torch.equal(it._written[0][0].ids, text.ids)  # the step's own chances
    assert torch.equal(it(counts=again, step=at, **rows)[0], first)
    it.counts(step=torch.tensor(4), **rows)
    assert not torch.equal(it._written[0][0].ids, text.ids)


def test_evaluation_reads_given_text_and_writes_none():
    it, rows = writing("distillm", capacity=4, length=16).eval(), batch()
    it.method.phi.fill_(1.0)
    loss, _ = it(counts=it.counts(**rows), **rows)
    assert torch.isfinite(loss) and not it._written and not len(it.method.replay)
    it.train()(**rows)
    assert len(it.method.replay) == 3


def test_left_padding_moves_no_word():
    it, rows = writing(), batch()
    alone = next_words(it.student)(rows["ids"][2:, :2], torch.ones(1, 2, dtype=torch.bool))
    text = text_of(rows, 2).prompts()
    torch.testing.assert_close(
        next_words(it.student)(text.ids, text.mask)[2:], it_alone(it, rows), rtol=1e-4, atol=1e-5
    )
    assert alone.shape == (1, 13)


def it_alone(it, rows):
    return next_words(it.student)(rows["ids"][2:, :1], torch.ones(1, 1, dtype=torch.bool))


def test_prompts_without_a_next_word_are_refused():
    it, rows = writing(), batch()
    rows["mask"] = torch.arange(6).expand(3, 6) < 1
    with pytest.raises(ValueError, match="no token follows the prompts of 2 tokens in 3 rows"):
        it.eval()(**rows)


@pytest.mark.parametrize(
    ("strategy", "narrow", "count"), [("dim", Shape(1, 8, 2, 5), 16), ("head", Shape(1, 12, 1, 5), 16)]
)
def test_updates_until_the_width_is_reached(strategy, narrow, count):
    """16 of 24 states by one an update, 64 in the feed-forward layers by 4: the 16th is the last; so for 12 of 24."""
    wide = Shape(1, 24, 2, 5)
    method = build("distill", "wid", narrow, wide, strategy=strategy, every=2)
    assert updates(method) == count
    assert method.lost(count) == method.lost(count + 1) != method.lost(count - 1)
    recipe = {"width": 24, "vocabulary": 5, "embedding": {"word": {}}, "target": {"mlm": {}},
              "encoder": {"transformer": {"layers": 1, "heads": 2, "inner": 96}}}  # fmt: skip
    with pytest.raises(ValueError, match=f"after {2 * count} steps, {count} updates of its masks, but the run has 33"):
        Inheriting(assemble(recipe), method, steps=33)


def test_a_mix_is_one_method():
    parts = {"kd": build("distill", "kd", SMALL, SMALL), "minilm": build("distill", "minilm", SMALL, SMALL)}
    mix = Mix(SMALL, SMALL, parts, {"kd": 0.5})
    assert set(mix.needs) == set(parts["kd"].needs) | set(parts["minilm"].needs)
    assert mix.layers()["teacher"] == parts["minilm"].layers()["teacher"]
    seen = signals(1), signals(2)
    torch.testing.assert_close(mix(*seen), 0.5 * parts["kd"](*seen) + parts["minilm"](*seen))
