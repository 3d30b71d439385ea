"""Tokenizers: trained to the same bytes, loaded by transformers, taken as they are, matched to checkpoints."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from _bars import seen

from tasks.datasets import corpora
from tasks.datasets._listings import Listing
from tasks.files import digest, read_json
from tasks.ingest_text import ingest_text, sentences
from tasks.recipes import read_recipe
from tasks.settings import SettingsError
from tasks.tokenizer import ROLES, TokenizerError, Vocabulary, check_vocabulary, copy_tokenizer, make_tokenizer, train

ROOT = Path(__file__).parents[2]
KINDS = ("wordpiece", "bpe", "unigram")


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    """300 made-up listings."""
    home = tmp_path_factory.mktemp("texts")
    os.chdir(home)
    raw = home / "raw"
    raw.mkdir()
    corpora.fetch(raw, Path(corpora.__file__), documents=300)
    ingest_text("documents", corpora.read(raw), 1000, home / "corpora")
    return home / "corpora"


@pytest.fixture(scope="module")
def made(ingested):
    """A tokenizer of each kind."""
    folders = {kind: ingested.parent / kind for kind in KINDS}
    for kind, folder in folders.items():
        make_tokenizer({"kind": kind, "vocabulary": 900, "sentinels": 3, "data": ["corpora"]}, [ingested], folder)
    return folders


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_bar_counts_all_texts(ingested, folder, kind, monkeypatch):
    texts, bars = sum(1 for _ in sentences(ingested, "train")), seen(monkeypatch)
    make_tokenizer({"kind": kind, "vocabulary": 900}, [ingested], "out")
    assert [(bar.total, bar.n) for bar in bars] == [(texts, texts)] * (1 if kind == "bpe" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_it_with_its_roles(made, kind):
    from transformers import AutoTokenizer

    tokenizer, vocabulary = AutoTokenizer.from_pretrained(made[kind]), Vocabulary.open(made[kind])
    assert len(tokenizer) == vocabulary.size <= 900
    assert (
        vocabulary.sha256 == digest(made[kind] / "tokenizer.json") == read_json(made[kind] / "manifest.json")["sha256"]
    )
    for place, (role, token) in enumerate(ROLES.items()):
        assert getattr(vocabulary, role) == place == tokenizer.convert_tokens_to_ids(token)
        assert getattr(tokenizer, f"{role}_token") == token
    assert vocabulary.sentinels == (7, 8, 9)
    assert vocabulary.special == tuple(range(10))
    text = "I am selling my red boots from Norada."
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == (vocabulary.cls if kind == "wordpiece" else vocabulary.bos)
    assert ids[-1] == (vocabulary.sep if kind == "wordpiece" else vocabulary.eos)
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" .", ".") == text


def test_cjk_characters_stand_alone_in_wordpiece(made):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(made["wordpiece"] / "tokenizer.json"))
    assert tokenizer.encode("红色boots", add_special_tokens=False).tokens == ["红", "色", "boots"]
    assert tokenizer.encode("龘", add_special_tokens=False).tokens == ["[UNK]"]


def test_bytes_leave_no_text_unknown(made):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(made["bpe"] / "tokenizer.json"))
    for text in ("龘 🙂 \u0000 ça", "  two  spaces\n"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_training_again_in_another_process_gives_the_same_bytes(folder):
    code = (
        "import hashlib; from tasks.datasets._listings import Listing; from tasks.tokenizer import train\n"
        "texts = lambda: (s for n in range(60) for s in Listing(1, n).description(('en', 'ja')[n % 2]))\n"
        "for kind in ('wordpiece', 'bpe', 'unigram'):\n"
        "    print(hashlib.sha256(train(texts, kind, 500).to_str().encode()).hexdigest())"
    )
    words, told = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = [subprocess.run(words, env=told, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert ran[0] == ran[1]
    assert len(set(ran[0].split())) == 3


def listings():
    return (sentence for number in range(20) for sentence in Listing(1, number).description())


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"kind": "words", "vocabulary": 500}, SettingsError, "kind is 'words'; it is one of wordpiece, bpe, unigram"),
        ({"kind": "bpe"}, SettingsError, "lacks vocabulary"),
        ({"kind": "bpe", "vocabulary": 500, "lower": True}, SettingsError, "unknown settings: lower; it accepts: kind"),
        ({"pretrained": "x", "vocabulary": 5}, SettingsError, "taken as it is; remove vocabulary"),
        ({"kind": "bpe", "vocabulary": "500"}, SettingsError, "vocabulary is '500'; it must be a whole number from 1"),
        ({"kind": "bpe", "vocabulary": True}, SettingsError, "vocabulary is True; it must be a whole number"),
        ({"kind": "bpe", "vocabulary": 500, "minimum": 0}, SettingsError, "minimum is 0; it must be a whole number"),
        (
            {"kind": "bpe", "vocabulary": 500, "sentinels": -1, "lowercase": "no"},
            SettingsError,
            "lowercase is 'no'; it must be true or false, sentinels is -1",
        ),
        ({"pretrained": None}, SettingsError, "pretrained is None; it must be a path"),
        ({"pretrained": ".", "lowercase": 1}, SettingsError, "lowercase is 1; it must be true or false"),
        ({"pretrained": ".", "lowercase": True}, SettingsError, "lowercase is for a vocab.txt"),
        (None, SettingsError, "language.tokenizer is None; it needs kind and vocabulary, or pretrained"),
        ({"kind": "bpe", "vocabulary": 200}, TokenizerError, "a vocabulary of 200 has no room beside 7 special"),
        ({"pretrained": "nowhere"}, FileNotFoundError, "nowhere, which does not exist"),
        ({"pretrained": "."}, TokenizerError, "it needs tokenizer.json, vocab.txt"),
    ],
)
def test_bad_settings_are_refused_first(ingested, settings, error, words):
    with pytest.raises(error, match=words):
        make_tokenizer(settings, [ingested], "out")
    assert not Path("out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_train_on_is_refused(kind):
    with pytest.raises(TokenizerError, match="no text to train a tokenizer on"):
        train(list, kind, 500)


def test_berts_list_and_gpt2s_pair_keep_their_ids(folder):
    (folder / "bert").mkdir()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "bag", "##s", "包"]
    (folder / "bert/vocab.txt").write_text("\n".join(pieces) + "\n")
    vocabulary = make_tokenizer({"pretrained": "bert/vocab.txt"}, [], "one")
    assert (vocabulary.size, vocabulary.pad, vocabulary.mask, vocabulary.bos) == (9, 0, 4, None)
    assert (vocabulary.start, vocabulary.end) == (2, 3)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained("one")("Red bags包").input_ids == [2, 5, 6, 7, 8, 3]  # no capitals in the list
    (folder / "bert/vocab.txt").write_text("\n".join([*pieces, "red"]))
    with pytest.raises(TokenizerError, match="1 pieces twice, e.g. 'red'"):
        make_tokenizer({"pretrained": "bert"}, [], "one")
    (folder / "gpt2").mkdir()
    Path("gpt2/vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "\u0120": 3, "<|endoftext|>": 4}))
    Path("gpt2/merges.txt").write_text("#version: 0.2\na b\n")
    vocabulary = make_tokenizer({"pretrained": "gpt2"}, [], "two")
    assert (vocabulary.size, vocabulary.pad, vocabulary.filler, vocabulary.eos) == (5, None, 0, 4)
    assert AutoTokenizer.from_pretrained("two")("ab a").input_ids == [2, 3, 0]
    with pytest.raises(TokenizerError, match="the tokenizer has no mask, 2 sentinels"):
        vocabulary.need("mask", "end", sentinels=2)
    again = make_tokenizer({"pretrained": "two"}, [], "three")  # a folder of transformers
    assert (again.size, again.eos) == (5, 4)


def test_a_sentencepiece_model_keeps_its_ids(folder):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=listings(), model_prefix="spm", vocab_size=120, minloglevel=2, pad_id=3, num_threads=1
    )
    vocabulary = make_tokenizer({"pretrained": "spm.model"}, [], "out")
    assert (vocabulary.size, vocabulary.unk, vocabulary.bos, vocabulary.eos, vocabulary.pad) == (120, 0, 1, 2, 3)
    from tokenizers import Tokenizer

    theirs, text = sentencepiece.SentencePieceProcessor(model_file="spm.model"), "I bought it for my sister."
    assert Tokenizer.from_file("out/tokenizer.json").encode(text, add_special_tokens=False).ids == theirs.encode(text)
    Path("bad.model").write_bytes(b"no model at all")
    with pytest.raises(TokenizerError, match="bad.model is no sentencepiece model"):
        make_tokenizer({"pretrained": "bad.model"}, [], "out")


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("kind", KINDS)
def test_beside_a_model_it_stays_what_it_is(made, folder, kind, family):
    """AutoTokenizer reads config.json too; a family's own tokenizer class must not take its place."""
    from transformers import AutoConfig, AutoTokenizer

    embedding = read_recipe(family, "nano").model["embedding"]
    AutoConfig.for_model(family).save_pretrained(folder)
    copy_tokenizer(made[kind], folder, embedding)
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(folder), Vocabulary.open(made[kind])
    assert tokenizer.is_fast
    assert digest(folder / "tokenizer.json") == vocabulary.sha256
    one, two = (plain_ids(made[kind], text) for text in ("red boots", "my sister's 红 bag"))
    left, right = (vocabulary.cls, vocabulary.sep) if kind == "wordpiece" else (vocabulary.bos, vocabulary.eos)
    pair = tokenizer("red boots", "my sister's 红 bag")
    assert pair.input_ids == [left, *one, right, *two, right]
    if family == "bert":
        assert pair.token_type_ids == [0] * (len(one) + 2) + [1] * (len(two) + 1)
    else:
        assert "token_type_ids" not in pair
    longest = {"bert": 128, "gpt2": 128}.get(family)  # the others have no table of positions
    if longest:
        assert tokenizer.model_max_length == longest
        assert len(tokenizer("red boots " * 200, truncation=True).input_ids) == longest
    else:
        assert tokenizer.model_max_length > 10**9
    assert not (folder / "manifest.json").exists()


