"""Each family against transformers with the same random weights: outputs, gradients, padding, packing, files."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from models.components.pretrained import load, load_model, read, save

V, B, T, S = 37, 4, 9, 7
TEXT = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TEXT |= {"max_position_embeddings": 20, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PAIR = {"vocab_size": V, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4}
PAIR |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "max_position_embeddings": 20}
PAIR |= {"dropout": 0.0, "pad_token_id": 1}
LLAMA = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
T5 = {"vocab_size": V, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "dropout_rate": 0.0}
IMAGE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
IMAGE |= {"image_size": 8, "patch_size": 4}
GPT2 = {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 20, "bos_token_id": 0}
GPT2 |= {"eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
STRETCHED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
STRETCHED |= {"original_max_position_embeddings": 16, "rope_theta": 500.0}

ENCODERS = {
    "bert": lambda: hf.BertForPreTraining(hf.BertConfig(**TEXT)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**TEXT, type_vocab_size=1, layer_norm_eps=1e-5)),
    "xlm_roberta": lambda: hf.XLMRobertaForMaskedLM(hf.XLMRobertaConfig(**TEXT, type_vocab_size=1)),
    "megatron_bert": lambda: hf.MegatronBertForPreTraining(hf.MegatronBertConfig(**TEXT)),
    "albert": lambda: hf.AlbertForPreTraining(hf.AlbertConfig(**TEXT, embedding_size=8, classifier_dropout_prob=0.0)),
}
CAUSAL = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, rms_norm_eps=1e-5)),
    "llama, tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "llama, grouped": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, num_key_value_heads=2, attention_bias=True)),
    "llama, stretched": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**LLAMA, num_key_value_heads=1, head_dim=8, rope_parameters=STRETCHED)
    ),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=V, hidden_size=24, n_layer=2, n_head=6)),
}
PAIRS = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "t5, unscaled": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, tie_word_embeddings=False)),
    "t5, untied": lambda: untied(hf.T5ForConditionalGeneration(hf.T5Config(**T5, tie_word_embeddings=False))),
    "t5, gated": lambda: untied(
        hf.T5ForConditionalGeneration(hf.T5Config(**T5, tie_word_embeddings=False, feed_forward_proj="gated-gelu"))
    ),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**PAIR)),
    "pegasus": lambda: hf.PegasusForConditionalGeneration(hf.PegasusConfig(**PAIR, scale_embedding=True)),
}
PAIRS["marian"] = lambda: hf.MarianMTModel(
    hf.MarianConfig(**PAIR | {"pad_token_id": 0}, scale_embedding=True, eos_token_id=0, decoder_start_token_id=0)
)
SPEECH = {
    "speech_to_text": lambda: hf.Speech2TextForConditionalGeneration(
        hf.Speech2TextConfig(
            **{key: value for key, value in PAIR.items() if key != "max_position_embeddings"},
            conv_channels=12,
            conv_kernel_sizes=[5, 3],
            input_feat_per_channel=6,
        )
    )
}
IMAGES = {"vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**IMAGE, num_labels=5))}
DUAL = {
    "clip": lambda: hf.CLIPModel(
        hf.CLIPConfig(
            text_config=LLAMA | {"max_position_embeddings": 20, "eos_token_id": V - 1, "bos_token_id": 0},
            vision_config=IMAGE | {"hidden_size": 24},
            projection_dim=12,
        )
    )
}
ALL = ENCODERS | CAUSAL | PAIRS | SPEECH | IMAGES | DUAL
KEPT = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "max_position_embeddings")


def untied(model):
    """T5 1.1 as published: a head of its own, which transformers 5 no longer builds but still reads."""
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> (transformers' model with all its parameters drawn anew, the folder of its files); each made once."""
    cache = {}

    def make(name):
        if name not in cache:
            torch.manual_seed(len(name))
            model = ALL[name]().eval()
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.dim() == 1:
                    parameter.data += 0.3 * torch.randn_like(parameter)  # norms away from 1, biases from 0
                elif parameter.requires_grad and parameter.dim():
                    parameter.data.normal_(std=0.25)
            if "final_logits_bias" in dict(model.named_buffers()):
                model.final_logits_bias.normal_()
            folder = tmp_path_factory.mktemp("checkpoint")
            model.save_pretrained(folder)
            cache[name] = model, folder
        return cache[name]

    return make


