"""Each session model's own number, worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import build
from models.recommend.session._blocks import Dilated
from models.recommend.session._session import bpr_max, gather_last, left


def silent(model: torch.nn.Module) -> torch.nn.Module:
    """All parameters 0."""
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    return model


def test_the_loss_of_a_silent_model_is_that_of_guessing():
    for name in ("gru4rec", "nextitnet", "sasrec", "bert4rec"):
        model = silent(build("recommend.session", name, 7, 8)).eval()
        assert model(torch.tensor([[0, 1, 2, 3]]))[0].item() == pytest.approx(math.log(7))


def test_a_bias_alone_by_hand():
    # Two labels, items 2 and 3 of 3, with biases 0, ln 2, ln 3: -ln(2/6), -ln(3/6), mean of both.
    model = silent(build("recommend.session", "gru4rec", 3, 4))
    model.bias.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
    expected = (math.log(3) + math.log(2)) / 2
    assert model(torch.tensor([[1, 2, 3]]))[0].item() == pytest.approx(expected)
    assert model.score(torch.tensor([[1]]))[0, 1:].exp().tolist() == pytest.approx([1.0, 2.0, 3.0])


def test_one_step_of_the_recurrent_network_by_hand():
    # One unit, all weights 0: gates sigmoid(0) = 1/2; candidate tanh(b_n) with b_n = atanh(.8): h = (1 - 1/2) .8 = .4.
    model = silent(build("recommend.session", "gru4rec", 2, 1))
    model.network.bias_ih_l0[2] = math.atanh(0.8)
    hidden = model.hidden(torch.tensor([[1, 2]]), torch.tensor([2]))
    assert hidden[0, :, 0].tolist() == pytest.approx([0.4, 0.6])  # then (1 - 1/2) .8 + 1/2 .4


def test_a_wider_network_is_brought_back_to_the_items():
    model = build("recommend.session", "gru4rec", 5, 4, units=9, layers=2, dropout=0.1)
    assert model.hidden(torch.tensor([[1, 2]]), torch.tensor([2])).shape == (1, 2, 4)


def test_dilations_reach_as_far_as_they_should():
    # Kernel 2, dilation 1 then 2: place t reads t - 3 ... t, no more.
    torch.manual_seed(0)
    block = Dilated(4, 2, 1).eval()
    x = torch.randn(1, 9, 4)
    with torch.no_grad():
        base = block(x)
        for place in range(9):
            moved = x.clone()
            moved[0, place] += 5.0
            changed = (block(moved) != base).any(-1)[0].nonzero()[:, 0].tolist()
            assert set(changed) <= set(range(place, place + 4)) and place in changed


def test_a_block_by_hand():
    # Width 2, kernel 1: conv = identity, norm of (3, 1) = (1, -1), relu (1, 0), norm (1, -1), relu (1, 0): x + (1, 0).
    block = Dilated(2, 1, 1).requires_grad_(False)
    for convolution in block.convolutions:
        convolution.weight.copy_(torch.eye(2)[:, :, None])
        convolution.bias.zero_()
    assert block(torch.tensor([[[3.0, 1.0]]]))[0, 0].tolist() == pytest.approx([4.0, 1.0], abs=1e-4)


def test_attention_without_preference_is_the_mean_of_what_was_seen():
    # One layer, queries and keys 0: every place averages the values so far; the feed-forward layer is silent.
    model = build("recommend.session", "sasrec", 3, 2, layers=1, length=3).eval()
    silent(model)
    layer = model.blocks[0].layer
    for part in (layer.attention.value, layer.attention.output):
        part.weight.copy_(torch.eye(2))
    layer.attention_norm.weight.fill_(1.0)
    model.norm.weight.fill_(1.0)
    x = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]])
    n = F.layer_norm(x, (2,))  # (1, -1), (-1, 1), (1, -1)
    mean = n.cumsum(1) / torch.arange(1, 4)[:, None]  # 1, 0, 1/3 of (1, -1)
    torch.testing.assert_close(model.blocks(x), x + mean, rtol=1e-4, atol=1e-4)


def test_positions_count_from_the_first_item():
    model = silent(build("recommend.session", "sasrec", 3, 2, layers=1, length=5)).eval()
    model.places.position.weight.copy_(torch.arange(10.0).view(5, 2))
    items, _ = left(torch.tensor([[0, 0, 1, 2]]), 3)
    assert model.places(model.item(items))[0].tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_a_row_longer_than_the_positions_is_refused_in_training():
    model = build("recommend.session", "sasrec", 9, 4, length=3)
    with pytest.raises(ValueError, match="a row has 5 items, the model has 3 positions"):
        model(torch.arange(1, 7)[None])


def test_masks_hide_a_share_and_never_all():
    model = build("recommend.session", "bert4rec", 9, 4, masked=0.4, final=0.0, heads=1)
    items, length = left(torch.tensor([[1, 2, 3, 4, 5], [0, 0, 0, 6, 7], [0, 0, 0, 0, 8]]), 9)
    seen = torch.stack([model.draw(items, length) for model.step.data in map(torch.tensor, range(50))])
    assert seen.sum(2).unique(dim=0).tolist() == [[2, 1, 0]]  # .4 of 5, at least one of 2, none of 1
    assert bool(seen.any(0)[0].all())  # each place is masked at some step
    model.final = 1.0
    assert model.draw(items, length).int().argmax(1)[:2].tolist() == [4, 1]
    assert model.draw(items, length).sum(1).tolist() == [1, 1, 0]


def test_a_masked_item_is_not_seen_but_both_sides_are():
    torch.manual_seed(0)
    model = build("recommend.session", "bert4rec", 9, 8).eval()
    mask = 10
    see = lambda *row: model.hidden(torch.tensor([row]), torch.tensor([len(row)]))[0, 1]
    with torch.no_grad():
        assert not torch.allclose(see(1, mask, 3), see(2, mask, 3))
        assert not torch.allclose(see(1, mask, 3), see(1, mask, 4))
    caught = []
    model.hidden = lambda items, length: caught.append(items) or model.item(items)
    model(torch.tensor([[0, 1, 2, 3, 4, 5]]))
    assert int((caught[0] == mask).sum()) == 1


@pytest.mark.parametrize("settings", [{"masked": 0.0}, {"final": 2.0}, {"length": 1}])
def test_impossible_masks_are_refused(settings):
    with pytest.raises(ValueError, match="masked is a share above 0"):
        build("recommend.session", "bert4rec", 9, 4, **settings)


def test_sampled_softmax_by_hand():
    # Logits are the biases: label ln 4, drawn ln 1 and ln 3, and the label itself, which does not count: -ln(4 / 8).
    model = silent(build("recommend.session", "gru4rec", 3, 2, loss="sampled", negatives=1))
    model.bias.copy_(torch.tensor([4.0, 1.0, 3.0]).log())
    found = []
    for step in range(40):
        model.step.fill_(step)
        found.append(round(model.next_loss(torch.zeros(1, 2), torch.tensor([1])).item(), 4))
    assert set(found) == {round(-math.log(4 / 5), 4), round(-math.log(4 / 7), 4), 0.0}


def test_binary_cross_entropy_by_hand():
    # Label's logit 0: ln 2; the drawn item's logit ln 3: ln(1 + 3); when the label itself is drawn only the first.
    model = silent(build("recommend.session", "sasrec", 2, 2, loss="bce"))
    model.bias.copy_(torch.tensor([0.0, math.log(3)]))
    found = set()
    for step in range(20):
        model.step.fill_(step)
        found.add(round(model.next_loss(torch.zeros(1, 2), torch.tensor([1])).item(), 4))
    assert found == {round(math.log(2) + math.log(4), 4), round(math.log(2), 4)}


def test_bpr_max_by_hand():
    # Drawn logits 0 and ln 3 have shares 1/4 and 3/4; label ln 3: sigmoid(ln 3) = 3/4 and 1/2.
    right, wrong = torch.tensor([math.log(3)]), torch.tensor([[0.0, math.log(3)]])
    none = torch.zeros(1, 2, dtype=torch.bool)
    expected = -math.log(0.25 * 0.75 + 0.75 * 0.5)
    assert bpr_max(right, wrong, none, weight=0.0).item() == pytest.approx(expected, rel=1e-5)
    assert bpr_max(right, wrong, none).item() == pytest.approx(expected + 0.75 * math.log(3) ** 2, rel=1e-5)
    first = torch.tensor([[False, True]])
    assert bpr_max(right, wrong, first, weight=0.0).item() == pytest.approx(-math.log(0.75), rel=1e-5)


def test_rows_move_to_the_left():
    items, length = left(torch.tensor([[0, 0, 1, 2], [0, 3, 4, 5], [0, 0, 0, 0]]), 9)
    assert items.tolist() == [[1, 2, 0], [3, 4, 5], [0, 0, 0]]
    assert length.tolist() == [2, 3, 0]
    hidden = torch.arange(9.0).view(3, 3, 1)
    assert gather_last(hidden, length)[:, 0].tolist() == [1.0, 5.0, 6.0]


def test_a_sum_over_chunks_is_the_plain_softmax():
    torch.manual_seed(0)
    model = build("recommend.session", "gru4rec", 50, 8)
    items = torch.randint(1, 51, (6, 9))
    hidden = model.hidden(items[:, :-1], torch.full((6,), 8))
    logit = hidden @ model.item.weight[1:].T + model.bias
    expected = F.cross_entropy(logit.flatten(0, 1), items[:, 1:].flatten() - 1)
    torch.testing.assert_close(model(items)[0], expected)
