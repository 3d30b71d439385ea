"""LoRA: nothing changes at first, only adapters learn, merging is W + s B A, and plain peft reads the folder."""

import json

import _tuned
import pytest
import torch
from safetensors.torch import load_file

from models.components import pretrained
from models.components._model import assemble
from tasks.finetune import begin, load_start, retarget
from tasks.lora import Lora, add_lora, load_adapter, merge_lora, save_adapter, their_names
from tasks.settings import SettingsError

RECIPES = {name: _tuned.RECIPES[name] | {"vocabulary": 50} for name in ("bert", "gpt2", "llama", "t5")}
LLAMA_LAYERS = 2 * 2  # query and value of two layers


def batch(seed: int = 1) -> dict:
    ids = torch.randint(7, 50, (3, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(9) < torch.tensor([[9], [5], [2]])
    return {"ids": ids, "mask": mask, "segments": torch.zeros_like(ids)}


def with_target(name: str) -> dict:
    """The batch that this model's first target reads, with labels."""
    if name == "t5":
        return batch() | {"target_ids": batch(2)["ids"], "target_mask": batch()["mask"], "labels_lm": batch(3)["ids"]}
    label = "labels_mlm" if name == "bert" else "labels_lm"
    return batch() | {label: batch(3)["ids"], "labels_sp": torch.tensor([0, 1, 0])}


def built(name: str):
    torch.manual_seed(0)
    return assemble(RECIPES[name]).eval()


def disturb(model, seed: int = 5) -> None:
    """Adapters as after training: B is no longer 0."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.1)


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_changes_at_first(name):
    model, rows = built(name), with_target(name)
    with torch.no_grad():  # with gradients, frozen weights may take another kernel, which rounds otherwise
        before = model.encode(**rows)[0]
        added = add_lora(model, Lora(rank=2))
        assert torch.equal(model.eval().encode(**rows)[0], before)
    assert added and all(layer.rpartition(".")[2] in ("query", "value") for layer in added)


def test_grouped_values_get_an_adapter_of_their_width():
    model = built("llama")
    assert len(add_lora(model, Lora(rank=2))) == LLAMA_LAYERS
    value = model.encoder.layers[0].attention.value
    assert value.lora_B["default"].weight.shape == (16, 2) and value.lora_A["default"].weight.shape == (2, 32)


@pytest.mark.parametrize("name", RECIPES)
def test_only_adapters_and_what_is_named_are_trained(name):
    model = built(name)
    add_lora(model, Lora(rank=2), train="targets.")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for _ in range(2):  # the first step moves B only, since A's gradient is 0 with it
        optimizer.zero_grad()
        model(**with_target(name))[0].backward()
        optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert any("lora_A" in key for key in moved) and any("lora_B" in key for key in moved)
    tied = {one for pair in model.tied() for one in pair}
    assert all("lora_" in key or key.startswith("targets.") or key in tied for key in moved)


def test_merging_by_hand():
    model = built("bert")
    add_lora(model, Lora(rank=2, alpha=4))
    disturb(model)
    layer = model.encoder.layers[1].attention.query
    by_hand = layer.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    apart = model.encode(**batch())[0]
    merge_lora(model)
    assert torch.equal(model.encoder.layers[1].attention.query.weight, by_hand)
    assert set(model.state_dict()) == set(built("bert").state_dict())
    torch.testing.assert_close(model.encode(**batch())[0], apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_an_adapter_comes_back(name, tmp_path):
    model = built(name)
    add_lora(model, Lora(rank=2))
    disturb(model)
    save_adapter(model, Lora(rank=2), RECIPES[name], name, "base", tmp_path, None)
    assert all("lora_" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    again = built(name)
    add_lora(again, Lora(rank=2))
    load_adapter(again, RECIPES[name], name, tmp_path)
    rows = with_target(name)
    assert torch.equal(again.eval().encode(**rows)[0], model.eval().encode(**rows)[0])


def test_an_adapter_of_other_layers_is_refused(tmp_path):
    model = built("bert")
    add_lora(model, Lora(rank=2))
    save_adapter(model, Lora(rank=2), RECIPES["bert"], "bert", "base", tmp_path, None)
    other = built("bert")
    add_lora(other, Lora(rank=2, layers=("key",)))
    with pytest.raises(ValueError, match="differ in 12 tensors"):
        load_adapter(other, RECIPES["bert"], "bert", tmp_path)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_peft_reads_the_adapter_of_a_language_model(name, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    loader = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    model = built(name)
    pretrained.save(
        model, RECIPES[name], tmp_path / "base", name, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    )
    add_lora(model, Lora(rank=2))
    disturb(model)
    save_adapter(model, Lora(rank=2), RECIPES[name], name, "base", tmp_path / "adapter", loader.__name__)
    theirs = PeftModel.from_pretrained(loader.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    rows = with_target(name)
    more = {"decoder_input_ids": rows["target_ids"]} if name == "t5" else {}
    with torch.no_grad():
        other = theirs(input_ids=rows["ids"], attention_mask=rows["mask"].long(), **more).logits
        ours = model.eval().predict("lm", **rows)
    real = rows["mask"]
    assert (ours[real] - other[real]).abs().max() <= 1e-5 * other[real].abs().max()


def test_peft_reads_an_adapter_and_its_head(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    start = load_start(_tuned.write_model(tmp_path / "base", "bert"))
    recipe = retarget(start.recipe, "cls", {"labels": 3})
    model = begin(recipe, start.state, "cls").eval()
    add_lora(model, Lora(rank=2), train="targets.cls")
    disturb(model)
    torch.nn.init.normal_(model.targets["cls"].head.weight.data)
    loader = "AutoModelForSequenceClassification"
    save_adapter(model, Lora(rank=2), recipe, "bert", "base", tmp_path / "adapter", loader)
    named = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert named["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    rows = batch()
    with torch.no_grad():
        other = theirs(
            input_ids=rows["ids"], attention_mask=rows["mask"].long(), token_type_ids=rows["segments"]
        ).logits
        ours = model.predict("cls", **rows)
    assert (ours - other).abs().max() <= 1e-5 * other.abs().max()


def test_fused_layers_keep_names_of_ours(tmp_path):
    model = built("gpt2")
    add_lora(model, Lora(rank=2))
    assert "encoder.layers.0.attention.query.weight" not in their_names(RECIPES["gpt2"], "gpt2")
    save_adapter(model, Lora(rank=2), RECIPES["gpt2"], "gpt2", "base", tmp_path, "AutoModelForCausalLM")
    named = json.loads((tmp_path / "adapter_config.json").read_text())
    assert named["target_modules"][0] == "encoder.layers.0.attention.query" and named["task_type"] is None


def test_settings_are_checked():
    with pytest.raises(SettingsError, match="lora has no setting r; it has: rank, alpha"):
        Lora.read({"r": 4})
    with pytest.raises(SettingsError, match="no layer called qkv; it has: .*query"):
        add_lora(built("bert"), Lora(layers=("qkv",)))
