"""Tokens to an exported model: what is written, what is refused, and that plain transformers reads the result."""

import csv
import os
import shutil
import signal

import polars as pl
import pytest
import torch

import tasks.pretrain as module
from tasks import track
from tasks.engine import DataChanged
from tasks.files import digest, read_json, write_json
from tasks.pretrain import compare, main, pretrain
from tasks.recipes import read_recipe
from tasks.settings import SettingsError
from tasks.source import open_source
from tasks.tokenizer import Vocabulary, make_tokenizer
from tasks.tokens import tokens
from tests._forked import ended

WORDS = [
    "red",
    "green",
    "small",
    "large",
    "wooden",
    "chair",
    "table",
    "lamp",
    "sold",
    "new",
    "used",
    "with",
    "the",
    "a",
    "of",
    "for",
    "price",
    "cheap",
    "good",
    "blue",
]
TRAINING = {"steps": 12, "batch": 8, "lr": 5.0e-3, "evaluate_steps": 4, "checkpoint_steps": 5, "evaluate_rows": 16}
LANGUAGE = {
    "pretrain": {
        "bert": {"size": "nano", "data": "made", "length": 32, "training": TRAINING | {"batch": 16, "micro": 8}},
        "short": {"recipe": "gpt2", "size": "nano", "data": "made", "length": 32, "training": TRAINING,
                  "overrides": {"encoder": {"transformer": {"layers": 1}}, "dropout": 0.2}},
        "lstm": {"size": "nano", "data": "made", "length": 32, "training": TRAINING | {"steps": 2}},
    }
}  # fmt: skip


