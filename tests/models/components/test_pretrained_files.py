"""Files: heads for fine-tuning, recipes of ours read by transformers, shards, old names, and what is refused."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from models import names
from models.components._model import assemble
from models.components.pretrained import CheckpointRejected, families, load, load_model, read, save
from models.components.pretrained._names import fused
from models.components.pretrained.pegasus import sinusoids
from tasks.recipes import parse_overrides, read_recipe, recipe_names, size_names

V, B, T = 37, 3, 8
TEXT = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TEXT |= {"max_position_embeddings": 20, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS = {
    "bert": lambda **more: hf.BertConfig(**TEXT, **more),
    "roberta": lambda **more: hf.RobertaConfig(**TEXT, **more),
    "albert": lambda **more: hf.AlbertConfig(**TEXT, embedding_size=8, **more),
    "gpt2": lambda **more: hf.GPT2Config(
        vocab_size=V, n_embd=16, n_layer=2, n_head=4, n_positions=20, bos_token_id=0, eos_token_id=0, **more
    ),
    "llama": lambda **more: hf.LlamaConfig(
        **{key: value for key, value in TEXT.items() if "prob" not in key}, num_key_value_heads=2, **more
    ),
    "bloom": lambda **more: hf.BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=4, **more),
}
HEADS = {
    "cls": (hf.AutoModelForSequenceClassification, {"num_labels": 5, "pad_token_id": 1}),
    "regression": (
        hf.AutoModelForSequenceClassification,
        {"num_labels": 1, "problem_type": "regression", "pad_token_id": 1},
    ),
    "tagging": (hf.AutoModelForTokenClassification, {"num_labels": 4, "pad_token_id": 1}),
    "span": (hf.AutoModelForQuestionAnswering, {"pad_token_id": 1}),
    "choice": (hf.AutoModelForMultipleChoice, {"pad_token_id": 1}),
}
ENCODERS = ("bert", "roberta", "albert")
CASES = [(family, head) for family in ENCODERS for head in HEADS] + [
    (name, "cls") for name in ("gpt2", "llama", "bloom")
]
NOTHING = ("missing_keys", "unexpected_keys", "mismatched_keys")


def written(model, folder):
    """A folder with a model of transformers whose weights are all drawn anew."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    return model