def plain_ids(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def test_robertas_counted_positions_and_single_segment(made, folder):
    embedding = {"position": {"length": 130, "start": 2, "counted": True}, "segment": {"kinds": 1}}
    copy_tokenizer(made["bpe"], folder, embedding)
    config = read_json(folder / "tokenizer_config.json")
    assert config["model_max_length"] == 128
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


def test_a_tokenizer_taken_from_a_model_leaves_the_weights_behind(made, tmp_path):
    folder, other = tmp_path / "model", tmp_path / "other"
    for place, said in ((folder, "own"), (other, "theirs")):
        place.mkdir()
        for name in ("config.json", "model.safetensors", "recipe.json"):
            (place / name).write_text(said)
    for file in made["bpe"].iterdir():
        shutil.copy(file, other)
    copy_tokenizer(other, folder, {})
    assert {(folder / name).read_text() for name in ("config.json", "model.safetensors", "recipe.json")} == {"own"}
    assert Vocabulary.open(folder).sha256 == Vocabulary.open(made["bpe"]).sha256


def test_a_tokenizer_of_another_checkpoint_is_refused(made):
    size = Vocabulary.open(made["bpe"]).size
    assert check_vocabulary(made["bpe"], size).size == size
    assert check_vocabulary(made["bpe"], -(-(size + 1) // 64) * 64).size == size  # padded rows
    for rows in (size - 1, size + 1 + (size % 8 == 7), size + 1024):
        with pytest.raises(TokenizerError, match="they do not belong together"):
            check_vocabulary(made["bpe"], rows)
    with pytest.raises(TokenizerError, match="has no tokenizer.json"):
        check_vocabulary("nowhere", 10)


def test_shared_vocabularies_keep_their_sizes(shared_data):
    if shared_data is None:
        pytest.skip("the shared data are not here")
    for name, size, pad in (("bert-base-chinese", 21_128, 0), ("gpt2", 50_257, None)):
        vocabulary = make_tokenizer({"pretrained": str(shared_data / "vocab" / name)}, [], name)
        assert (vocabulary.size, vocabulary.pad) == (size, pad)
        assert np.all(np.diff(vocabulary.special) > 0)
