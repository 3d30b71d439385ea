"""Every kind of fine-tuning on listings and tiny models: what is written, what transformers reads back, refusals."""

import json
import shutil
from pathlib import Path

import _tuned
import polars as pl
import pytest
import torch

from models.components._model import assemble
from tasks import finetune as module
from tasks.files import read_json, write_json
from tasks.finetune import begin, finetune, load_start, retarget, rows_of
from tasks.kinds._kind import Examples, Rejected, Texts, pad
from tasks.kinds.classification import Classification
from tasks.kinds.generation import Generation
from tasks.kinds.retrieval import Retrieval
from tasks.kinds.span import Span
from tasks.kinds.tagging import Tagging
from tasks.settings import SettingsError
from tasks.tokenizer import TokenizerError

TRAINING = {"epochs": 1, "batch": 32, "lr": 2.0e-3, "seed": 3}
LONGER = TRAINING | {"epochs": 3, "lr": 1.0e-2}
ONE_WAY = {"causal": False, "decoder": False, "dual": False, "start": 5, "end": 6, "decoder_start": 0}
KINDS = {  # kind -> (model, answer of the listings, settings, class of transformers, columns of metrics)
    "classification": ("bert", "category", {}, "BertForSequenceClassification", {"accuracy", "f1", "matthews"}),
    "pairs": ("bert", "match", {}, "BertForSequenceClassification", {"accuracy"}),
    "regression": ("bert", "price", {}, "BertForSequenceClassification", {"spearman", "pearson", "mse"}),
    "tagging": ("bert", "tags", {}, "BertForTokenClassification", {"precision", "recall", "f1"}),
    "span": ("bert", "question", {}, "BertForQuestionAnswering", {"exact", "f1"}),
    "choice": ("bert", "choice", {}, "BertForMultipleChoice", {"accuracy"}),
    "retrieval": ("bert", "description", {}, "BertModel", {"recall@1", "mrr"}),
    "generation": ("gpt2", "title", {"longest": 24}, "GPT2LMHeadModel", {"rouge_l", "chrf", "exact"}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders by name: models and sets, made when first asked for."""
    root = tmp_path_factory.mktemp("tuned")

    def folder(name: str) -> Path:
        path = root / name
        if not path.exists():
            _tuned.write_model(path, name) if name in _tuned.RECIPES else _tuned.write_examples(path, name)
        return path

    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # locks and slots of this test only
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


def go(made, kind, out, source=None, answer=None, checkpoints=None, change=(), **more):
    model, asked, settings, _, _ = KINDS[kind]
    chosen = {"kind": kind, "length": 64, "settings": settings, "training": TRAINING, **more, **dict(change)}
    ingest, source = (x if isinstance(x, Path) else made(x) for x in (answer or asked, source or model))
    return finetune(kind, chosen, ingest, source, out, checkpoints)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_trained_exported_and_equal(made, tmp_path, kind):
    _, answer, _, loader, columns = KINDS[kind]
    metrics = go(made, kind, out := tmp_path / "out")
    assert metrics == read_json(out / "metrics.json")
    for split in ("dev", "test"):
        assert columns | {"loss"} <= metrics[split].keys()
        assert all(isinstance(value, float) and abs(value) < float("inf") for value in metrics[split].values())
    assert metrics["export"]["equal"] is True and metrics["export"]["class"] == loader
    rows, told = rows_of(made(answer)), pl.read_parquet(out / "predictions.parquet")
    assert len(told) == len(rows["dev"]) + len(rows["test"]) and "predicted" in told.columns
    about = read_json(out / "run.json")
    assert about["parameters"] == about["trained_parameters"] > 10_000
    assert about["evaluated_rows"] == len(rows["dev"])
    curve = pl.read_csv(out / "curve.csv")
    assert curve["step"].to_list()[0] == 0 and curve["heldout_loss"].null_count() == 0
    assert (out / "extra/curve.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "extra/confusion.png").exists() == (kind in ("classification", "pairs"))


def test_plain_transformers_gives_the_same_classes(made, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    go(made, "classification", out := tmp_path / "out", training=LONGER)
    model, tokenizer = (
        kind.from_pretrained(out / "model") for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    told = pl.read_parquet(out / "predictions.parquet")
    with torch.no_grad():
        logits = model.eval()(**tokenizer(list(told["text"]), padding=True, return_tensors="pt")).logits
    said = [model.config.id2label[place] for place in logits.argmax(-1).tolist()]
    assert said == told["predicted"].to_list()
    dev = told.filter(pl.col("split") == "dev")
    share = (dev["predicted"] == dev["label"]).mean()
    assert share == pytest.approx(read_json(out / "metrics.json")["dev"]["accuracy"])


def test_tags_are_learned(made, tmp_path):
    metrics = go(made, "tagging", tmp_path / "out", training={"epochs": 8, "batch": 16, "lr": 1.0e-2})
    assert metrics["dev"]["f1"] > 0.7


@pytest.mark.parametrize(
    ("kind", "source", "loader"),
    [("classification", "gpt2", "GPT2ForSequenceClassification"), ("generation", "t5", "T5ForConditionalGeneration")],
)
def test_other_families(made, tmp_path, kind, source, loader):
    metrics = go(made, kind, tmp_path / "out", source=source)
    assert metrics["export"] == {"max_difference": metrics["export"]["max_difference"], "equal": True, "class": loader}


def test_two_runs_are_equal_and_leave_no_checkpoints(made, tmp_path):
    first = go(made, "pairs", tmp_path / "one", checkpoints=tmp_path / "kept")
    second = go(made, "pairs", tmp_path / "two")
    assert first == second and not (tmp_path / "kept").exists()
    one, two = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_stopped_run_continues(made, tmp_path, monkeypatch):
    whole = go(made, "pairs", tmp_path / "whole", training=TRAINING | {"epochs": 2, "checkpoint_steps": 2})
    real = module.run

    def killed(model, source, settings, *rest):
        cut = lambda index: (
            (_ for _ in ()).throw(KeyboardInterrupt) if max(index) >= 5 * settings.batch else rows(index)
        )
        rows, source.rows = source.rows, cut
        return real(model, source, settings, *rest)

    monkeypatch.setattr(module, "run", killed)
    again = lambda: go(
        made, "pairs", tmp_path / "again", checkpoints=tmp_path / "kept",
        training=TRAINING | {"epochs": 2, "checkpoint_steps": 2},
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        again()
    assert list((tmp_path / "kept").rglob("step-*.safetensors"))
    monkeypatch.setattr(module, "run", real)
    assert again() == whole


def test_simcse_without_labels_is_judged_by_grades(made, tmp_path):
    graded = pl.concat([*rows_of(made("description")).values()]).with_columns(
        label=pl.col("text").str.len_chars().mod(5).cast(pl.String)
    )
    folder = _tuned.write_rows(tmp_path / "graded", graded)
    metrics = go(made, "retrieval", tmp_path / "out", answer=folder)
    assert {"spearman", "pearson"} <= metrics["dev"].keys()
    assert read_json(tmp_path / "out/metrics.json")["export"]["class"] == "BertModel"


def test_two_towers_are_tuned_and_kept_in_our_form(made, tmp_path):
    from safetensors.torch import save_file

    from tasks.recipes import read_recipe

    source = tmp_path / "towers"
    size = _tuned.write_tokenizer(source)
    recipe = read_recipe("sbert", "nano", None, size).model
    recipe["target"] = {"contrast": {}}
    write_json(source / "recipe.json", recipe)
    save_file(
        {name: value.clone() for name, value in assemble(recipe).state_dict().items()}, source / "model.safetensors"
    )
    metrics = go(made, "retrieval", tmp_path / "out", source=source, length=32)
    assert metrics["export"]["equal"] is True and metrics["export"]["class"] is None
    assert load_start(tmp_path / "out").recipe["target"] == {"contrast": {"pool": "mean"}}


def test_lora_trains_adapters_and_head_only(made, tmp_path):
    from transformers import AutoModelForSequenceClassification

    metrics = go(made, "classification", out := tmp_path / "out", lora={"rank": 4}, training=LONGER)
    about = read_json(out / "run.json")
    start, end = load_start(made("bert")), load_start(out)
    changed = {
        name for name in start.state if name in end.state and not torch.equal(start.state[name], end.state[name])
    }
    assert changed and all(name.rpartition(".")[0].endswith(("query", "value")) for name in changed)
    assert about["trained_parameters"] < about["parameters"] / 4
    assert metrics["export"]["equal"] is True
    written = {file.name for file in (out / "extra/adapter").iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors"}
    AutoModelForSequenceClassification.from_pretrained(out / "model")


# ---------------------------------------------------------------- what a kind makes of a row


@pytest.fixture(scope="module")
def texts(made):
    from transformers import AutoTokenizer

    return lambda length=64: Texts(AutoTokenizer.from_pretrained(made("bert")), length)


def frame(**columns) -> pl.DataFrame:
    rows = len(next(iter(columns.values())))
    return pl.DataFrame(
        {"second": [None] * rows, "label": ["x"] * rows} | columns, schema_overrides={"second": pl.String}
    )


def both(**columns) -> dict[str, pl.DataFrame]:
    return {"train": frame(**columns), "dev": frame(**columns)}


def test_long_texts_are_cut_and_counted(texts):
    short = texts(8)
    encoded = short.encode([("gold rings size 2 in gold , like new",), ("gold",)], "train")
    assert len(encoded[0]["ids"]) == 8 and encoded[0]["ids"][-1] == 3  # the end stays
    assert len(encoded[1]["ids"]) < 8 and short.cut["train"] == 1


def test_an_epoch_has_every_example_once_and_is_pure(texts):
    rows = both(text=[f"size {n} in gold" for n in range(10)], label=["a", "b"] * 5)
    kind = Classification(texts(), rows, ONE_WAY)
    source = Examples(kind, kind.encode(rows["train"], "train"), 5, "x")
    first, second = source.rows(range(10)), source.rows(range(10, 20))
    ids = lambda batch: sorted(map(tuple, batch["ids"].tolist()))
    assert ids(first) == ids(second) and not torch.equal(first["ids"], second["ids"])
    assert torch.equal(source.rows(range(10))["ids"], first["ids"])
    across = source.rows([9, 10])["ids"]
    assert torch.equal(across[0, : first["ids"].shape[1]], first["ids"][9][: across.shape[1]])


def test_tags_lie_on_first_sub_tokens(texts):
    rows = both(text=["Kaxia Studio zzyzx boots"], labels=[["B-brand", "I-brand", "O", "B-leaf"]])
    kind = Tagging(texts(), rows, ONE_WAY)
    (example,) = kind.encode(rows["train"], "train")
    tokens = kind.texts.tokenizer.convert_ids_to_tokens(example["ids"])
    labelled = [(token, kind.tags[label]) for token, label in zip(tokens, example["label"], strict=True) if label >= 0]
    assert [tag for _, tag in labelled] == ["B-brand", "I-brand", "O", "B-leaf"]
    assert not any(token.startswith("##") for token, _ in labelled)
    told = kind.report(
        rows["train"], [example], [torch.nn.functional.one_hot(torch.tensor([max(x, 0) for x in example["label"]]), 4)]
    )
    assert told[0]["f1"] == 1.0


def test_words_that_were_cut_off_are_answered_by_o(texts):
    rows = both(text=["black boots from black , new"], labels=[["B-a", "O", "O", "B-a", "O", "O"]])
    kind = Tagging(texts(8), rows, ONE_WAY)
    kind.texts.length = 4
    (example,) = kind.encode(rows["train"], "train")
    everything = torch.zeros(len(example["ids"]), 2)  # the first tag, B-a, everywhere
    _, told = kind.report(rows["train"], [example], [everything])
    assert told["predicted"][0].to_list() == ["B-a", "B-a", "O", "O", "O", "O"]


def test_windows_overlap_and_find_the_answer_by_its_characters(texts):
    context = "gold rings like new . " * 6 + "asking 73 dollars for gold boots"
    start = context.index("73 dollars")
    spans = [[{"start": start, "text": "73 dollars"}]]
    rows = both(text=["What is for sale?"], second=[context], spans=spans)
    kind = Span(texts(32), rows, ONE_WAY, stride=8)
    windows = kind.encode(rows["train"], "train")
    assert len(windows) > 2 and kind.texts.cut["train"] == 0
    holding = [window for window in windows if window["label"] != (0, 0)]
    assert holding and all(
        context[window["offsets"][window["label"][0]][0] : window["offsets"][window["label"][1]][1]] == "73 dollars"
        for window in holding
    )
    sure = [torch.zeros(len(window["ids"]), 2) for window in windows]
    for window, output in zip(windows, sure, strict=True):
        if window in holding:
            output[window["label"][0], 0] = output[window["label"][1], 1] = 5.0
    found, told = kind.report(rows["train"], windows, sure)
    assert found == {"exact": 1.0, "f1": 1.0} and told["predicted"].to_list() == ["73 dollars"]


def test_a_question_that_fills_the_window_is_cut_and_counted(texts):
    rows = both(text=["black " * 30], second=["boots " * 40], spans=[[{"start": 0, "text": "boots"}]])
    kind = Span(texts(32), rows, ONE_WAY, stride=8)
    windows = kind.encode(rows["train"], "train")
    assert kind.texts.cut["train"] == 1 and windows[0]["label"] != (0, 0)
    assert all(len(window["ids"]) <= 32 and sum(window["context"]) >= 14 for window in windows[:-1])
    with pytest.raises(Rejected, match="stride 16 must be below half of the length, 16"):
        Span(texts(32), rows, ONE_WAY, stride=16)


def test_only_the_answer_is_labelled(texts):
    rows = both(text=["gold rings"], label=["new boots"])
    kind = Generation(texts(), rows, ONE_WAY | {"causal": True}, longest=8)
    (example,) = kind.encode(rows["train"], "train")
    batch = kind.collate([example])
    ids, label = batch["ids"][0].tolist(), batch["labels_lm"][0].tolist()
    answer = [*kind.texts.tokenizer("new boots", add_special_tokens=False)["input_ids"], 6]
    assert ids[0] == 5 and [x for x in label if x >= 0] == answer  # begins with <s>, ends with </s>
    assert all(ids[t + 1] == label[t] for t in range(len(ids) - 1) if label[t] >= 0)  # shifted by one
    assert label[len(example["prompt"]) - 1] == answer[0] and len(ids) == len(label)


def test_a_decoder_starts_with_its_own_token(texts):
    rows = both(text=["gold rings"], label=["new boots"])
    kind = Generation(texts(), rows, ONE_WAY | {"decoder": True}, longest=8)
    batch = kind.collate(kind.encode(rows["train"], "train"))
    assert batch["target_ids"][0].tolist() == [0, *batch["labels_lm"][0].tolist()[:-1]]


def test_triples_pair_a_text_with_what_fits_and_what_does_not(texts):
    columns = {"text": ["a", "a", "b"], "second": ["fits a", "not a", "fits b"], "label": ["yes", "no", "yes"]}
    kind = Retrieval(
        texts(), {"train": frame(**columns), "dev": frame(**columns)}, ONE_WAY, positive="yes", negative="no"
    )
    assert kind._train_rows(frame(**columns)) == [("a", "fits a", "not a")]
    two = kind.encode(frame(**{name: values * 2 for name, values in columns.items()}), "train")
    assert kind.collate(two)["views"].tolist() == [0, 0, 1, 1, 2, 2]


def test_pairs_without_a_positive_label_are_refused(texts):
    with pytest.raises(Rejected, match="`positive: yes`"):
        Retrieval(texts(), both(text=["a", "b"], second=["c", "d"], label=["yes", "no"]), ONE_WAY)


def test_padding_is_on_the_right_and_masked():
    batch = pad([{"ids": [5], "segments": [1]}, {"ids": [6, 7], "segments": [0, 1]}], 9)
    assert batch["ids"].tolist() == [[5, 9], [6, 7]] and batch["segments"].tolist() == [[1, 0], [0, 1]]
    assert batch["mask"].tolist() == [[True, False], [True, True]]


# ---------------------------------------------------------------- what to begin from, and refusals


def test_the_pooler_goes_on_and_the_head_is_new(made):
    start = load_start(made("bert"))
    model = begin(retarget(start.recipe, "cls", {"labels": 3}), start.state, "cls")
    assert torch.equal(model.targets["cls"].pool.weight, start.state["targets.sp.pool.weight"])
    assert torch.equal(model.embedding.word.weight, start.state["embedding.word.weight"])
    assert model.targets["cls"].head.weight.shape == (3, 32)


def test_weights_of_another_model_are_refused(made):
    start = load_start(made("bert"))
    recipe = retarget(start.recipe, "cls", {})
    with pytest.raises(Rejected, match="tensors of another shape"):
        begin(recipe | {"width": 16}, start.state, "cls")
    less = {name: value for name, value in start.state.items() if "layers.1.attention.query" not in name}
    with pytest.raises(Rejected, match="lacks 2 tensors"):
        begin(recipe, less, "cls")


def test_a_label_that_train_lacks_is_refused_by_name(made, tmp_path):
    rows = rows_of(made("category"))
    rows["dev"] = rows["dev"].with_columns(label=pl.lit("Boats"))
    folder = _tuned.write_rows(tmp_path / "set", pl.concat(rows.values()))
    with pytest.raises(Rejected, match=r"dev has 1 labels that train has not: 'Boats' \(\d+ rows\)"):
        go(made, "classification", tmp_path / "out", answer=folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: {"train": rows["train"]}, "the set has no dev rows"),
        (lambda rows: rows | {"dev": rows["dev"].clear()}, "the set has no dev rows"),
        (
            lambda rows: rows | {"dev": rows["dev"].with_columns(label=pl.lit(None, pl.String))},
            "dev has rows without label",
        ),
        (lambda rows: rows | {"train": rows["train"].with_columns(label=pl.lit("x"))}, "train has one label only"),
    ],
)
def test_sets_that_teach_nothing_are_refused(texts, made, change, words):
    with pytest.raises(Rejected, match=words):
        Classification(texts(), change(rows_of(made("category"))), ONE_WAY)


def test_another_tokenizer_is_refused(made, tmp_path):
    other = shutil.copytree(made("bert"), tmp_path / "other")
    _tuned.write_tokenizer(other, size=300)
    with pytest.raises(TokenizerError, match="do not belong together"):
        load_start(other)
    known = shutil.copytree(made("bert"), tmp_path / "run" / "model").parent
    write_json(known / "run.json", {"tokenizer": load_start(known).vocabulary.sha256})
    assert load_start(known).family == "bert"
    tokenizer = json.loads((known / "model/tokenizer.json").read_text())
    first, second = list(tokenizer["model"]["vocab"])[-2:]
    swap = tokenizer["model"]["vocab"]
    swap[first], swap[second] = swap[second], swap[first]  # as many words, two with each other's meaning
    (known / "model/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(Rejected, match="its words would mean something else"):
        load_start(known)


@pytest.mark.parametrize(
    ("kind", "source", "more", "words"),
    [
        ("pairs", "bert", {"kind": "pair"}, "there is no kind 'pair'; closest: pairs"),
        ("pairs", "bert", {"epochs": 3}, "has no setting epochs; it has: from, kind"),
        ("pairs", "bert", {"length": 200}, "the model has positions for 96 tokens"),
        ("pairs", "bert", {"training": {"epochs": 1, "steps": 3}}, "both epochs and steps"),
        ("pairs", "bert", {"settings": {"stride": 3}}, "kind pairs: .*stride"),
        ("pairs", "bert", {"lora": {"ranks": 3}}, "lora has no setting ranks; it has: rank"),
        ("pairs", "bert", {"lora": {"layers": ["q_proj"]}}, "no layer called q_proj; it has: .*query"),
        ("pairs", "t5", {}, "this model has a decoder, which answers in words"),
        ("generation", "bert", {}, "reads both ways and has no decoder"),
        ("choice", "gpt2", {}, "no head for choices"),
    ],
)
def test_what_cannot_work_is_refused_before_training(made, tmp_path, kind, source, more, words):
    with pytest.raises((SettingsError, Rejected), match=words):
        go(made, kind, tmp_path / "out", source=source, change=more)
    assert not (tmp_path / "out").exists()