def rows(padding, length=T, pad=0, seed=0):
    """ids without `pad` at real places, and the mask of a kind of padding: of rows 1 and 2, and all of row 3."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, V - 1, (B, length), generator=generator)
    mask = torch.ones(B, length, dtype=torch.bool)
    if padding == "right":
        mask[1, length - 3 :] = mask[2, 2:] = False
    if padding == "left":
        mask[1, :3] = mask[2, : length - 2] = False
    if padding == "whole row":
        mask[1, length - 1 :] = mask[3] = False
    return ids.masked_fill(~mask, pad), mask


PADDINGS = ["none", "right", "left", "whole row"]


def close(ours, theirs, tolerance=1e-5):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def check_gradients(model, reference, folder):
    """Each of our gradients is that of transformers: its gradients are written as a checkpoint and read as ours."""
    kept = {name: p.detach().clone() for name, p in reference.named_parameters()}
    for parameter in reference.parameters():
        if parameter.requires_grad:
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    reference.save_pretrained(folder)
    for name, parameter in reference.named_parameters():
        parameter.data, parameter.grad = kept[name], None
    theirs = load(folder)[1]
    ours = {name: p.grad for name, p in model.named_parameters() if name != "targets.lm.head.bias"}
    assert ours.keys() <= theirs.keys() and len(ours) > 10
    largest = max(theirs[name].abs().max() for name in ours)
    for name, gradient in ours.items():
        scale = max(theirs[name].abs().max(), 0.01 * largest)  # a key's bias has none but rounding
        assert (gradient - theirs[name]).abs().max() <= 1e-4 * scale, name


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name, padding, made, tmp_path):
    reference, folder = made(name)
    pad = reference.config.pad_token_id
    ids, mask = rows(padding, pad=pad)
    live = mask.any(1)
    segments = (torch.arange(T) > 4).long().expand(B, T) * (reference.config.type_vocab_size > 1)
    labels = ids.masked_fill(~mask | (torch.arange(T) % 3 > 0), -100)
    follows = torch.tensor([0, 1, 1, 0]).masked_fill(~mask[:, 0], -100)
    pairs = "sp" in load(folder)[0]["target"]
    named = "sentence_order_label" if name == "albert" else "next_sentence_label"
    out = reference(
        input_ids=ids[live],
        attention_mask=mask[live].long(),
        token_type_ids=segments[live],
        labels=labels[live],
        **({named: follows[live]} if pairs else {}),
    )
    model = load_model(folder)
    batch = {"ids": ids, "mask": mask, "segments": segments, "labels_mlm": labels, "labels_sp": follows}
    logits = out.prediction_logits if pairs else out.logits
    close(model.predict("mlm", **batch)[live][mask[live]], logits[mask[live]])
    if pairs:
        close(model.predict("sp", **batch)[live], out["sop_logits" if name == "albert" else "seq_relationship_logits"])
    loss, _ = model(**batch)
    close(loss, out.loss)
    out.loss.backward()
    loss.backward()
    check_gradients(model, reference, tmp_path)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models(name, padding, made, tmp_path):
    reference, folder = made(name)
    ids, mask = rows(padding)
    live = mask.any(1)
    labels = ids.masked_fill(~mask, -100)
    labels[:, 1:].masked_fill_(~mask[:, :-1], -100)  # transformers would ask padding for the first token
    out = reference(input_ids=ids[live], attention_mask=mask[live].long(), labels=labels[live])
    model = load_model(folder)
    shifted = torch.cat([labels[:, 1:], torch.full((B, 1), -100)], 1)
    batch = {"ids": ids, "mask": mask, "labels_lm": shifted}
    close(model.predict("lm", **batch)[live][mask[live]], out.logits[mask[live]])
    loss, _ = model(**batch)
    close(loss, out.loss)
    out.loss.backward()
    loss.backward()
    check_gradients(model, reference, tmp_path)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", PAIRS)
def test_encoders_with_decoders(name, padding, made, tmp_path):
    reference, folder = made(name)
    (ids, mask), (target, target_mask) = rows(padding), rows(padding, S, seed=1)
    live = mask.any(1)
    labels = rows("none", S, seed=2)[0].masked_fill(~target_mask, -100)
    out = reference(
        input_ids=ids[live],
        attention_mask=mask[live].long(),
        decoder_input_ids=target[live],
        decoder_attention_mask=target_mask[live].long(),
        labels=labels[live],
    )
    model = load_model(folder)
    batch = {"ids": ids, "mask": mask, "target_ids": target, "target_mask": target_mask, "labels_lm": labels}
    real = target_mask[live]
    close(model.predict("lm", **batch)[live][real], out.logits[real])
    loss, _ = model(**batch)
    close(loss, out.loss)
    out.loss.backward()
    loss.backward()
    check_gradients(model, reference, tmp_path)


def test_speech(made, tmp_path):
    reference, folder = made("speech_to_text")
    target, mask = rows("right", S, pad=1, seed=1)
    labels = rows("none", S, seed=2)[0].masked_fill(~mask, -100)
    frames = torch.randn(B, 13, 6, generator=torch.Generator().manual_seed(3))
    named = {"decoder_input_ids": target, "decoder_attention_mask": mask.long(), "labels": labels}
    out = reference(input_features=frames, **named)
    model = load_model(folder)
    batch = {"frames": frames, "target_ids": target, "target_mask": mask, "labels_lm": labels}
    close(model.predict("lm", **batch)[mask], out.logits[mask])
    loss, _ = model(**batch)
    close(loss, out.loss)
    out.loss.backward()
    loss.backward()
    check_gradients(model, reference, tmp_path)


def test_images(made, tmp_path):
    reference, folder = made("vit")
    pixels, labels = torch.randn(B, 3, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([4, 0, 2, 1])
    out = reference(pixel_values=pixels, labels=labels)
    model = load_model(folder)
    close(model.predict("cls", pixels=pixels), out.logits)
    loss, _ = model(pixels=pixels, labels_cls=labels)
    close(loss, out.loss)
    out.loss.backward()
    loss.backward()
    check_gradients(model, reference, tmp_path)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_texts_and_images(padding, made, tmp_path):
    reference, folder = made("clip")
    ids, mask = rows(padding)
    last = torch.arange(T).where(mask, -1).argmax(1)
    ids[torch.arange(B), last] = V - 1  # the end mark, which CLIP reads
    pixels = torch.randn(B, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    out = reference(input_ids=ids, attention_mask=mask.long(), pixel_values=pixels, return_loss=True)
    model = load_model(folder)
    batch = {"first_ids": ids, "first_mask": mask, "second_pixels": pixels}
    texts, images = model.predict("clr", **batch)
    close(texts, out.text_embeds)
    close(images, out.image_embeds)
    loss, _ = model(**batch)
    close(loss, out.loss)
    out.loss.backward()
    loss.backward()
    check_gradients(model, reference, tmp_path)


@pytest.mark.parametrize("name", [*ENCODERS, *CAUSAL])
def test_packed_documents_are_those_of_separate_runs(name, made):
    reference, folder = made(name)
    ids, _ = rows("none", pad=reference.config.pad_token_id or 0)
    cuts = (4, T)
    positions = torch.cat([torch.arange(4), torch.arange(T - 4)]).expand(B, T)
    documents = (torch.arange(T) >= 4).long().expand(B, T)
    target = "mlm" if name in ENCODERS else "lm"
    packed = load_model(folder).predict(target, ids=ids, positions=positions, documents=documents)
    for start, end in zip((0, *cuts), cuts, strict=False):
        out = reference(input_ids=ids[:, start:end])
        close(packed[:, start:end], out.get("logits", out.get("prediction_logits")))


@pytest.mark.parametrize("name", PAIRS)
def test_packed_pairs_are_those_of_separate_runs(name, made):
    reference, folder = made(name)
    (ids, _), (target, _) = rows("none"), rows("none", S, seed=1)
    places = lambda length, cut: torch.cat([torch.arange(cut), torch.arange(length - cut)]).expand(B, length)
    number = lambda length, cut: (torch.arange(length) >= cut).long().expand(B, length)
    packed = load_model(folder).predict(
        "lm",
        ids=ids,
        positions=places(T, 4),
        documents=number(T, 4),
        target_ids=target,
        target_positions=places(S, 3),
        target_documents=number(S, 3),
    )
    for source, part in ((slice(0, 4), slice(0, 3)), (slice(4, T), slice(3, S))):
        close(packed[:, part], reference(input_ids=ids[:, source], decoder_input_ids=target[:, part]).logits)


def equal_files(one, other):
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("name", ALL)
def test_there_and_back_is_exact(name, made, tmp_path):
    reference, folder = made(name)
    config = json.loads((folder / "config.json").read_text())
    family = name.split(",")[0]
    loaded, model = read(folder), load_model(folder)
    told = {key: config[key] for key in KEPT if key in config}
    save(model, loaded.recipe, tmp_path / "back", family, told)
    equal_files(folder, tmp_path / "back")
    assert load(tmp_path / "back")[0] == loaded.recipe
    again, info = type(reference).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), reference.parameters(), strict=True))
