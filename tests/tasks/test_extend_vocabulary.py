"""Extended vocabularies: any tokenizer, old texts as they were, folders that load as anybody loads them."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from _bilingual import base, byte_tokenizer, ingested
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tasks.base import base as note_base
from tasks.extend_vocabulary import extend_vocabulary, main
from tasks.files import digest
from tasks.poison import PoisonedFolder
from tasks.settings import SettingsError
from tasks.tokenizer import TokenizerError, make_tokenizer

MIXED = "I sell 红色的包, number 7。 Good 灯！"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = ingested(tmp_path_factory.mktemp("vocabulary"))
    byte_tokenizer(folder, folder / "bytes")
    return folder


def sentencepiece(place: Path, kind: str) -> Path:
    """A model of sentencepiece with byte fallback: "bpe" as LLaMA has it, "unigram" as a tokenizer.json."""
    import sentencepiece

    out = place / kind
    out.mkdir()
    frame = pl.read_parquet(place / "texts" / "rows" / "train.parquet").filter(pl.col("language") == "en")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(frame["sentences"].explode().to_list()), model_prefix=str(out / "tokenizer"),
        model_type=kind, vocab_size=360, byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (out / "tokenizer.vocab").unlink()
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    if kind == "bpe":
        (out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **roles}))
        (out / "config.json").write_text(json.dumps({"model_type": "llama"}))
        return out
    model = sentencepiece.SentencePieceProcessor(str(out / "tokenizer.model"))
    (out / "tokenizer.model").unlink()
    pieces = [(model.id_to_piece(row), model.get_score(row)) for row in range(len(model))]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.ByteFallback(), decoders.Metaspace()]
    made.decoder = decoders.Sequence(steps)
    PreTrainedTokenizerFast(tokenizer_object=made, **roles).save_pretrained(out)
    return out


def extended(place: Path, start: Path, out: Path, **settings) -> dict:
    return extend_vocabulary({"language": "zh", "characters": 20, **settings}, start, [place / "texts"], out)


@pytest.mark.parametrize(("kind", "model"), [("bytes", "gpt2"), ("bpe", "llama"), ("unigram", "gpt2")])
def test_every_kind_of_tokenizer(place, tmp_path, kind, model):
    tokenizer = place / kind if kind == "bytes" else sentencepiece(place, kind)
    start = base(model, tokenizer, tmp_path / "base")
    report = extended(place, start, tmp_path / "out")
    folder = tmp_path / "out" / "model"
    old, new = (AutoTokenizer.from_pretrained(each) for each in (start, folder))
    before, after = (AutoModelForCausalLM.from_pretrained(each).eval() for each in (start, folder))
    first = report["first_id"]
    assert first == len(old) and len(new) == first + 20 == after.config.vocab_size
    assert report["characters"] == 20 and report["max_difference"] == 0 and 0.5 < report["coverage"] < 1
    rate = report["tokens_per_character"]
    assert rate["after"] < 0.6 * rate["before"]
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    listed = report["added"]
    assert len(listed) == 20 and "色" in listed
    for place_of, character in enumerate(listed):  # ids in order, rows the mean of the old pieces, without a prefix
        assert new.convert_tokens_to_ids(character) == first + place_of
        pieces = old(f"0{character}", add_special_tokens=False)["input_ids"]
        pieces = pieces[len(old("0", add_special_tokens=False)["input_ids"]) :]
        assert len(pieces) == 3  # UTF-8 bytes
        for rows, others in ((after.get_input_embeddings(), before.get_input_embeddings()),
                             (after.get_output_embeddings(), before.get_output_embeddings())):  # fmt: skip
            torch.testing.assert_close(rows.weight[first + place_of], others.weight[pieces].mean(0))
            assert torch.equal(rows.weight[:first], others.weight)
    tied = before.get_output_embeddings().weight is before.get_input_embeddings().weight
    assert tied == (model == "gpt2")
    assert (after.get_output_embeddings().weight is after.get_input_embeddings().weight) == tied == bool(report["tied"])
    ids = old("It is red and good.", return_tensors="pt")["input_ids"]
    assert torch.equal(ids, new("It is red and good.", return_tensors="pt")["input_ids"])
    assert (after(ids).logits[..., :first] - before(ids).logits).abs().max() == 0
    say = lambda tokenizer: tokenizer.decode(tokenizer(MIXED)["input_ids"], skip_special_tokens=True)
    assert say(new) == say(old) == MIXED
    assert len(new(MIXED)["input_ids"]) < len(old(MIXED)["input_ids"])


def test_unigram_pieces_keep_their_ids(place, tmp_path):
    """A list of pieces is numbered by place; a token beside the model must not be pushed away."""
    from tasks.extend_vocabulary import _add_pieces

    content = {"model": {"vocab": [["<unk>", 0.0], ["a", -2.0]]},
               "added_tokens": [{"id": 0, "content": "<unk>"}, {"id": 2, "content": "<pad>"}]}  # fmt: skip
    _add_pieces(content, ["中", "文"], 3)
    assert content["model"]["vocab"][1:] == [["a", -2.0], ["<pad>", -1002.0], ["中", -2.0], ["文", -2.0]]


def test_a_tokenizer_without_byte_fallback_is_refused_unless_rows_are_drawn(place, tmp_path):
    make_tokenizer({"kind": "wordpiece", "vocabulary": 300}, [place / "english"], tmp_path / "words")
    start = base("gpt2", tmp_path / "words", tmp_path / "base")
    with pytest.raises(TokenizerError, match=r"reads 20 of 20 characters of zh as \[UNK\] .* no byte fallback"):
        extended(place, start, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = extended(place, start, tmp_path / "out", rows="random")
    new = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert new.tokenize("a 红色") == [*new.tokenize("a"), "红", "色"] and report["max_difference"] == 0


def test_nothing_to_add_and_no_such_language(place, tmp_path):
    start = base("gpt2", place / "bytes", tmp_path / "base")
    with pytest.raises(SettingsError, match="no text of language 'ja'"):
        extended(place, start, tmp_path / "out", language="ja")
    extended(place, start, tmp_path / "once", characters=8076)
    with pytest.raises(TokenizerError, match="already has all"):
        extended(place, tmp_path / "once", tmp_path / "twice")
    with pytest.raises(SettingsError, match="no setting letters"):
        extended(place, start, tmp_path / "out", letters=3)
    with pytest.raises(SettingsError, match="characters is 0"):
        extended(place, start, tmp_path / "out", characters=0)


def test_a_base_from_outside_is_read_in_place(place, tmp_path):
    start = base("gpt2", place / "bytes", tmp_path / "outside")
    note_base(start, tmp_path / "base" / "outside")
    noted = extended(place, tmp_path / "base" / "outside", tmp_path / "noted")
    assert noted == extended(place, start, tmp_path / "plain") and noted["base"] == digest(start)
    assert digest(tmp_path / "noted") == digest(tmp_path / "plain")


def test_folders_that_may_not_be_loaded(place, tmp_path):
    start = base("gpt2", place / "bytes", tmp_path / "base")
    (start / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(PoisonedFolder):
        extended(place, start, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        extended(place, tmp_path / "absent", tmp_path / "out")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="a recipe of ours"):
        extended(place, tmp_path / "recipe", tmp_path / "out")


def test_the_command(place, tmp_path, capsys, monkeypatch):
    start = base("gpt2", place / "bytes", tmp_path / "base")
    (tmp_path / "params.yaml").write_text("vocabularies: {zh: {data: texts, language: zh, characters: 5}}")
    address = f"{tmp_path}/params.yaml:vocabularies"
    main(address, "zh", str(start), str(place), str(tmp_path / "out"))
    assert "5 characters of zh" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="has no 'ja'; it has: zh"):
        main(address, "ja", str(start), str(place), str(tmp_path / "out"))
