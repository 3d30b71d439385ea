import math

import pytest
import torch
from torch.nn import functional as F

from models.components._attention import (
    Attention,
    alibi,
    buckets,
    cross_view,
    frequencies,
    rotate,
    turns,
    view,
)
from models.components._dropout import dropout
from models.components._rows import Rows

WIDTH, HEADS, PLACES = 8, 2, 5
RIGHT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
LEFT = RIGHT.flip(1)
HOLES = torch.tensor([[1, 0, 1, 1, 1], [0, 1, 1, 0, 1], [1, 1, 0, 0, 1]]).bool()
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2], [0, 0, 0, 0, 1]])
PREFIX = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()


def attention(kv_heads=HEADS, dropout=0.0):
    torch.manual_seed(0)
    return Attention(WIDTH, HEADS, kv_heads, 4, True, dropout, 0.5)


def by_hand(layer, hidden, allowed_BTS, bias=0.0, memory=None):
    """Plain attention with a loop over heads; a query without keys gets zeros."""
    memory = hidden if memory is None else memory
    query, key, value = layer.query(hidden), layer.key(memory), layer.value(memory)
    group, mixed = query.shape[-1] // key.shape[-1], []
    for head in range(HEADS):
        own, shared = slice(4 * head, 4 * head + 4), slice(4 * (head // group), 4 * (head // group) + 4)
        logits = query[..., own] @ key[..., shared].mT * layer.scale
        logits = logits + (bias[head] if torch.is_tensor(bias) else bias)
        share = logits.masked_fill(~allowed_BTS, -1e30).softmax(-1) * allowed_BTS.any(-1, keepdim=True)
        mixed.append(share @ value[..., shared])
    return layer.output(torch.cat(mixed, -1))


def allowed(kind, mask, documents, prefix):
    """The definition, place by place."""
    table = torch.zeros(3, PLACES, PLACES, dtype=torch.bool)
    for row in range(3):
        for query in range(PLACES):
            for key in range(PLACES):
                sees = kind == "full" or key <= query or (kind == "prefix" and prefix is not None and prefix[row, key])
                same = documents is None or documents[row, query] == documents[row, key]
                table[row, query, key] = bool(sees and same and mask[row, key])
    return table


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("held", [False, True], ids=["torch", "held"])
@pytest.mark.parametrize("mask", [None, RIGHT, LEFT, HOLES], ids=["all", "right", "left", "holes"])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("kind", ["full", "causal", "prefix"])
def test_every_mask_equals_its_definition(kind, documents, mask, held, kv_heads):
    layer, hidden = attention(kv_heads), torch.randn(3, PLACES, WIDTH, requires_grad=True)
    rows = Rows.of((3, PLACES), mask=mask, documents=documents, prefix=PREFIX)
    real = rows.mask
    table = allowed(kind, real, documents, PREFIX)
    for bias in (None, alibi(HEADS, PLACES, "cpu")):
        got = layer(hidden, view(rows, kind, bias, held))
        wanted = by_hand(layer, hidden, table, 0.0 if bias is None else bias)
        torch.testing.assert_close(got[real], wanted[real], rtol=1e-5, atol=1e-6)
        assert got.isfinite().all()
        ours, theirs = (torch.autograd.grad(out[real].square().sum(), hidden)[0] for out in (got, wanted))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("held", [False, True], ids=["torch", "held"])
def test_a_query_without_keys_gets_zeros_and_no_nan(held):
    layer = attention()
    hidden = torch.randn(3, PLACES, WIDTH, requires_grad=True)
    rows = Rows.of((3, PLACES), mask=RIGHT)
    out = layer(hidden, view(rows, "full", held=held))
    torch.testing.assert_close(out[2], layer.output.bias.expand(PLACES, WIDTH))
    (grad,) = torch.autograd.grad(out.sum(), hidden)
    assert grad.isfinite().all() and not grad[2].any()


@pytest.mark.parametrize("held", [False, True], ids=["torch", "held"])
def test_cross_attention_sees_real_memory_of_its_own_document(held):
    layer, hidden = attention(), torch.randn(3, 2, WIDTH)
    memory = torch.randn(3, PLACES, WIDTH)
    own = torch.tensor([[0, 1], [1, 2], [0, 0]])
    rows, keys = Rows.of((3, 2), documents=own), Rows.of((3, PLACES), mask=HOLES, documents=DOCUMENTS)
    table = (own[:, :, None] == DOCUMENTS[:, None]) & HOLES[:, None]
    got = layer(hidden, cross_view(rows, keys, held), memory=memory)
    torch.testing.assert_close(got, by_hand(layer, hidden, table, memory=memory), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="the source is packed but the target has no documents"):
        cross_view(Rows.of((3, 2)), keys)


def test_no_tensor_where_none_is_needed():
    assert view(Rows.of((3, PLACES)), "full").mask is None
    for rows in (Rows.of((3, PLACES)), Rows.of((3, PLACES), mask=RIGHT)):
        sees = view(rows, "causal")
        assert sees.causal and sees.mask is None
    assert not view(Rows.of((3, PLACES), mask=LEFT), "causal").causal
    assert view(Rows.of((3, PLACES), mask=RIGHT), "full").mask.shape == (3, 1, 1, PLACES)


def test_scores_are_carried():
    layer, hidden = attention(), torch.randn(1, PLACES, WIDTH)
    sees = view(Rows.of((1, PLACES)), "full", held=True)
    first, scores = layer.carried(hidden, sees, None, None)
    torch.testing.assert_close(first, layer(hidden, sees))
    query, key = (part(hidden).unflatten(-1, (HEADS, 4)).transpose(1, 2) for part in (layer.query, layer.key))
    torch.testing.assert_close(scores, query @ key.mT * 0.5)
    second, doubled = layer.carried(hidden, sees, None, scores)
    torch.testing.assert_close(doubled, 2 * scores)
    value = layer.value(hidden).unflatten(-1, (HEADS, 4)).transpose(1, 2)
    mixed = (2 * scores).softmax(-1) @ value
    torch.testing.assert_close(second, layer.output(mixed.transpose(1, 2).flatten(2)))


def test_buckets_by_hand():
    # One way, 8 buckets up to distance 16: 0..3 alone, then 4 + floor(ln(d / 4) / ln 4 * 4): 4, 5 | 6, 7 | 8..11 | 12..
    row = buckets(18, 18, 8, 16, both=False, device="cpu")[17].flip(0)
    assert row.tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7]
    assert buckets(2, 3, 8, 16, both=False, device="cpu").tolist() == [[0, 0, 0], [1, 0, 0]]
    # Both ways: keys to the left have 0..3, those to the right 4..7.
    assert buckets(1, 3, 8, 16, both=True, device="cpu").tolist() == [[0, 5, 6]]
    assert buckets(3, 1, 8, 16, both=True, device="cpu").tolist() == [[0], [1], [2]]


def test_alibi_by_hand():
    assert [-x for x in alibi(4, 2, "cpu")[:, 1, 0].tolist()] == [2**-2, 2**-4, 2**-6, 2**-8]
    six = [-x for x in alibi(6, 2, "cpu")[:, 1, 0].tolist()]
    assert six == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    assert alibi(4, 3, "cpu")[0].tolist() == [[0, -0.25, -0.5], [-0.25, 0, -0.25], [-0.5, -0.25, 0]]


def test_rotary_by_hand():
    # A head of 4 entries: pair (0, 2) turns a radian a place, pair (1, 3) a hundredth.
    assert frequencies(4, 10000.0).tolist() == pytest.approx([1, 0.01])
    heads = torch.tensor([[[[1.0, 2.0, 0.0, 0.0]]] * 2]).view(1, 2, 1, 4)
    turned = rotate(heads, turns(torch.tensor([[0, 3]]), frequencies(4, 10000.0)))[0, :, 0]
    wanted = [math.cos(3), 2 * math.cos(0.03), math.sin(3), 2 * math.sin(0.03)]
    torch.testing.assert_close(turned, torch.tensor([[1.0, 2.0, 0.0, 0.0], wanted]))


def test_rotary_products_depend_on_the_distance_only():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8)
    at = lambda head, place: rotate(head, turns(torch.tensor([[place]]), frequencies(8, 10000.0)))
    torch.testing.assert_close((at(query, 7) * at(key, 4)).sum(), (at(query, 103) * at(key, 100)).sum())