def changed(folder, change):
    """Apply `change` to the folder's tensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def batch():
    ids = torch.randint(2, V, (B, T), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(T) < torch.tensor([[T], [5], [3]])
    return ids.masked_fill(~mask, 1), mask


@pytest.mark.parametrize(("family", "head"), CASES)
def test_fine_tuning_heads(family, head, tmp_path):
    auto, more = HEADS[head]
    theirs = written(auto.from_config(CONFIGS[family](**more)), tmp_path / "theirs")
    ids, mask = batch()
    wide = (lambda x: x[:, None]) if head == "choice" else (lambda x: x)
    out = theirs(input_ids=wide(ids), attention_mask=wide(mask).long())
    model = load_model(tmp_path / "theirs")
    answer = model.predict(head, ids=ids, mask=mask)
    reference = torch.stack([out.start_logits, out.end_logits], -1) if head == "span" else out.logits
    if head in ("span", "tagging"):
        answer, reference = answer[mask], reference[mask]
    torch.testing.assert_close(answer, reference, rtol=0, atol=1e-5 * reference.abs().max().item())
    pad = {"pad_token_id": 1}
    save(model, load(tmp_path / "theirs")[0], tmp_path / "ours", family, pad)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    again, info = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in NOTHING), info
    assert type(again) is type(theirs)
    assert again.config.num_labels == theirs.config.num_labels


def test_a_new_head_on_a_pretrained_model_begins_with_its_pooler(tmp_path):
    written(hf.BertForPreTraining(CONFIGS["bert"]()), tmp_path)
    model, state = load_model(tmp_path, {"cls": {"labels": 3}}), load(tmp_path)[1]
    assert torch.equal(model.targets["cls"].pool.weight, state["targets.sp.pool.weight"])
    assert torch.equal(model.encoder.layers[1].attention.key.bias, state["encoder.layers.1.attention.key.bias"])
    assert model.targets["cls"].head.weight.shape == (3, 16)
    assert model.predict("cls", ids=batch()[0]).shape == (B, 3)


def test_a_bare_model_needs_a_head(tmp_path):
    theirs = written(hf.BertModel(CONFIGS["bert"]()), tmp_path)
    assert read(tmp_path).left == ("bert.pooler.dense.bias", "bert.pooler.dense.weight")
    with pytest.raises(CheckpointRejected, match="without a head; give it one"):
        load_model(tmp_path)
    ids, mask = batch()
    hidden, _ = load_model(tmp_path, {"tagging": {"classes": 2}}).encode(ids=ids, mask=mask)
    reference = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(hidden[mask], reference[mask], rtol=1e-5, atol=1e-5)


TRANSFORMER = {"layers": 2, "heads": 4, "inner": 24}
RECIPES = {
    "bert": {
        "embedding": {"word": {}, "position": {"length": 20}, "segment": {}},
        "encoder": {"transformer": TRANSFORMER | {"mask": "full"}},
        "target": {"mlm": {}},
        "tie": True,
    },
    "gpt2": {
        "eps": 1e-5,
        "act": "gelu_tanh",
        "norm_first": True,
        "embedding": {"word": {}, "position": {"length": 20}, "norm": "none"},
        "encoder": {"transformer": TRANSFORMER | {"mask": "causal"}},
        "target": {"lm": {}},
        "tie": False,
    },
    "t5": {
        "eps": 1e-6,
        "act": "gelu_tanh",
        "norm_first": True,
        "norm": "t5",
        "bias": False,
        "gated": True,
        "scale": False,
        "positions": "relative",
        "share": True,
        "tie": True,
        "embedding": {"word": {}, "norm": "none"},
        "encoder": {"transformer": TRANSFORMER},
        "target_embedding": {"word": {}, "norm": "none"},
        "decoder": {"transformer": TRANSFORMER},
        "target": {"lm": {"rescale": True}},
    },
}
AUTO = {"bert": hf.AutoModelForMaskedLM, "gpt2": hf.AutoModelForCausalLM, "t5": hf.AutoModelForSeq2SeqLM}


@pytest.mark.parametrize("family", RECIPES)
def test_what_is_trained_here_loads_there(family, tmp_path):
    recipe = {"width": 16, "vocabulary": V, "dropout": 0.0} | RECIPES[family]
    torch.manual_seed(0)
    model = assemble(recipe).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    save(model, recipe, tmp_path, family)
    theirs, info = AUTO[family].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in NOTHING), info
    ids, mask = batch()
    fields = {"ids": ids, "mask": mask} | ({"target_ids": ids} if family == "t5" else {})
    named = {"input_ids": ids, "attention_mask": mask.long()} | ({"decoder_input_ids": ids} if family == "t5" else {})
    target = next(iter(recipe["target"]))
    ours, reference = model.predict(target, **fields)[mask], theirs(**named).logits[mask]
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5 * reference.abs().max().item())
    base, info = hf.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert all("pooler" in key for key in info["missing_keys"])


BARE = {
    "gpt2": lambda: hf.GPT2Model(CONFIGS["gpt2"]()),
    "llama": lambda: hf.LlamaModel(CONFIGS["llama"]()),
    "t5": lambda: hf.T5Model(hf.T5Config(vocab_size=V, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2)),
    "bart": lambda: hf.BartModel(
        hf.BartConfig(vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, max_position_embeddings=20)
    ),
}


@pytest.mark.parametrize("family", BARE)
def test_without_a_head_it_is_the_bare_model(family, tmp_path):
    theirs = written(BARE[family](), tmp_path / "theirs")
    recipe, state = load(tmp_path / "theirs")
    assert recipe["target"] == {}
    save(state, recipe, tmp_path / "ours", family)
    again, info = hf.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is type(theirs)
    assert not any(info[key] for key in NOTHING), info
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), theirs.parameters(), strict=True))


def test_a_decoder_starts_with_the_start_of_a_text(tmp_path):
    recipe = {"width": 16, "vocabulary": V} | RECIPES["t5"]
    model = assemble(recipe)
    for told, start in (({}, 0), ({"bos_token_id": 5}, 5), ({"bos_token_id": 5, "decoder_start_token_id": 6}, 6)):
        save(model, recipe, tmp_path, "t5", told)
        assert hf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config.decoder_start_token_id == start


def test_positions_counted_from_another_padding_id_are_refused(tmp_path):
    written(hf.RobertaForMaskedLM(CONFIGS["roberta"]()), tmp_path)
    recipe, state = load(tmp_path)
    with pytest.raises(CheckpointRejected, match="padding id is 0, .* train with embedding.position.start: 1"):
        save(state, recipe, tmp_path / "new", "roberta", {"pad_token_id": 0})


EXPORTED = [name for name in recipe_names() if read_recipe(name).transformers]


@pytest.mark.parametrize("name", EXPORTED)
def test_every_recipe_that_says_so_is_a_model_of_transformers(name, tmp_path):
    sizes = ["embedding.dual.second.patch.image=64", "encoder.dual.first.transformer.layers=1"]
    sizes += ["encoder.dual.second.transformer.layers=1", "embedding.dual.second.position.length=5"]
    small = "nano" in size_names(name)
    chosen = read_recipe(name, "nano") if small else read_recipe(name, overrides=parse_overrides(sizes))
    save(assemble(chosen.model), chosen.model, tmp_path, chosen.transformers)
    config = json.loads((tmp_path / "config.json").read_text())
    model, info = getattr(hf, config["architectures"][0]).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in NOTHING), info
    assert load(tmp_path)[1].keys() >= set(dict(assemble(chosen.model).named_parameters()))
    _, info = hf.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert all("pooler" in key for key in info["missing_keys"]), info


def test_shards_and_bfloat16(tmp_path):
    theirs = written(hf.LlamaForCausalLM(CONFIGS["llama"]()), tmp_path / "whole").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    recipe, state = load(tmp_path / "shards")
    assert state["embedding.word.weight"].dtype == torch.bfloat16
    save(state, recipe, tmp_path / "back", "llama")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), theirs.parameters(), strict=True))
    index = tmp_path / "shards/model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["model.norm.bias"] = places["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(places))
    with pytest.raises(CheckpointRejected, match="1 tensors are in the index or in the shards, but not in both"):
        load(tmp_path / "shards")
    places["weight_map"]["model.norm.weight"] = "../whole/model.safetensors"
    index.write_text(json.dumps(places))
    with pytest.raises(CheckpointRejected, match="files outside its folder"):
        load(tmp_path / "shards")


def test_old_names_and_repetitions_are_understood(tmp_path):
    written(hf.BertForMaskedLM(CONFIGS["bert"]()), tmp_path)
    modern = load(tmp_path)[1]

    def age(tensors):
        for name in [name for name in tensors if "LayerNorm" in name]:
            tensors[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = (
                tensors.pop(name)
            )
        tensors["bert.embeddings.position_ids"] = torch.arange(20)[None]
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
        tensors["bert.pooler.dense.bias"] = torch.ones(16)

    changed(tmp_path, age)
    old = read(tmp_path)
    assert old.state.keys() == modern.keys()
    assert all(torch.equal(modern[name], tensor) for name, tensor in old.state.items())
    assert old.tied == (("embedding.word.weight", "targets.mlm.head.weight"),)
    assert len(old.left) == 4
    assert "tied: targets.mlm.head.weight = embedding.word.weight" in str(old)


def test_a_file_without_prefix_is_that_of_a_bare_model(tmp_path):
    theirs = written(hf.GPT2LMHeadModel(CONFIGS["gpt2"]()), tmp_path)

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 20, 20).tril()

    changed(tmp_path, strip)
    ids, _ = batch()
    torch.testing.assert_close(load_model(tmp_path).predict("lm", ids=ids), theirs(ids).logits, rtol=0, atol=1e-4)


def test_query_key_and_value_apart_by_hand():
    # two heads of one row each: the file has q0 k0 v0 q1 k1 v1
    (query, key, value) = fused("x", "qkv", heads=2).here(torch.arange(6.0)[:, None])
    assert [part.flatten().tolist() for part in (query, key, value)] == [[0, 3], [1, 4], [2, 5]]
    # GPT-2: one row in, two out each: the columns are q q k k v v
    parts = fused("x", "qkv", turn=True).here(torch.arange(6.0)[None])
    assert [part.tolist() for part in parts] == [[[0], [1]], [[2], [3]], [[4], [5]]]
    assert fused("x", "qkv", turn=True).back(*parts)[0].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_sinusoids_by_hand():
    expected = [[0, 0, 1, 1], [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]]
    torch.testing.assert_close(sinusoids(2, 4), torch.tensor(expected))


def test_sinusoids_may_be_absent_but_not_others(tmp_path):
    config = hf.PegasusConfig(vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                              decoder_attention_heads=2, max_position_embeddings=20, scale_embedding=True)  # fmt: skip
    hf.PegasusForConditionalGeneration(config).save_pretrained(tmp_path)
    recipe, _ = load(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for name in ("model.decoder.embed_positions.weight", "final_logits_bias"):
        changed(tmp_path, lambda x, name=name: x.pop(name))
    recipe["target"]["lm"]["head_bias"] = False
    assert load(tmp_path)[0] == recipe
    (tmp_path / "model.safetensors").write_bytes(whole)
    changed(tmp_path, lambda x: x["model.encoder.embed_positions.weight"].mul_(2))
    with pytest.raises(CheckpointRejected, match="is not the fixed table of sinusoids"):
        load(tmp_path)
    edited(tmp_path, scale_embedding=False)
    with pytest.raises(CheckpointRejected, match=r"scale_embedding: False \(only True converts\)"):
        load(tmp_path)


def test_the_command_tells_what_is_tied(tmp_path, monkeypatch, capsys):
    written(hf.BertForMaskedLM(CONFIGS["bert"]()), tmp_path)
    monkeypatch.setattr("sys.argv", ["pretrained", str(tmp_path)])
    runpy.run_module("models.components.pretrained", run_name="__main__")
    recipe, _, line = capsys.readouterr().out.rpartition("\nbert: ")
    assert json.loads(recipe) == load(tmp_path)[0]
    assert line == "42 tensors; tied: targets.mlm.head.weight = embedding.word.weight; left out: nothing\n"
    monkeypatch.setattr("sys.argv", ["pretrained", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="error: .*config.json is not there"):
        runpy.run_module("models.components.pretrained", run_name="__main__")


def test_families_and_their_types():
    known = families()
    assert set(known) == set(names("components.pretrained"))
    assert known["xlm_roberta"] == ("xlm-roberta",)


def test_pickles_are_refused(tmp_path):
    written(hf.BertForMaskedLM(CONFIGS["bert"]()), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointRejected, match=r"pickled weights only \(pytorch_model.bin\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x.pop("bert.pooler.dense.weight"),
            "lacks bert.pooler.dense.weight, which its config.json calls for",
        ),
        (lambda x: x.update(extra=torch.ones(1), other=torch.ones(2)), "has extra, other, which no part"),
        (
            lambda x: x.update({"bert.embeddings.word_embeddings.weight": torch.ones(V + 1, 16)}),
            r"embedding.word.weight \(38, 16\) instead of \(37, 16\)",
        ),
        (lambda x: x.clear(), r"lacks bert.embeddings.LayerNorm.bias, .* and \d+ more, which"),
    ],
)
def test_other_tensors_than_the_config_says_are_refused(change, message, tmp_path):
    written(hf.BertForPreTraining(CONFIGS["bert"]()), tmp_path)
    changed(tmp_path, change)
    with pytest.raises(CheckpointRejected, match=message):
        load(tmp_path)


def edited(folder, **entries):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "reformer"}, "of type 'reformer'; those that convert are: albert, "),
        ({"num_hidden_layers": 3}, r"lacks bert.encoder.layer.2.attention.output.LayerNorm.bias, .* and \d+ more"),
        ({"num_hidden_layers": 1}, "which no part of the model that its config.json describes reads"),
        ({"vocab_size": 40}, r"embedding.word.weight \(37, 16\) instead of \(40, 16\)"),
        ({"hidden_act": "mish"}, "activation is 'mish'"),
    ],
)
def test_configs_that_are_not_of_the_tensors_are_refused(entries, message, tmp_path):
    written(hf.BertForMaskedLM(CONFIGS["bert"]()), tmp_path)
    edited(tmp_path, **entries)
    with pytest.raises(CheckpointRejected, match=message):
        load(tmp_path)


def test_a_head_of_several_labels_at_once_is_refused(tmp_path):
    written(hf.BertForSequenceClassification(CONFIGS["bert"](num_labels=3)), tmp_path)
    edited(tmp_path, problem_type="multi_label_classification")
    with pytest.raises(CheckpointRejected, match="a head for multi_label_classification"):
        load(tmp_path)


def test_a_clip_that_reads_other_places_is_refused(tmp_path):
    stack = {
        "dual": {"first": {"transformer": TRANSFORMER | {"mask": "causal"}}, "second": {"transformer": TRANSFORMER}}
    }
    texts = {"word": {}, "position": {"length": 20}, "norm": "none"}
    images = {"patch": {"size": 4, "image": 8, "bias": False}, "position": {"length": 5}}
    recipe = {"width": 16, "vocabulary": V, "eps": 1e-5, "norm_first": True, "encoder": stack}
    recipe |= {"embedding": {"dual": {"first": texts, "second": images}}}
    recipe |= {"target": {"clr": {"features": 12, "pools": ["mean", "first"]}}}
    with pytest.raises(CheckpointRejected, match=r"clr.pools is \['mean', 'first'\] \(there \['last', 'first'\]\)"):
        save(assemble(recipe), recipe, tmp_path, "clip")
    recipe["target"]["clr"]["pools"] = ["last", "first"]
    for told in ({"text_config": {"eos_token_id": 3}}, {"eos_token_id": 3}):
        save(assemble(recipe), recipe, tmp_path, "clip", told)
        assert hf.CLIPModel.from_pretrained(tmp_path).config.text_config.eos_token_id == 3
    with pytest.raises(CheckpointRejected, match="reads a text at its highest id"):
        save(assemble(recipe), recipe, tmp_path, "clip", {"eos_token_id": 2})


def test_a_head_that_is_not_tied_may_not_be_absent(tmp_path):
    written(hf.LlamaForCausalLM(CONFIGS["llama"]()), tmp_path)
    changed(tmp_path, lambda x: x.pop("lm_head.weight"))
    with pytest.raises(CheckpointRejected, match="lacks lm_head.weight"):
        load(tmp_path)
    edited(tmp_path, tie_word_embeddings=True)
    assert read(tmp_path).tied == (("embedding.word.weight", "targets.lm.head.weight"),)


def test_broken_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointRejected, match=r"config.json is not there"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointRejected, match="holds list, not an object"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointRejected, match="neither model.safetensors nor"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointRejected, match="cannot be read"):
        load(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointRejected, match="config.json of a bert lacks 'hidden_size'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("bert", {"norm_first": True}, r"encoder.transformer.norm_first is True \(there False\)"),
        (
            "bert",
            {"target": {"lm": {}}, "encoder": {"transformer": TRANSFORMER | {"mask": "causal"}}},
            "no bert with the",
        ),
        ("bert", {"embedding": {"word": {}, "position": {"length": 20}}}, "segment"),
        ("bert", {"encoder": {"transformer": TRANSFORMER | {"shared": True}}}, r"shared is True \(there False\)"),
        ("gpt2", {"act": "linear"}, "no activation like 'linear'"),
        ("gpt2", {"target": {"lm": {"head_bias": True}}}, "no place for targets.lm.head.bias"),
        ("t5", {"scale": True}, "scale is True"),
        ("t5", {"share": False}, r"share is False \(there True\)"),
    ],
)
def test_models_that_transformers_has_not_are_refused(family, change, message, tmp_path):
    recipe = {"width": 16, "vocabulary": V} | RECIPES[family] | change
    with pytest.raises(CheckpointRejected, match=message):
        save(assemble(recipe), recipe, tmp_path / "new", family)
    assert not (tmp_path / "new").exists()


def test_a_model_of_another_recipe_is_refused(tmp_path):
    recipe = {"width": 16, "vocabulary": V} | RECIPES["bert"]
    deeper = recipe | {"encoder": {"transformer": TRANSFORMER | {"layers": 3}}}
    with pytest.raises(CheckpointRejected, match="no place for encoder.layers.2"):
        save(assemble(deeper), recipe, tmp_path, "bert")
    with pytest.raises(CheckpointRejected, match="the model lacks encoder.layers.2"):
        save(assemble(recipe), deeper, tmp_path, "bert")
    with pytest.raises(LookupError, match="closest: bert"):
        save(assemble(recipe), recipe, tmp_path, "bret")
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.parametrize("name", ["bert", "albert", "roberta"])
def test_an_untied_head_keeps_its_bias(name, tmp_path):
    recipe = read_recipe(name, "nano").model | {"tie": False}
    if name == "albert":  # transformers' head is as narrow as the embedding, tied or not
        with pytest.raises(CheckpointRejected, match="set the recipe's target.mlm.embedding_width to 32"):
            save(assemble(recipe), recipe, tmp_path, name)
        recipe["target"] = recipe["target"] | {"mlm": {"embedding_width": recipe["embedding"]["width"]}}
    torch.manual_seed(0)
    model = assemble(recipe).eval()
    torch.nn.init.normal_(model.targets["mlm"].head.bias)
    save(model, recipe, tmp_path, name)
    theirs, told = hf.AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]
    ids = torch.randint(5, 100, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(
            model.predict("mlm", ids=ids), theirs.eval()(input_ids=ids).logits, rtol=1e-4, atol=1e-5
        )
