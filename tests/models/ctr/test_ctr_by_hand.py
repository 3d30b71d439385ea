"""Each click model's own number, worked out by hand."""

import math

import pytest
import torch

from models import build
from models.recommend.ctr._ctr import Fields, bi_interaction
from models.recommend.ctr.dcnv2 import Cross, Mixture
from models.recommend.ctr.xdeepfm import CIN

NONE = torch.empty(1, 0)


def ones(name: str, sizes: list[int], **settings) -> torch.nn.Module:
    """A model whose perceptron is silent and whose field vectors are 1, 2, 3 ... by field, in every entry."""
    torch.manual_seed(0)
    model = build("recommend.ctr", name, sizes, 0, **settings).eval().requires_grad_(False)
    for part in (getattr(model, "deep", None), getattr(model, "out", None)):
        for parameter in part.parameters() if part is not None else ():
            parameter.zero_()
    table, start = model.fields.inputs.table, 0
    for field, size in enumerate(sizes):
        table[start : start + size] = field + 1.0
        start += size
    return model


def test_wide_and_deep_adds_the_weights_of_ids_and_of_crossed_ids():
    # w_0 = 0.5, w of field 0's id 1 = 2, of field 1's id 0 = -1, of their cross 4: 5.5.
    model = ones("wide_deep", [2, 3], crosses=[(0, 1)], buckets=50)
    model.wide.bias.fill_(0.5)
    model.wide.inputs.table[1], model.wide.inputs.table[2] = 2.0, -1.0
    row, other = torch.tensor([[1, 0]]), torch.tensor([[1, 1]])
    model.crossed.table[model.hashed(row)[0, 0]] = 4.0
    assert model.logits(row, NONE).item() == 5.5
    assert model.logits(other, NONE).item() == 2.5
    assert len(model.hashed(torch.cartesian_prod(torch.arange(2), torch.arange(3))).unique()) > 3


def test_crosses_name_fields_that_are_there():
    with pytest.raises(ValueError, match=r"pairs of fields 0..1; got \[\(0, 2\)\]"):
        build("recommend.ctr", "wide_deep", [2, 3], 0, crosses=[(0, 2)])


def test_deepfm_adds_the_products_of_all_pairs():
    # Vectors (1, 1), (2, 2), (3, 3): <1,2> + <1,3> + <2,3> = 4 + 6 + 12 = 22; first order 0.25.
    model = ones("deepfm", [2, 2, 2], embedding=2)
    model.first_order.bias.fill_(0.25)
    assert model.logits(torch.zeros(1, 3, dtype=torch.long), NONE).item() == 22.25


def test_the_interaction_network_by_hand():
    # F = 2, d = 1, fields 2 and 3. With weights 1: X^1 = (2 + 3)^2 = 25 in both maps, X^2 = (25 + 25)(2 + 3) = 250.
    cin = CIN(2, [2, 1]).requires_grad_(False)
    for weight in cin.weights:
        weight.fill_(1.0)
    assert cin(torch.tensor([[[2.0], [3.0]]])).tolist() == [[25.0, 25.0, 250.0]]


def test_the_interaction_network_is_its_equation():
    torch.manual_seed(0)
    cin, x0 = CIN(3, [4, 5]).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    x, found = x0, []
    for weight_FGH in cin.weights:
        x = torch.einsum("jih,bid,bjd->bhd", weight_FGH, x, x0)
        found.append(x.sum(-1))
    torch.testing.assert_close(cin(x0), torch.cat(found, -1))


def test_xdeepfm_weighs_what_is_pooled():
    model = ones("xdeepfm", [1, 1], embedding=1, cin=[1])
    model.cin.weights[0].fill_(1.0)
    model.crossed.weight.fill_(2.0)
    assert model.logits(torch.zeros(1, 2, dtype=torch.long), NONE).item() == 18.0  # 2 (1 + 2)^2


def test_nfm_pools_all_pairs_before_its_perceptron():
    # Pairs of 1, 2, 3: 2 + 3 + 6 = 11 in each of two entries; the perceptron takes their sum.
    model = ones("nfm", [1, 1, 1], embedding=2, deep=[1], norm=False)
    model.first.weight.fill_(1.0)
    model.first.bias.zero_()
    model.out.layers[0].weight.fill_(1.0)
    assert model.logits(torch.zeros(1, 3, dtype=torch.long), NONE).item() == 22.0


