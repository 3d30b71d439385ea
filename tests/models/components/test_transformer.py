import pytest
import torch
from torch.nn import functional as F

from models import build
from models.components._feedforward import ACTIVATIONS, FeedForward
from models.components._norm import RMSNorm, make_norm
from models.components._rows import Rows

SIZE = {"layers": 2, "heads": 2, "inner": 12, "dropout": 0.0}
B, T, WIDTH = 2, 6, 8
SWITCHES = {
    "bert": {},
    "gpt2": {"mask": "causal", "norm_first": True, "act": "gelu_tanh"},
    "llama": {"mask": "causal", "norm_first": True, "norm": "rms", "gated": True, "act": "silu", "bias": False}
    | {"kv_heads": 1, "positions": "rotary"},
    "bloom": {"mask": "causal", "norm_first": True, "positions": "alibi"},
    "t5": {"norm_first": True, "norm": "t5", "positions": "relative", "scale": False, "bias": False, "head_width": 6},
    "albert": {"shared": True},
    "realformer": {"residual_attention": True},
    "prefix": {"mask": "prefix", "layer_scale": True, "attention_bias": False},
}


def stack(folder="encoder", **settings):
    torch.manual_seed(0)
    part = build(f"components.{folder}", "transformer", WIDTH, **SIZE | settings)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return part


def rows(**fields):
    return Rows.of((B, T), **fields)


def test_one_layer_by_hand():
    # The attention's value and output and the whole feed-forward layer are identities (act: linear), one head of width
    # 2, queries are zero: every token gets the mean token m. x1 = norm(x + m), x2 = norm(x1 + x1) = x1.
    part = build("components.encoder", "transformer", 2, 1, 1, 2, act="linear", dropout=0.0)
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.zeros(2, 2) if "query" in name else torch.eye(2))
            elif "norm.weight" not in name:
                parameter.zero_()
    # tokens (4, 0) and (0, 2): m = (2, 1); sums (6, 1) and (2, 3), each normed to +-1
    out = part(torch.tensor([[[4.0, 0.0], [0.0, 2.0]]]), Rows.of((1, 2)))
    torch.testing.assert_close(out, torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]))