def ingested(folder, documents: int, seed: int):
    """What tasks/ingest.py leaves of made-up documents."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda most: int(torch.randint(3, most, (), generator=random))
    sentence = lambda: " ".join(WORDS[draw(len(WORDS))] for _ in range(draw(9)))
    for split, count in (("train", documents), ("heldout", 12)):
        made = {"sentences": [[sentence() for _ in range(draw(6))] for _ in range(count)]}
        (folder / "rows").mkdir(parents=True, exist_ok=True)
        pl.DataFrame(made).write_parquet(folder / "rows" / f"{split}.parquet")
    write_json(folder / "manifest.json", {"kind": "documents", "digest": f"{documents} {seed}",
                                          "rows": {"train": documents, "heldout": 12}})  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """tokenizer/, tokens/ and tokens_other/, of other documents."""
    root = tmp_path_factory.mktemp("language")
    first = ingested(root / "ingest", 60, 0)
    make_tokenizer({"kind": "wordpiece", "vocabulary": 90}, [first], root / "tokenizer")
    tokens(root / "tokenizer", first, root / "tokens")
    tokens(root / "tokenizer", ingested(root / "other", 50, 1), root / "tokens_other")
    return root


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # locks and slots of this test only
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


def go(made, name, tmp_path, language=LANGUAGE, data="tokens"):
    return pretrain(language, name, made / data, made / "tokenizer", tmp_path / "out", tmp_path / "kept")


def test_bert_from_tokens_to_transformers(made, tmp_path, capsys):
    out = go(made, "bert", tmp_path)
    assert {file.name for file in out.iterdir()} == {
        "model", "recipe.json", "run.json", "metrics.json", "curve.csv", "curve.png",
    }  # fmt: skip
    assert not (tmp_path / "kept").exists()
    metrics, about = read_json(out / "metrics.json"), read_json(out / "run.json")
    assert metrics["export"]["equal"] is True
    assert metrics["export"]["max_difference"] < 1e-5
    assert metrics["export"]["targets"] == ["mlm", "sp"]
    assert {"loss", "mlm", "sp", "mlm_correct", "perplexity"} <= metrics["heldout"].keys()
    rows = list(csv.DictReader((out / "curve.csv").open()))
    assert [int(row["step"]) for row in rows] == [0, 4, 8, 12]
    assert rows[0]["loss"] == ""
    assert float(rows[-1]["heldout_loss"]) == pytest.approx(metrics["heldout"]["loss"])
    assert float(rows[-1]["heldout_mlm"]) < float(rows[0]["heldout_mlm"])
    assert (out / "curve.png").read_bytes()[:4] == b"\x89PNG"
    vocabulary = Vocabulary.open(made / "tokenizer")
    assert (about["steps"], about["family"], about["tokenizer"]) == (12, "bert", vocabulary.sha256)
    assert about["tokens"] > 12 * 16 * 8
    printed = capsys.readouterr().out
    assert "mlm loss before the first step 4." in printed
    assert "ln V = 4." in printed

    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, tokenizer = AutoModelForMaskedLM.from_pretrained(out / "model"), AutoTokenizer.from_pretrained(out / "model")
    assert model.config.vocab_size == vocabulary.size == len(tokenizer)
    assert sum(p.numel() for p in model.parameters()) < about["parameters"]  # without the pair head
    assert model(**tokenizer("a red chair", return_tensors="pt")).logits.isfinite().all()
    assert (tokenizer("a red", "chair").token_type_ids[-1], tokenizer.model_max_length) == (1, 128)


def test_a_recipe_under_another_name_with_overrides(made, tmp_path):
    out = go(made, "short", tmp_path)
    recipe = read_json(out / "recipe.json")
    assert (recipe["name"], recipe["model"]["encoder"]["transformer"]["layers"], recipe["model"]["dropout"]) == (
        "gpt2",
        1,
        0.2,
    )
    assert read_json(out / "model/config.json")["n_layer"] == 1
    assert read_json(out / "metrics.json")["export"]["equal"] is True


def test_positions_are_counted_from_the_tokenizers_padding(made, tmp_path):
    """RoBERTa's table begins behind the row of the padding's id, whichever the tokenizer gives it."""
    assert Vocabulary.open(made / "tokenizer").pad == 0
    run = {"size": "nano", "data": "made", "length": 32, "training": TRAINING | {"steps": 2}}
    out = go(made, "roberta", tmp_path, {"pretrain": {"roberta": run}})
    before, after = (m["embedding"]["position"] for m in (read_recipe("roberta", "nano").model,
                                                          read_json(out / "recipe.json")["model"]))  # fmt: skip
    assert (after["start"], after["length"]) == (1, before["length"] - 1)
    assert read_json(out / "metrics.json")["export"]["equal"] is True


def test_an_export_that_cannot_be_is_refused_before_training(made, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run", lambda *arguments: pytest.fail("trained first"))
    gated = {"encoder": {"transformer": {"gated": True}}}
    language = {"pretrain": {"bert": LANGUAGE["pretrain"]["bert"] | {"overrides": gated}}}
    with pytest.raises(ValueError, match="gated"):
        go(made, "bert", tmp_path, language)


def test_what_transformers_does_not_have_is_kept_in_our_form(made, tmp_path):
    out = go(made, "lstm", tmp_path)
    assert {file.name for file in (out / "model").iterdir()} > {"recipe.json", "model.safetensors", "tokenizer.json"}
    assert read_json(out / "metrics.json")["export"] == {"equal": True, "max_difference": 0.0, "targets": ["lm"]}


def test_an_export_that_differs_is_seen(made, tmp_path):
    from models.components._model import assemble

    out = go(made, "short", tmp_path)
    recipe = read_recipe(
        "gpt2", "nano", LANGUAGE["pretrain"]["short"]["overrides"], Vocabulary.open(made / "tokenizer").size
    )
    source = open_source(made / "tokens", recipe.processor, made / "tokenizer", 32, 0)
    found = compare(assemble(recipe.model), recipe, out / "model", source.rows(range(2)))
    assert found["equal"] is False
    assert found["max_difference"] > 1e-3


def test_killed_continued_and_refused_on_other_data(made, tmp_path):
    """One killed process: changed data are refused, changed settings begin anew, and the rest continues exactly."""

    def dies():
        replace, calls = os.replace, []

        def counted(old, new):
            replace(old, new)
            calls.append(new)
            if str(new).endswith("step-000000010.safetensors"):
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counted
        go(made, "short", tmp_path)

    assert ended(dies) == [-signal.SIGKILL]
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataChanged, match=r"short: .* step 10, was trained on data .* restore the data, or delete"):
        go(made, "short", tmp_path, data="tokens_other")
    resumed = go(made, "short", tmp_path)
    whole = pretrain(LANGUAGE, "short", made / "tokens", made / "tokenizer", tmp_path / "whole", tmp_path / "more")
    weights = [(folder / "model/model.safetensors").read_bytes() for folder in (resumed, whole)]
    assert weights[0] == weights[1]
    assert read_json(resumed / "metrics.json") == read_json(whole / "metrics.json")


def test_sigterm_exits_75_and_the_next_run_continues(made, tmp_path, capsys):
    write_json(tmp_path / "params.json", {"language": LANGUAGE})
    words = ["params.json:language", "short", *(str(made / name) for name in ("tokens", "tokenizer")), "out", "kept"]

    def asked():
        def opened(*arguments, **named):
            source = open_source(*arguments, **named)
            rows = source.rows
            source.rows = lambda indices: (
                (list(indices)[0] == 48 and os.kill(os.getpid(), signal.SIGTERM)) or rows(indices)
            )
            return source

        module.open_source = opened
        main(*words)

    assert ended(asked) == [os.EX_TEMPFAIL] == [75]
    assert not (tmp_path / "out").exists()
    (marker,) = (tmp_path / "kept").glob("*/stopped.json")
    stopped = read_json(marker)
    assert stopped["steps"] == 12
    assert 5 <= stopped["step"] <= 7
    main(*words)
    assert f"continues at step {stopped['step']} from" in capsys.readouterr().out
    assert read_json(tmp_path / "out/run.json")["steps"] == 12


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("bart", {}, "language.pretrain has no 'bart'; it has: bert, short, lstm"),
        ("bert", {"lenght": 3}, "no setting lenght; it has: recipe, size"),
        ("bert", {"length": 1}, "at least 2; got 1"),
        ("bert", {"size": "giant"}, "no size 'giant'; closest"),
        ("bert", {"training": {"step": 1}}, "training has no setting step"),
        ("bert", {"overrides": {"dropuot": 0.2}}, "closest: dropout"),
    ],
)
def test_settings_that_cannot_work(made, tmp_path, name, change, said):
    language = {"pretrain": LANGUAGE["pretrain"] | ({name: LANGUAGE["pretrain"][name] | change} if change else {})}
    with pytest.raises((ValueError, LookupError), match=said):
        go(made, name, tmp_path, language)
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_from_weights(made, tmp_path, capsys):
    """The loss before its first step is that of the start after its last."""
    first = go(made, "bert", tmp_path / "first")
    more = {"bert": LANGUAGE["pretrain"]["bert"] | {"start": str(first)}}
    out = go(made, "bert", tmp_path / "more", {"pretrain": more})
    curve = list(csv.DictReader((out / "curve.csv").open()))
    ended = read_json(first / "metrics.json")["heldout"]["loss"]
    assert float(curve[0]["heldout_loss"]) == pytest.approx(ended, rel=1e-5)
    assert read_json(out / "run.json")["start_content"] == digest(first / "model")
    assert "new: nothing" in capsys.readouterr().out


def test_a_run_goes_on_from_a_registered_version(made, tmp_path, monkeypatch):
    first = go(made, "lstm", tmp_path / "first")
    monkeypatch.setattr(track, "resolve", lambda uri: uri)
    monkeypatch.setattr(track, "model_files", lambda version, folder: shutil.copytree(first, folder))
    more = {"lstm": LANGUAGE["pretrain"]["lstm"] | {"start": "models:/language-lstm@champion"}}
    about = read_json(go(made, "lstm", tmp_path / "more", {"pretrain": more}) / "run.json")
    assert (about["start"], about["start_content"]) == ("models:/language-lstm@champion", digest(first / "model"))


def test_a_target_that_the_start_never_learned_begins_anew(made, tmp_path, capsys):
    alone = {"bert": LANGUAGE["pretrain"]["bert"] | {"overrides": {"target.sp": None}}}
    first = go(made, "bert", tmp_path / "first", {"pretrain": alone})
    more = {"bert": LANGUAGE["pretrain"]["bert"] | {"start": str(first)}}
    go(made, "bert", tmp_path / "more", {"pretrain": more})
    assert "new: targets.sp.pool.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"overrides": {"encoder.transformer.heads": 2}}, "encoder.transformer.heads is 4, not 2"),
        ({"overrides": {"encoder.transformer.layers": 3}}, "encoder.transformer.layers is 2, not 3"),
        ({"recipe": "gpt2"}, "is another model than recipe gpt2"),
    ],
)
def test_a_start_of_another_model_is_refused(made, tmp_path, change, said):
    first = go(made, "bert", tmp_path / "first")
    more = {"bert": LANGUAGE["pretrain"]["bert"] | {"start": str(first)} | change}
    with pytest.raises(SettingsError, match=said):
        go(made, "bert", tmp_path / "more", {"pretrain": more})


def test_a_start_with_another_tokenizer_is_refused(made, tmp_path):
    first = go(made, "bert", tmp_path / "first")
    words = read_json(first / "model/tokenizer.json")
    words["model"]["vocab"] = {word: len(words["model"]["vocab"]) - 1 - place for word, place in words["model"][
        "vocab"].items()}  # fmt: skip
    write_json(first / "model/tokenizer.json", words)
    more = {"bert": LANGUAGE["pretrain"]["bert"] | {"start": str(first)}}
    with pytest.raises(ValueError, match="another tokenizer|special"):
        go(made, "bert", tmp_path / "more", {"pretrain": more})
    more["bert"]["start"] = str(tmp_path / "nothing")
    with pytest.raises(SettingsError, match="has no model.safetensors"):
        go(made, "bert", tmp_path / "more", {"pretrain": more})