def test_pairs_in_linear_time_are_the_pairs():
    torch.manual_seed(0)
    v = torch.randn(4, 5, 3, dtype=torch.float64)
    expected = sum(v[:, i] * v[:, j] for i in range(5) for j in range(i))
    torch.testing.assert_close(bi_interaction(v), expected)


def test_afm_with_silent_attention_is_the_mean_of_the_pairs():
    # Pairs 2, 3, 6 with one third each: 11 / 3, times p = 1. With h W = ln 2 per unit of the product: 2^2, 2^3, 2^6.
    model = ones("afm", [1, 1, 1], embedding=1, attention=1)
    model.p.weight.fill_(1.0)
    model.h.weight.zero_()
    row = torch.zeros(1, 3, dtype=torch.long)
    assert model.logits(row, NONE).item() == pytest.approx(11 / 3)
    model.h.weight.fill_(math.log(2))
    model.attention.weight.fill_(1.0)
    model.attention.bias.zero_()
    assert model.logits(row, NONE).item() == pytest.approx((2 * 4 + 3 * 8 + 6 * 64) / (4 + 8 + 64), rel=1e-5)


def test_cross_layers_by_hand():
    # x_0 = (1, 2), W = 1, b = (0, 1): x_1 = (1 * 1 + 1, 2 * 3 + 2) = (2, 8), x_2 = (1 * 2 + 2, 2 * 9 + 8) = (4, 26).
    layer = Cross(2).requires_grad_(False)
    layer.map.weight.copy_(torch.eye(2))
    layer.map.bias.copy_(torch.tensor([0.0, 1.0]))
    x0 = torch.tensor([[1.0, 2.0]])
    x1 = layer(x0, x0)
    assert x1.tolist() == [[2.0, 8.0]]
    assert layer(x0, x1).tolist() == [[4.0, 26.0]]


@pytest.mark.parametrize("experts", [1, 3])
def test_the_mixture_is_its_equation(experts):
    torch.manual_seed(0)
    layer = Mixture(5, 2, experts).double()
    torch.nn.init.normal_(layer.bias_D)
    x0, x = torch.randn(2, 4, 5, dtype=torch.float64)
    share = torch.ones(4, 1) if layer.gate is None else layer.gate(x).float().softmax(-1)
    parts = [
        share[:, i, None] * x0 * (torch.tanh(torch.tanh(x @ v) @ c) @ u + layer.bias_D)
        for i, (v, c, u) in enumerate(zip(layer.v_EDR, layer.c_ERR, layer.u_ERD, strict=True))
    ]
    torch.testing.assert_close(layer(x0, x), sum(parts) + x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", [{"structure": "parallel"}, {"rank": 3}, {"rank": 2, "experts": 1}])
def test_every_form_of_dcnv2_trains(settings):
    torch.manual_seed(0)
    model = build("recommend.ctr", "dcnv2", [5, 4], 2, deep=[8], **settings)
    loss, _ = model(torch.randint(0, 4, (16, 2)), torch.rand(16, 2), (torch.rand(16) < 0.5).float())
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("settings", [{"structure": "sideways"}, {"rank": 0}, {"experts": 0}, {"layers": 0}])
def test_impossible_forms_of_dcnv2_are_refused(settings):
    with pytest.raises(ValueError, match="structure is stacked or parallel"):
        build("recommend.ctr", "dcnv2", [5, 4], 2, **settings)


@pytest.mark.parametrize("name", ["nfm", "afm"])
def test_one_field_has_no_pair(name):
    with pytest.raises(ValueError, match="crosses fields and needs 2 or more"):
        build("recommend.ctr", name, [5], 0)


def test_numerical_columns_are_the_first_field():
    fields = Fields([2, 2], 3, 4)
    fields.inputs.linear.requires_grad_(False)
    fields.inputs.linear.weight.fill_(1.0)
    fields.inputs.linear.bias.zero_()
    v = fields(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[1.0, 2.0, 3.0]]))
    assert v.shape == (1, 3, 4)
    assert v[0, 0].tolist() == [6.0] * 4
