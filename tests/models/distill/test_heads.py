"""Words of whole models equal their logits."""

import pytest
import torch
from torch import nn

from models.components._model import assemble
from models.distill._heads import unformed
from models.distill._maths import token_kl

IDS = torch.arange(10).view(2, 5) + 3
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 40}


def causal(name: str, **more):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, num_key_value_heads=2, head_dim=4, **more)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)  # large enough for a cap to bend
    return model


def masked():
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SIZES)).eval()
    nn.init.normal_(model.cls.predictions.decoder.bias)
    return model


@pytest.mark.parametrize(
    ("model", "scale", "cap"),
    [
        (lambda: causal("Llama"), 1.0, None),
        (lambda: causal("Gemma2", final_logit_softcapping=3.0, query_pre_attn_scalar=4), 1.0, 3.0),
        (lambda: causal("Cohere", logit_scale=0.25), 0.25, None),
        (lambda: causal("Granite", logits_scaling=8.0), 0.125, None),
        (masked, 1.0, None),
    ],
)
def test_words_of_transformers_models(model, scale, cap):
    it = model()
    formed = it(input_ids=IDS).logits
    with unformed(it) as head:
        words = head.words(it(input_ids=IDS).logits)
    assert words.scale == pytest.approx(scale) and (words.cap is None) == (cap is None)
    assert cap is None or words.cap == pytest.approx(cap)
    torch.testing.assert_close(words.tensor(), formed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(it(input_ids=IDS).logits, formed)  # and all is as before


def test_gradients_flow_into_the_whole_model():
    student, mask = causal("Gemma2", final_logit_softcapping=3.0, query_pre_attn_scalar=4), torch.ones_like(IDS).bool()
    teacher = causal("Llama")(input_ids=IDS).logits.detach()
    grads = []
    for whole in (True, False):
        student.zero_grad()
        if whole:
            logits = student(input_ids=IDS).logits
        else:
            with unformed(student) as head:
                logits = head.words(student(input_ids=IDS).logits)
        token_kl(logits, teacher, mask).backward()
        grads.append({name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 8
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)


def test_words_of_our_models():
    recipe = {
        "width": 8,
        "vocabulary": 40,
        "embedding": {"word": {}, "position": {"length": 8}},
        "encoder": {"transformer": {"layers": 1, "heads": 2, "inner": 8, "mask": "causal"}},
        "target": {"lm": {"rescale": True}},
    }
    model = assemble(recipe).eval()
    with unformed(model, "lm") as head:
        words = head.words(model.predict("lm", ids=IDS))
    torch.testing.assert_close(words.tensor(), model.predict("lm", ids=IDS))


class Odd(nn.Module):
    """Does something unheard of to its logits."""

    def __init__(self, last):
        super().__init__()
        self.head, self.last = nn.Linear(3, 7), last

    def get_output_embeddings(self):
        return self.head

    def forward(self, x):
        return self.last(self.head(x))


@pytest.mark.parametrize(
    "last", [lambda z: z + 1, lambda z: z.relu(), lambda z: z.clamp(-30, 30), lambda z: z[..., :2]]
)
def test_what_words_cannot_say_is_refused(last):
    model = Odd(last)
    with unformed(model) as head, pytest.raises(LookupError, match="form"):
        head.words(model(torch.ones(2, 3)))
    assert model(torch.ones(2, 3)).shape[-1] in (2, 7)
    with pytest.raises(RuntimeError, match="size"), unformed(model) as head:  # adding a bias of V fails by itself
        head.words(model(torch.ones(2, 3)) + torch.zeros(7))


def test_a_forward_that_others_replaced_comes_back():
    model = Odd(lambda z: z)
    model.head.forward = lambda x: 2 * nn.functional.linear(x, model.head.weight, model.head.bias)
    before = model(torch.ones(2, 3))
    with unformed(model):
        model(torch.ones(2, 3))
    assert torch.equal(model(torch.ones(2, 3)), before)


def test_a_head_that_is_no_linear_map_is_refused():
    model = Odd(lambda z: z)
    model.head = nn.Sequential(nn.Linear(3, 7))
    with pytest.raises(LookupError, match="Sequential, not one linear map"), unformed(model):
        pass
