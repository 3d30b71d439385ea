"""A model from outside is noted, not copied, and a change of it is seen."""

import json
import os

import pytest

from tasks.base import BaseChanged, base, main, model_of
from tasks.flavor import content
from tasks.poison import PoisonedFolder


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_the_note_leads_to_the_model(model, tmp_path):
    made = base(model, tmp_path / "base/llama")
    assert made["content"] == content(model)
    assert model_of(tmp_path / "base/llama") == model
    assert sorted(path.name for path in (tmp_path / "base/llama").iterdir()) == ["base.json"]


def test_an_untouched_base_is_not_hashed_again(model, tmp_path, monkeypatch):
    base(model, tmp_path / "base/llama")
    before = (tmp_path / "base/llama/base.json").stat().st_mtime_ns
    monkeypatch.setattr("tasks.flavor.content", lambda folder: pytest.fail("hashed again"))
    base(model, tmp_path / "base/llama")
    assert (tmp_path / "base/llama/base.json").stat().st_mtime_ns == before


def test_an_exchanged_base_is_another_content(model, tmp_path):
    first = base(model, tmp_path / "base/llama")["content"]
    (model / "model.safetensors").write_bytes(b"others!")
    os.utime(model / "model.safetensors", ns=(1, 1))
    with pytest.raises(BaseChanged, match="dvc repro base@llama"):
        model_of(tmp_path / "base/llama")
    assert base(model, tmp_path / "base/llama")["content"] != first
    assert model_of(tmp_path / "base/llama") == model


def test_what_is_no_writing_model_is_refused(model, tmp_path):
    (model / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(ValueError, match="BertForMaskedLM, which writes no text"):
        base(model, tmp_path / "out")
    (model / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(PoisonedFolder):
        base(model, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        base(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stage_s_own_model_comes_first(tmp_path):
    (tmp_path / "made/model").mkdir(parents=True)
    (tmp_path / "made/model/config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    assert model_of(tmp_path / "made") == tmp_path / "made/model"
    with pytest.raises(FileNotFoundError, match="neither model/ nor base.json"):
        model_of(tmp_path / "nothing")


def test_the_command_says_what_it_is(model, tmp_path, capsys):
    (tmp_path / "params.yaml").write_text(f"language: {{bases: {{llama: {model}}}}}")
    main(f"{tmp_path}/params.yaml:language.bases.llama", str(tmp_path / "out"))
    assert "LlamaForCausalLM" in capsys.readouterr().out