@pytest.mark.parametrize("name", SWITCHES)
def test_padding_never_counts(name):
    part, real = stack(**SWITCHES[name]), torch.arange(T) < torch.tensor([[6], [4]])
    hidden = torch.randn(B, T, WIDTH)
    noisy = hidden.where(real[..., None], 9.0)
    clean, changed = part(hidden, rows(mask=real)), part(noisy, rows(mask=real))
    torch.testing.assert_close(clean[real], changed[real])
    alone = part(hidden[1:, :4], Rows.of((1, 4)))
    torch.testing.assert_close(clean[1:, :4], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_documents_never_meet(name, train):
    part = stack(**SWITCHES[name]).train(train)
    hidden = torch.randn(1, T, WIDTH, requires_grad=True)
    packed = {"documents": torch.tensor([[0, 0, 0, 0, 1, 1]]), "positions": torch.tensor([[0, 1, 2, 3, 0, 1]])}
    prefix = torch.tensor([[1, 1, 0, 0, 1, 0]]).bool()
    out = part(hidden, Rows.of((1, T), prefix=prefix, **packed))
    for place in (slice(0, 4), slice(4, 6)):
        alone = part(hidden[:, place], Rows.of((1, place.stop - place.start), prefix=prefix[:, place]))
        torch.testing.assert_close(out[:, place], alone, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(out[:, 4:].square().sum(), hidden)
    assert not grad[:, :4].any() and grad[:, 4:].any()


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_causal_never_looks_ahead(name):
    part, hidden = stack(**SWITCHES[name]), torch.randn(B, T, WIDTH, requires_grad=True)
    (grad,) = torch.autograd.grad(part(hidden, rows())[:, 2].sum(), hidden)
    assert not grad[:, 3:].any() and grad[:, :3].any(-1).all()


def test_prefix_sees_all_of_the_source_and_the_rest_is_causal():
    part, hidden = stack(mask="prefix"), torch.randn(B, T, WIDTH, requires_grad=True)
    source = torch.arange(T).expand(B, T) < 3
    out = part(hidden, rows(prefix=source))
    (first,) = torch.autograd.grad(out[:, 0].square().sum(), hidden, retain_graph=True)
    assert first[:, :3].any(-1).all() and not first[:, 3:].any()
    (later,) = torch.autograd.grad(out[:, 4].square().sum(), hidden)
    assert later[:, :5].any(-1).all() and not later[:, 5:].any()
    torch.testing.assert_close(part(hidden, rows()), stack(mask="causal")(hidden, rows()))


def test_dropout_free_training_equals_evaluation():
    for name, switches in SWITCHES.items():
        part, hidden = stack(**switches), torch.randn(B, T, WIDTH)
        torch.testing.assert_close(part(hidden, rows()), part.eval()(hidden, rows()), msg=name)


def test_attention_dropout_alone_makes_training_random():
    part, hidden = stack(attention_dropout=0.5), torch.randn(B, T, WIDTH)
    assert not torch.equal(part(hidden, rows()), part(hidden, rows()))
    part.eval()
    assert torch.equal(part(hidden, rows()), part(hidden, rows()))


def test_shared_layers_are_one():
    part = stack(shared=True, layers=3)
    assert len(part.layers) == 1
    hidden = torch.randn(B, T, WIDTH)
    single = stack(layers=1)
    by_hand = hidden
    for _ in range(3):
        by_hand = single(by_hand, rows())
    torch.testing.assert_close(part(hidden, rows()), by_hand)


def test_layer_scale_divides_logits_by_the_layers_number():
    plain, scaled = stack(), stack(layer_scale=True)
    with torch.no_grad():
        scaled.layers[1].attention.query.weight.mul_(2)
        scaled.layers[1].attention.query.bias.mul_(2)
    hidden = torch.randn(B, T, WIDTH)
    torch.testing.assert_close(plain(hidden, rows()), scaled(hidden, rows()))


def test_scores_reach_the_next_layer():
    plain, residual = stack(), stack(residual_attention=True)
    hidden = torch.randn(B, T, WIDTH)
    assert not torch.allclose(plain(hidden, rows()), residual(hidden, rows()), atol=1e-3)
    one = {"layers": 1}
    torch.testing.assert_close(
        stack(**one)(hidden, rows()), stack(residual_attention=True, **one)(hidden, rows()), rtol=1e-5, atol=1e-5
    )


def test_relative_positions_are_one_table_for_all_layers():
    part = stack(positions="relative", buckets=8, distance=6)
    assert part.relative.weight.shape == (8, 2)
    hidden = torch.randn(B, T, WIDTH)
    before = part(hidden, rows())
    part(hidden, rows()).square().sum().backward()
    assert part.relative.weight.grad.any()
    with torch.no_grad():
        part.relative.weight += 1  # softmax does not see what is added to all keys
    torch.testing.assert_close(part(hidden, rows()), before, rtol=1e-4, atol=1e-5)


def test_decoder_reads_its_past_and_all_of_the_memory():
    part = stack("decoder")
    target = torch.randn(B, 4, WIDTH, requires_grad=True)
    memory = torch.randn(B, T, WIDTH, requires_grad=True)
    real = torch.arange(T) < torch.tensor([[6], [3]])
    out = part(target, Rows.of((B, 4)), memory, rows(mask=real))
    own, read = torch.autograd.grad(out[:, 1].square().sum(), (target, memory))
    assert own[:, :2].any(-1).all() and not own[:, 2:].any()
    assert torch.equal(read.any(-1), real)
    blind = part(target, Rows.of((B, 4)), memory, rows(mask=torch.zeros(B, T, dtype=torch.bool)))
    assert blind.isfinite().all()


def test_parameter_count_by_formula():
    # 2 layers: attention 4 (D^2 + D), two norms 2 * 2 D, feed-forward 2 D F + F + D.
    count = sum(parameter.numel() for parameter in stack().parameters())
    assert count == 2 * (4 * (64 + 8) + 2 * 16 + 2 * 96 + 12 + 8)
    llama = sum(parameter.numel() for parameter in stack(**SWITCHES["llama"]).parameters())
    assert llama == 2 * (2 * 64 + 2 * 32 + 3 * 96 + 2 * 8) + 8


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"heads": 3}, "heads 3 does not divide width 8"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads 3 does not divide heads 4"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"dropout": 1.5}, "dropout must be in"),
        ({"mask": "casual"}, "closest: causal"),
        ({"positions": "rotarry"}, "closest: rotary"),
        ({"norm": "laier"}, "closest: layer"),
        ({"act": "gelo"}, "closest: gelu"),
        ({"positions": "rotary", "head_width": 3}, "a head is 3 wide"),
        ({"positions": "alibi", "scaling": {"factor": 8.0}}, "positions is alibi"),
        ({"positions": "rotary", "scaling": {"factor": 8.0}}, "scaling needs factor, low, high, length; got factor"),
        ({"shared": True, "layer_scale": True}, "shared layers"),
        ({"positions": "relative", "buckets": 3}, "3 buckets"),
    ],
)
def test_what_cannot_be_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        stack(**settings)


def test_a_decoder_is_causal():
    with pytest.raises(ValueError, match="its mask is causal, not full"):
        stack("decoder", mask="full")


def test_norms_by_hand():
    # (3, 4): mean square 12.5; rms norm 3 / sqrt(12.5). Mean 3.5, biased deviation 0.5; layer norm -1, 1.
    x = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(RMSNorm(2, 0.0)(x), x / 12.5**0.5)
    torch.testing.assert_close(make_norm("layer", 2, 0.0)(x), torch.tensor([[-1.0, 1.0]]))
    assert make_norm("none", 2, 0.0)(x) is x and make_norm(None, 2, 0.0)(x) is x


def test_feed_forward_by_hand():
    part = FeedForward(1, 1, "relu", True, False)
    for layer, value in ((part.inner, 2.0), (part.gate, 3.0), (part.outer, 5.0)):
        torch.nn.init.constant_(layer.weight, value)
    assert part(torch.tensor([[2.0], [-2.0]])).tolist() == [[5 * 6 * 4], [0]]


def test_activations_by_hand():
    one = torch.tensor(1.0)
    values = {name: act(one).item() for name, act in ACTIVATIONS.items()}
    assert values["gelu"] == pytest.approx(0.841345, abs=1e-6)  # the normal distribution at 1
    assert values["gelu_tanh"] == pytest.approx(0.841192, abs=1e-6)
    assert values["quick_gelu"] == pytest.approx(1 / (1 + 2.718281828**-1.702), abs=1e-6)
    assert values["silu"] == pytest.approx(0.731059, abs=1e-6)
    assert (values["relu"], values["linear"]) == (1, 1) and values["tanh"] == pytest.approx(F.tanh(one).item())


def test_bfloat16_is_near():
    for name, switches in SWITCHES.items():
        part, hidden = stack(**switches), torch.randn(B, T, WIDTH)
        exact = part(hidden, rows())
        with torch.autocast("cpu", torch.bfloat16):
            near = part(hidden, rows())
        assert (near - exact).norm() < 0.05 * exact.norm(), name
