"""Causal language models of transformers under the training loop: masks, chunked losses, losses by source."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from models.fit import fit
from models.language._causal import Causal

V = 61
COMMON = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = COMMON | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SMALL | {"intermediate_size": 24, "num_key_value_heads": 2}
MADE = {
    "gpt2": lambda **more: GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=32, **COMMON, **more)
    ),
    "llama": lambda **more: LlamaForCausalLM(LlamaConfig(**GROUPED, **more)),
    "bloom": lambda **more: BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=2, n_head=4, **COMMON, **more)),
    "gemma2": lambda **more: Gemma2ForCausalLM(Gemma2Config(head_dim=4, **GROUPED, **more)),  # caps its logits
    "cohere": lambda **more: CohereForCausalLM(CohereConfig(**GROUPED, **more)),  # scales its logits
}
SPANS = ((0, 0, 4), (0, 4, 12), (1, 0, 5), (1, 5, 9))  # row, first, last of each document


def made(name: str, **more):
    torch.manual_seed(1)
    return MADE[name](**more).eval()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, V, (2, 12), generator=generator)
    documents, mask = torch.zeros_like(ids), torch.ones(2, 12, dtype=torch.bool)
    documents[0, 4:], documents[1, 5:], mask[1, 9:] = 1, 1, False
    labels = torch.full_like(ids, -100)
    for row, first, last in SPANS:
        labels[row, first : last - 1] = ids[row, first + 1 : last]
    sources = torch.zeros_like(ids, dtype=torch.int8)
    sources[0, 4:] = 1
    return {"ids": ids, "mask": mask, "documents": documents, "labels_lm": labels, "sources": sources}


def alone(model, given) -> list[torch.Tensor]:
    return [model(input_ids=given["ids"][row : row + 1, first:last]).logits[0] for row, first, last in SPANS]


@pytest.mark.parametrize(
    ("name", "attention"),
    [*((name, "eager") for name in MADE), *((name, "sdpa") for name in ("gpt2", "llama", "cohere"))],
)
def test_packed_is_separate(name, attention):
    model, given = made(name, attn_implementation=attention), batch()
    causal = Causal(model)
    assert causal.packed == (name != "bloom") and causal.chunked == (name not in ("gemma2", "cohere"))
    read = causal.read(**given)
    for (row, first, last), wanted in zip(SPANS, alone(model, given), strict=True):
        torch.testing.assert_close(read[row, first:last], wanted, rtol=1e-5, atol=1e-5)
    if causal.chunked:
        hidden = causal.encode(**given)
        torch.testing.assert_close(causal.logits(hidden)[given["mask"]], read[given["mask"]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MADE)
def test_loss_and_gradients_are_the_plain_ones(name):
    given, model, plain = batch(), made(name), made(name)
    loss, terms = Causal(model, ("en", "zh"))(**given)
    loss.backward()
    labels = [given["labels_lm"][row, first:last] for row, first, last in SPANS]
    parts = [F.cross_entropy(logits, wanted, reduction="sum") for logits, wanted in
             zip(alone(plain, given), labels, strict=True)]  # fmt: skip
    wanted = sum(parts) / 17  # spans of 4, 8, 5 and 4 tokens have 3, 7, 4 and 3 labels
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    for (key, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=key)
    assert terms["tokens_en"] == 10 and terms["tokens_zh"] == 7
    assert terms["loss_zh"].item() == pytest.approx(parts[1].item() / 7, abs=1e-5)


def test_losses_by_source_make_the_loss():
    causal, given = Causal(made("llama"), ("en", "zh", "ja")), batch()
    loss, terms = causal(**given)
    weighted = sum(terms[f"loss_{name}"] * terms[f"tokens_{name}"] for name in causal.sources)
    assert weighted.item() / 17 == pytest.approx(loss.item(), abs=1e-6)
    assert terms["loss_ja"] == 0 and terms["tokens_ja"] == 0
    assert "loss_en" not in Causal(made("llama"))(**given)[1]


def test_terms_add_up_over_micro_batches():
    """Rows of 10 and 7 labels, of two sources: a mean of means would be off."""
    given = batch()
    rows = [{name: value[row : row + 1] for name, value in given.items()} for row in range(2)]
    found = []
    for steps in ([[given]], [rows]):
        causal = Causal(made("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), ("en", "zh"))
        causal.train()
        optimizer = torch.optim.SGD(causal.parameters(), lr=0.1)
        terms = next(iter(fit(causal, steps, optimizer)))
        found.append((terms, [parameter.detach().clone() for parameter in causal.parameters()]))
    (whole, weights), (cut, others) = found
    assert whole.keys() == cut.keys()
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-5, atol=1e-6)
    for one, other in zip(weights, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_one_document_never_reads_another(name):
    """Forward and gradient: another first document changes nothing of the second."""
    causal, given = Causal(made(name)), batch()
    changed = given | {"ids": given["ids"].clone()}
    changed["ids"][0, :4] = torch.tensor([7, 7, 9, 11])
    one, other = causal.read(**given), causal.read(**changed)
    assert torch.equal(one[0, 4:], other[0, 4:]) and not torch.equal(one[0, :4], other[0, :4])
    hidden = causal.body.get_input_embeddings()
    kept = []
    handle = hidden.register_forward_hook(lambda part, ids, out: kept.append(out) or out.retain_grad())
    only_second = given | {"labels_lm": given["labels_lm"].clone()}
    only_second["labels_lm"][0, :4], only_second["labels_lm"][1] = -100, -100
    causal(**only_second)[0].backward()
    handle.remove()
    gradient = kept[0].grad  # of llama (2, 12, D); of bloom a row for each document
    first, second = (gradient[0, :4], gradient[0, 4:]) if name == "llama" else (gradient[0], gradient[1])
    assert first.abs().max() == 0 and second.abs().max() > 0


def test_prompt_labels_have_no_gradient():
    causal, given = Causal(made("llama")), batch()
    given["labels_lm"][0] = -100
    loss, terms = causal(**given)
    loss.backward()
    own = [parameter.grad.clone() for parameter in causal.parameters()]
    causal.zero_grad()
    alone = {name: value[1:] for name, value in given.items()}
    causal(**alone)[0].backward()
    for one, other in zip(own, causal.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_without_fields_a_row_is_one_document(name):
    model, ids = made(name), batch()["ids"]
    causal = Causal(model)
    wanted = model(input_ids=ids).logits
    torch.testing.assert_close(causal.logits(causal.encode(ids=ids)), wanted, rtol=1e-5, atol=1e-5)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :3] = False  # padding on the left
    torch.testing.assert_close(
        causal.read(ids=ids, mask=mask)[0, 3:], model(input_ids=ids[:1, 3:]).logits[0], rtol=1e-5, atol=1e-5
    )


def test_adapters_of_peft_may_be_in_it():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(made("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    causal = Causal(model)
    assert causal.packed and causal.chunked
    causal(**batch())[0].backward()
    trained = {name for name, parameter in causal.named_parameters() if parameter.grad is not None}
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_sixteen_bits_are_tried_as_such(name):
    causal = Causal(made(name).bfloat16())
    assert causal.packed and causal.chunked == (name != "gemma2")
    given = batch()
    loss, _ = causal(**given)
    assert loss.item() == pytest.approx(Causal(made(name))(**given)[0].item(), rel=0.01)


def test_a_leak_is_not_taken_for_rounding():
    """A mask that lets the second document read the first is off by more than the trial allows."""
    model = made("llama")

    class Leaks(Causal):
        def _mask(self, mask, documents):
            return super()._mask(mask, torch.zeros_like(documents))

    assert Causal(model).packed and not Leaks(model).packed
    assert not Leaks(made("gpt2").bfloat16()).packed


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="Linear has no output embeddings"):
        Causal(torch.nn.Linear(2, 2))
