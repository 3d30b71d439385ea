import pytest
import torch

from models.components import _mixing
from models.components._attention import Attention, View
from models.components._dropout import draw
from models.components._mixing import mix


def case(dtype=torch.float64):
    torch.manual_seed(0)
    query, *rest = (torch.randn(5, places, 3, 4, dtype=dtype, requires_grad=True) for places in (6, 7, 7))
    return query, *rest


def hidden_keys(rows: int, heads: int, dtype) -> torch.Tensor:
    hidden = torch.rand(rows, heads, 1, 7) < 0.3
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(torch.float32).min)


def plain(query, key, value, addend, scale: float, kept, rate: float):
    logits = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * scale
    share = (logits if addend is None else logits + addend).softmax(-1)
    return (share * kept / (1 - rate) @ value.transpose(1, 2)).transpose(1, 2)


def test_by_hand():
    # Logits ln 3 and 0: shares 3/4 and 1/4 of values 4 and 8; nothing is dropped.
    query, key = torch.ones(1, 1, 1, 1), torch.tensor([[[[2.1972246]], [[0.0]]]])
    mixed = mix(query, key, torch.tensor([[[[4.0]], [[8.0]]]]), None, 0.5, 0.0)
    assert mixed.item() == pytest.approx(5.0)


@pytest.mark.parametrize("addend", [None, (1, 1), (5, 1), (1, 3)])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_value_and_gradients_are_the_plain_ones_however_it_is_cut(monkeypatch, addend, rows):
    monkeypatch.setattr(_mixing, "CHUNK", rows * 3 * 6 * 7)
    heads = case()
    added = None if addend is None else hidden_keys(*addend, torch.float64)
    torch.manual_seed(1)
    found = mix(*heads, added, 0.5, 0.25)
    torch.manual_seed(1)
    kept = torch.cat([draw((min(rows, 5 - start), 3, 6, 7), 2**14) for start in range(0, 5, rows)])
    wanted = plain(*heads, added, 0.5, kept, 0.25)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    upstream = torch.randn_like(found)
    for one, other in zip(*(torch.autograd.grad(x, heads, upstream) for x in (found, wanted)), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_in_bfloat16_softmax_is_still_of_float32():
    heads = [x.detach().bfloat16().requires_grad_() for x in case(torch.float32)]
    torch.manual_seed(1)
    found = mix(*heads, None, 0.5, 0.25)
    torch.manual_seed(1)
    wide = [x.detach().float().requires_grad_() for x in heads]
    wanted = mix(*wide, None, 0.5, 0.25)
    assert found.dtype == torch.bfloat16
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
    found.sum().backward(), wanted.sum().backward()
    for one, other in zip(heads, wide, strict=True):
        assert (one.grad - other.grad).abs().max() < 0.02 * max(1.0, other.grad.abs().max().item())


def test_on_average_nothing_is_lost():
    torch.manual_seed(0)
    value = torch.ones(400, 8, 2, 4)
    mixed = mix(torch.randn(400, 8, 2, 4), torch.randn(400, 8, 2, 4), value, None, 0.5, 0.5)
    assert mixed.mean().item() == pytest.approx(1.0, abs=0.02)
    assert mixed.std() > 0.1


def test_attention_drops_here_what_it_holds_when_watched():
    torch.manual_seed(0)
    attention = Attention(8, heads=2, kv_heads=1, head_width=4, bias=True, dropout=0.25, scale=0.5).train()
    hidden, sees = torch.randn(3, 6, 8), View(held=True)
    torch.manual_seed(1)
    here = attention(hidden, sees)
    attention.watch(lambda heads: lambda scores: None)
    torch.manual_seed(1)
    assert torch.allclose(here, attention(hidden, sees), atol=1e-6)


def test_a_query_without_keys_gets_zeros():
    attention = Attention(8, heads=2, kv_heads=2, head_width=4, bias=False, dropout=0.25, scale=0.5).train()
    sighted = torch.ones(3, 1, 6, 1, dtype=torch.bool)
    sighted[1] = False
    mixed = attention(torch.randn(3, 6, 8), View(held=True, sighted=sighted))
    assert not mixed[1].any() and mixed[0].any()


def test_a_bias_with_a_gradient_keeps_it():
    attention = Attention(8, heads=2, kv_heads=2, head_width=4, bias=True, dropout=0.25, scale=0.5).train()
    bias = torch.zeros(1, 2, 6, 6, requires_grad=True)
    attention(torch.randn(3, 6, 8), View(held=True, addend=bias)).square().sum().backward()
    assert bias.grad.abs().max() > 0
