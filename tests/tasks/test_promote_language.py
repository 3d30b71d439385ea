"""Promotion of language models into a real registry: what is registered, how it loads, what is repeated."""

import pytest
import torch
from safetensors.torch import save_file

from tasks import fresh, track
from tasks.files import read_json, write_json
from tasks.flavor import content
from tasks.gate_language import gate_language
from tasks.promote import ReplayFailed, StaleVerdict
from tasks.promote_language import promote_language, replay
from tasks.rollback import rollback


def write_model(folder, seed: int) -> None:
    """What tasks/pretrain.py leaves: a tiny BERT with its tokenizer, and the files beside it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: place for place, word in enumerate([*special, "the", "chair", "wooden", "as", "good"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(folder / "model")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder / "model")
    beside(folder, 3.0 - seed / 10)


def beside(folder, loss: float) -> None:
    write_json(folder / "metrics.json", {"heldout": {"loss": loss}, "export": {"equal": True, "max_difference": 0.0}})
    write_json(folder / "run.json", {"fingerprint": "f" * 64, "evaluated_rows": 8, "parameters": 10, "seconds": 1.0})
    (folder / "curve.csv").write_text(f"step,loss,seconds\n0,,0.0\n1,{loss},1.0\n")


@pytest.fixture
def here(registry, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chain(folder, gates: dict | None = None) -> dict:
    gate_language({"pretrain": gates or {}}, "pretrain", "tiny", folder / "made", folder / "tokens", folder / "gate")
    return promote_language("pretrain", "tiny", folder / "gate", folder / "made", folder / "receipt.json")


def test_a_version_is_what_was_judged_and_is_made_once(here, monkeypatch):
    import mlflow

    write_model(here / "made", 1)
    done = chain(here)
    assert (done["status"], done["version"], done["champion"]) == ("promoted", 1, 1)
    loaded = mlflow.transformers.load_model("models:/language-tiny@champion")
    assert type(loaded).__name__ == "FillMaskPipeline"
    assert loaded("the [MASK]")[0]["token_str"]
    version = track.resolve("models:/language-tiny@champion")
    assert version.tags["content_sha256"] == content(here / "made/model")
    files = track.model_files(version, here / "copy")
    assert content(files / "model") == content(here / "made/model")

    assert chain(here) == read_json(here / "receipt.json") | {"previous": None}  # the same bytes: no second version
    assert track.by_alias("language-tiny", "champion").number == 1

    monkeypatch.setattr(fresh, "recall", lambda *folders: [({"answer": torch.zeros(1)}, SEEN)] * len(folders))
    write_model(here / "made", 2)
    worse = chain(here, {"ceilings": {"loss": 2.5}})
    assert worse["status"] == "rejected"
    assert "version" not in worse
    assert worse["champion"] == 1
    better = chain(here)
    assert (better["version"], better["champion"], better["previous"]) == (2, 2, 1)
    assert rollback("language-tiny") == (2, 1)

    write_model(here / "made", 3)
    with pytest.raises(StaleVerdict, match="run the gate of tiny again"):
        promote_language("pretrain", "tiny", here / "gate", here / "made", here / "receipt.json")

    monkeypatch.setattr(fresh, "recall", lambda *folders: [({"answer": torch.zeros(1)}, {}),
                                                           ({"answer": torch.ones(1)}, {})])  # fmt: skip
    with pytest.raises(ReplayFailed, match="differs from its files in answer by 1"):
        replay(version)


SEEN = {"class": "BertForMaskedLM", "missing": [], "unexpected": [], "mismatched": [], "plain_class": "BertModel",
        "plain_missing": [], "plain_other": []}  # fmt: skip


def test_a_recipe_that_transformers_has_no_class_for_is_kept_as_ours(here):
    write_json(here / "made/model/recipe.json", {"width": 8})
    save_file({"embedding.word.weight": torch.ones(2, 2)}, here / "made/model/model.safetensors")
    beside(here / "made", 3.0)
    assert chain(here)["champion"] == 1
    files = track.model_files(track.resolve("models:/language-tiny/1"), here / "copy")
    assert content(files / "model") == content(here / "made/model")
    assert "rootstock" in (files / "MLmodel").read_text()
