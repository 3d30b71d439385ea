"""Signals of transformers models and of ours are those that the models themselves would tell."""

import pytest
import torch
import transformers

from models.components.pretrained import load_model
from models.distill._hooks import watch

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 60}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 4, "vocab_size": 60, "bos_token_id": 0, "eos_token_id": 0}
T5 = {"d_model": 16, "d_kv": 4, "num_layers": 3, "num_heads": 4, "d_ff": 32, "vocab_size": 60}
MODELS = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**SIZES)),
    "albert": lambda: transformers.AlbertModel(transformers.AlbertConfig(embedding_size=8, **SIZES)),
    "llama": lambda: transformers.LlamaModel(transformers.LlamaConfig(num_key_value_heads=2, **SIZES)),
    "gpt2": lambda: transformers.GPT2Model(transformers.GPT2Config(**GPT2)),
    "t5": lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)),
}
EVERY = {"embedding": [], "hidden": [0, 1, 2], "query": [2], "key": [0, 1, 2], "value": [0], "scores": [0, 1, 2]}


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(5, 50, (2, 7), generator=generator), "attention_mask": mask}


@pytest.mark.parametrize("name", MODELS)
def test_signals_are_what_the_model_tells(name):
    torch.manual_seed(0)
    model, rows = MODELS[name]().eval(), batch()
    real = rows["attention_mask"].bool()
    model.set_attn_implementation("eager")
    told = model(**rows, output_hidden_states=True, output_attentions=True)
    model.set_attn_implementation("sdpa")
    with torch.no_grad(), watch(model, EVERY) as seen:
        out = model(**rows)
    torch.testing.assert_close(out[0][real], told[0][real])
    torch.testing.assert_close(seen.hidden[-1][real], told.hidden_states[-1][real])
    for scores, share in zip(seen.scores, told.attentions, strict=True):
        torch.testing.assert_close(scores.softmax(-1).transpose(1, 2)[real], share.transpose(1, 2)[real])
    if name in ("bert", "roberta", "albert"):  # norms come after: level m is the output of layer m
        for level, state in enumerate(told.hidden_states):
            torch.testing.assert_close((seen.embedding if level == 0 else seen.hidden[level - 1])[real], state[real])
    assert [x is not None for x in seen.query] == [False, False, True]
    assert [x is not None for x in seen.value] == [True, False, False]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_without_wishes_the_output_is_the_plain_one(name):
    model, rows = MODELS[name]().eval(), batch()
    plain = model(**rows)[0]
    with watch(model, {}) as seen:
        watched = model(**rows)[0]
    assert torch.equal(plain, watched)
    assert seen.embedding is None and not any(x is not None for x in seen.hidden)
    assert model.config._attn_implementation == "sdpa"


def test_fused_attention_stays_on_where_no_scores_are_wanted(monkeypatch):
    model, calls = MODELS["bert"]().eval(), []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    with watch(model, {"scores": [1], "query": [0, 1, 2]}) as seen:
        model(**batch())
    assert len(calls) == 2
    assert [x is not None for x in seen.scores] == [False, True, False]


def test_two_models_are_watched_side_by_side():
    first, second, rows = MODELS["bert"]().eval(), MODELS["gpt2"]().eval(), batch()
    with watch(first, {"key": [0]}) as one:
        first(**rows)
    with watch(second, {"key": [2]}) as two:
        second(**rows)
    assert one.key[0] is not None and one.key[2] is None
    assert two.key[2] is not None and two.key[0] is None


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"layers \[3\] was asked for, but the model has 3 layers"):
        watch(MODELS["bert"](), {"hidden": [3]}).__enter__()
    vision = transformers.ViTModel(transformers.ViTConfig(**{k: v for k, v in SIZES.items() if k != "vocab_size"}))
    with pytest.raises(LookupError, match="vit is not known here"):
        watch(vision, {"hidden": [0]}).__enter__()


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "albert"])
def test_ours_shows_what_transformers_shows(name, tmp_path):
    torch.manual_seed(0)
    theirs, rows = MODELS[name]().eval(), batch()
    if name == "t5":
        theirs = transformers.T5ForConditionalGeneration(
            transformers.T5Config(**T5, decoder_start_token_id=0, pad_token_id=0)
        ).eval()
    theirs.save_pretrained(tmp_path)
    target = None if name == "t5" else {"cls": {"labels": 2}}
    ours, real = load_model(tmp_path, target).eval(), rows["attention_mask"].bool()
    with torch.no_grad(), watch(theirs, EVERY) as expected:
        (theirs.encoder if name == "t5" else theirs)(**rows)
    with torch.no_grad(), watch(ours, EVERY) as seen:
        written = {"target_ids": rows["input_ids"]} if name == "t5" else {}
        ours.encode(ids=rows["input_ids"], mask=real, **written)
    torch.testing.assert_close(seen.embedding[real], expected.embedding[real])
    for one, other in zip(seen.hidden, expected.hidden, strict=True):
        torch.testing.assert_close(one[real], other[real], rtol=1e-4, atol=1e-5)
    for one, other in zip(seen.scores, expected.scores, strict=True):
        shares = [x.softmax(-1).transpose(1, 2)[real] for x in (one, other)]
        torch.testing.assert_close(*shares, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        seen.query[2].transpose(1, 2)[real], expected.query[2].transpose(1, 2)[real], rtol=1e-4, atol=1e-5
    )


def test_ours_keeps_fused_attention_where_no_scores_are_wanted(tmp_path, monkeypatch):
    MODELS["bert"]().save_pretrained(tmp_path)
    ours, calls = load_model(tmp_path, {"cls": {"labels": 2}}).eval(), []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    rows = batch()
    with watch(ours, {"scores": [1]}) as seen:
        watched = ours.encode(ids=rows["input_ids"], mask=rows["attention_mask"].bool())[0]
    assert len(calls) == 2 and seen.scores[0] is None
    plain = ours.encode(ids=rows["input_ids"], mask=rows["attention_mask"].bool())[0]
    assert len(calls) == 5  # the watching is over
    torch.testing.assert_close(watched, plain)