def test_scaled_frequencies_by_hand():
    # Context 128, low 1, high 4: waves longer than 128 places are stretched eightfold, shorter than 32 kept; the wave
    # of 64 places fits twice, a third of the way from 1 to 4: 1/3 kept + 2/3 stretched.
    theta = 64 / (2 * math.pi)  # the second of two pairs has the base's -1/2 th power
    plain = frequencies(4, theta**2)
    assert plain[1].item() == pytest.approx(2 * math.pi / 64)
    scaled = frequencies(4, theta**2, {"factor": 8.0, "low": 1.0, "high": 4.0, "length": 128})
    assert scaled[0] == plain[0]
    assert scaled[1].item() == pytest.approx(plain[1].item() * (1 / 3 + 2 / 3 / 8))
    longest = frequencies(4, 1e8, {"factor": 8.0, "low": 1.0, "high": 4.0, "length": 128})[1]
    assert longest.item() == pytest.approx(1e-4 / 8)


def test_dropout_keeps_the_mean_and_the_same_elements_backward():
    torch.manual_seed(0)
    x = torch.ones(300, 1001, requires_grad=True)
    out = dropout(x, 0.1, True)
    assert sorted(out.unique().tolist()) == [0.0, pytest.approx(1 / 0.9, rel=1e-4)]
    assert (out == 0).float().mean().item() == pytest.approx(0.1, abs=0.003)
    assert out.mean().item() == pytest.approx(1, abs=0.003)
    out.sum().backward()
    assert torch.equal(x.grad, out)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.1, True), out)
    assert dropout(x, 0.1, False) is x and dropout(x, 0.0, True) is x
    assert not dropout(x, 1.0, True).any()
    neighbours = (out[:, :-1] == 0) & (out[:, 1:] == 0)
    assert neighbours.float().mean().item() == pytest.approx(0.01, abs=0.001)
    with pytest.raises(ValueError, match="0..1, got 1.5"):
        dropout(x, 1.5, True)


def test_held_attention_drops_shares():
    # Half of the shares are dropped, the rest doubled: over many draws the mean is that without dropout.
    layer, hidden = attention(dropout=0.5), torch.randn(1, PLACES, WIDTH)
    sees = view(Rows.of((1, PLACES)), "full", held=True)
    mean = torch.stack([layer(hidden, sees) for _ in range(2000)]).mean(0)
    wanted = layer.eval()(hidden, sees)
    assert F.mse_loss(mean, wanted).sqrt() < 0.02 * wanted.std() + 0.01
