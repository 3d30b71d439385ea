"""MercaTran: listings by content, several steps at once, categories and brands by their best listing."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import build
from models.recommend.session.mercatran import MercaTran, group_scores

WORDS = torch.tensor([[0, 0, 0], [1, 2, 0], [3, 0, 0], [1, 3, 2], [4, 0, 0], [4, 1, 0]])


def make(content: torch.Tensor = WORDS, **settings) -> MercaTran:
    torch.manual_seed(0)
    small = {"width": 8, "heads": 2, "inner": 16, "length": 6, "dropout": 0.0}
    return build("recommend.session", "mercatran", len(content) - 1, content, **{**small, **settings})


def test_a_listing_is_the_mean_of_its_words():
    model = make().eval()
    table = model.words.weight
    mean = (table[1] + table[2]) / 2
    expected = F.normalize(model.project(mean), dim=-1)
    torch.testing.assert_close(model.vectors(torch.tensor([1]))[0], expected)
    torch.testing.assert_close(model.catalogue()[1], expected)
    assert model.catalogue().norm(dim=-1)[1:].tolist() == pytest.approx([1.0] * 5, rel=1e-5)


def test_the_loss_is_the_softmax_over_all_steps_and_rows():
    model = make(steps=2).eval()
    history = torch.tensor([[0, 1], [2, 3]])
    targets = torch.tensor([[2, 3], [4, 0]])
    query = model.queries(history)
    vectors = model.catalogue()
    flat = [(query[0, 0], 2), (query[0, 1], 3), (query[1, 0], 4)]
    logit = torch.stack([model.scale.exp() * (q @ vectors[[2, 3, 4]].T) for q, _ in flat])
    expected = F.cross_entropy(logit, torch.arange(3))
    loss, terms = model(history, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["step_2"], F.cross_entropy(logit[1:2], torch.tensor([1])))
    torch.testing.assert_close((2 * terms["step_1"] + terms["step_2"]) / 3, loss)


def test_a_listing_that_two_rows_want_is_not_wrong_for_either():
    # Queries equal, listings' logits equal: targets 2, 2, 4. For the rows of 2 it is one of {2, 4}: ln 2; for that of 4
    # the two copies of 2 stand against it: ln 3.
    model = make(steps=1).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    loss, _ = model(torch.tensor([[1], [2], [3]]), torch.tensor([[2], [2], [4]]))
    assert loss.item() == pytest.approx((2 * math.log(2) + math.log(3)) / 3)


def test_a_listing_without_training_is_found_by_its_text():
    """Words decide what follows: listings of even words are followed by those of odd ones."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    items = 60
    kind = torch.arange(items + 1) % 6
    content = torch.stack([kind + 1, torch.randint(10, 14, (items + 1,), generator=draw)], 1)
    content[0] = 0
    model = make(content, steps=1, width=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    known = torch.arange(1, 31)
    for _ in range(80):
        history = known[torch.randint(0, 30, (64, 1), generator=draw)]
        wanted = (kind[history] + 1) % 6
        choice = torch.stack([known[(kind[known] == w)][torch.randint(0, 5, (1,), generator=draw)] for w in wanted])
        optimizer.zero_grad()
        model(history, choice)[0].backward()
        optimizer.step()
    model.eval()
    new = torch.arange(31, 61)
    score = model.score(new[:, None])[:, 31:]  # among listings that no step saw, from histories that none saw
    assert (kind[31:][score.argmax(-1)] == (kind[new] + 1) % 6).float().mean() > 0.9


def test_ready_vectors_are_content_too():
    model = make(torch.randn(6, 20))
    assert model.words is None
    assert model.score(torch.tensor([[1, 2]])).shape == (1, 6)
    twin = make(torch.randn(6, 20))
    assert "content" not in model.state_dict() and not torch.equal(twin.content, model.content)


def test_steps_differ_and_the_first_is_the_score():
    model = make().eval()
    steps = model.score_steps(torch.tensor([[1, 2, 3]]))
    assert steps.shape == (1, 4, 6)
    assert torch.equal(steps[:, 0], model.score(torch.tensor([[1, 2, 3]])))
    assert not torch.allclose(steps[0, 0, 1:], steps[0, 3, 1:])
    assert torch.equal(model.score_steps(torch.tensor([[1, 2, 3]]), model.catalogue()), steps)


def test_categories_are_ranked_by_their_best_listing():
    score = torch.tensor([[-torch.inf, 0.1, 0.9, 0.5, 0.7]])
    category = torch.tensor([0, 1, 2, 1, 1])  # of padding and four listings
    assert group_scores(score, category, 4).tolist()[0] == pytest.approx([-math.inf, 0.7, 0.9, -math.inf])


@pytest.mark.parametrize(
    ("content", "settings", "told"),
    [
        (WORDS[:, 0], {}, "content must be"),
        (WORDS, {"words": 3}, r"words 0..4; the table has 0..2"),
        (WORDS, {"steps": 0}, "steps 1 or more"),
        (WORDS, {"heads": 3}, "heads 3 does not divide width 8"),
    ],
)
def test_impossible_models_are_refused(content, settings, told):
    with pytest.raises(ValueError, match=told):
        make(content, **settings)


def test_impossible_targets_are_refused():
    model = make(steps=2)
    for targets in (torch.tensor([[1, 2, 3]]), torch.zeros(1, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"targets must be \(1, 2\) with a listing"):
            model(torch.tensor([[1]]), targets)
    with pytest.raises(ValueError, match="outside 0..5"):
        model(torch.tensor([[1]]), torch.tensor([[1, 9]]))
    with pytest.raises(ValueError, match="after an item"):
        model(torch.tensor([[1]]), torch.tensor([[0, 2]]))
