"""A model beside its base: every number by hand on models whose probabilities are known; leaked items are left out."""

import math
from pathlib import Path

import polars as pl
import pytest
import yaml
from _bars import seen

from tasks.datasets import corpora, parallel, questions
from tasks.evaluate_language import evaluate_language, main
from tasks.files import read_json, write_json
from tasks.ingest_text import ingest_text
from tasks.language_measures import UNICODE, open_measured
from tasks.poison import PoisonedFolder
from tasks.question_prompts import Question, prompts
from tasks.settings import SettingsError
from tests.tasks._unigram import BYTES, guess, unigram, words

CHOICES = ["ab", "abcdef", "b"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """even: uniform; likes: p(a) = 1/2, p(B) = 1/4; random: looks back."""
    root = tmp_path_factory.mktemp("models")
    return {"even": unigram(root / "even"), "likes": unigram(root / "likes", {"a": 0.5, "B": 0.25}),
            "random": guess(root / "random"), "words": words(root / "words", "a", "b")}  # fmt: skip


def ingested(name: str, kind: str, **splits: pl.DataFrame) -> None:
    rows = Path("in", name, "rows")
    rows.mkdir(parents=True)
    for split, frame in splits.items():
        frame.write_parquet(rows / f"{split}.parquet")
    spoken = {}
    for frame in splits.values():
        for column in ("language", "source_language", "target_language"):
            spoken |= dict.fromkeys(frame[column].to_list(), 1) if column in frame.columns else {}
    count = {split: len(frame) for split, frame in splits.items()}
    write_json(Path("in", name, "manifest.json"), {"kind": kind, "rows": count, "languages": spoken})


def documents(*rows: tuple[str, list[str]]) -> pl.DataFrame:
    made = [
        {"language": language, "sentences": sentences, "licence": "MIT", "source": "a"} for language, sentences in rows
    ]
    return pl.DataFrame(made, schema=corpora.SCHEMA)


def asked(*rows: dict) -> pl.DataFrame:
    base = dict.fromkeys(questions.SCHEMA) | {"choices": CHOICES, "label": "1", "split": "test", "licence": "MIT",
                                              "subject": "letters", "language": "en", "number": 0}  # fmt: skip
    return pl.DataFrame([base | row for row in rows], schema=questions.SCHEMA)


def prepare() -> dict:
    known = "Which is the very first of all letters that people write here? The first."
    held = documents(("en", ["aab"]), ("zh", ["你好。", "好"]), ("en", ["a", "b"]))
    ingested("texts", "documents", heldout=held, train=documents(("en", [known])))
    pairs = [dict.fromkeys(parallel.NAMES, "MIT") | {"source": f"bag {n // 2}", "target": f"包{n}",
             "source_language": "en", "target_language": "zh"} for n in range(8)]  # fmt: skip
    ingested("pairs", "pairs", heldout=pl.DataFrame(pairs, schema=parallel.SCHEMA))
    ingested("quiz", "examples", test=asked(
        {"text": "First?"}, {"text": "Second?", "label": "0"},
        {"text": "Which is the very first of all letters that people write here?", "label": "2"},
        {"text": "Third?"},
    ), dev=asked({"text": "Shown?", "number": 1}, {"text": "Before?", "number": 0, "split": "dev"}))  # fmt: skip
    return {
        "texts": {"en": {"data": "texts"}, "zh": {"data": "texts"}},
        "pairs": {"both": {"data": "pairs"}},
        "questions": {"quiz": {"data": "quiz", "shots": 1}},
        "train": {"data": ["texts"]},
    }


def test_every_number_by_hand(made, monkeypatch):
    bars = seen(monkeypatch)
    found = evaluate_language(prepare(), made["even"], made["likes"], "in", "out")
    assert [bar.n == bar.total > 0 for bar in bars if bar.desc == "evaluate_language"] == [True]
    assert read_json("out/metrics.json")["evaluation"] == found
    # English: "aab" and "a b", six characters, as many tokens. The base guesses among 257. The model: three a, the
    # others share a quarter.
    other = 0.25 / (BYTES - 2)
    model = math.exp(-(3 * math.log(0.5) + 3 * math.log(other)) / 6)
    assert found["base_perplexity_en"] == found["base_character_perplexity_en"] == pytest.approx(BYTES, rel=1e-5)
    assert found["character_perplexity_en"] == pytest.approx(model, rel=1e-5)
    assert found["forgetting_en"] == pytest.approx(model / BYTES - 1, rel=1e-4)
    assert found["base_bits_per_character_en"] == pytest.approx(math.log2(BYTES), rel=1e-5)
    assert found["gain_en"] == pytest.approx(1 - math.log(model) / math.log(BYTES), rel=1e-4)
    # Chinese: "你好。好", three bytes a character, none of which the model likes.
    assert found["tokens_per_character_zh"] == 3
    assert found["perplexity_zh"] == pytest.approx(1 / other, rel=1e-5)
    assert found["character_perplexity_zh"] == pytest.approx(other**-3, rel=1e-4)
    assert found["forgetting_zh"] == pytest.approx((1 / other / BYTES) ** 3 - 1, rel=1e-4)
    # Retrieval: "bag n" stands there twice, so 4 pairs are left; all states are the same: one in four, by chance.
    assert (found["pairs_en_zh"], found["retrieval_en_zh"], found["retrieval_gain"]) == (4, pytest.approx(0.25), 0)
    assert (found["centred_retrieval"], found["centred_retrieval_gain"]) == (pytest.approx(0.25), 0)
    assert pl.read_csv("out/retrieval.csv").height == 2 * 2 * 2 * 3  # models, plain or centred, ways, layers
    # Letters: the base finds all equal and takes the first, right once in three; the model takes B, right twice.
    assert (found["items_quiz"], found["left_out_quiz"], found["chance_quiz"]) == (3, 1, pytest.approx(1 / 3))
    assert (found["base_accuracy_quiz"], found["accuracy_quiz"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found["accuracy_gain_quiz"] == pytest.approx(1 / 3)
    assert found["accuracy_error_quiz"] == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 3))
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize(("language", "chosen", "share"), [("en", 1, 0.5), ("zh", 0, 0.25)])
def test_options_as_texts(made, language, chosen, share):
    # ln p(a) = -0.693, of any other -6.928. By character, "ab" -3.81, "abcdef" -5.89, "b" -6.93. In English a space
    # stands before each: " ab" -7.28, " abcdef" -7.04, " b" -13.9.
    rows = [{"text": "1?"}, {"text": "2?"}, {"text": "3?", "label": "0"}, {"text": "4?", "label": "2"}]
    ingested("quiz", "examples", test=asked(*(row | {"language": language} for row in rows)))
    settings = {"questions": {"quiz": {"data": "quiz", "form": "text"}}}
    found = evaluate_language(settings, made["even"], made["likes"], "in", "out")
    assert found["accuracy_quiz"] == share
    assert pl.read_parquet("out/answers.parquet").filter(model="model")["predicted"].to_list() == [chosen] * 4


def test_items_in_training_data_are_named(made):
    evaluate_language(prepare(), made["even"], made["likes"], "in", "out")
    (row,) = pl.read_parquet("out/left_out.parquet").to_dicts()
    assert (row["of"], row["of_row"], row["set"], row["row"], row["how"]) == ("quiz", 2, "texts", 0, "inside")
    assert "Which is the very first of all letters" in Path("out/page.html").read_text()
    assert "Which is the very first" not in " ".join(pl.read_parquet("out/answers.parquet")["text"])


def test_nothing_is_asked_where_all_items_leaked(made):
    settings = prepare()
    ingested("train", "documents", train=documents(("en", ["Which is it, and why is it so, my dear friend?"])))
    ingested("leaked", "examples", test=asked({"text": "Which is it, and why is it so, my dear friend?"}))
    settings |= {"questions": {"q": {"data": "leaked"}}, "train": {"data": "train"}}
    with pytest.raises(SettingsError, match="all items of leaked stand in training data"):
        evaluate_language(settings, made["even"], made["likes"], "in", "out")
    assert not Path("out").exists()


def test_the_batch_changes_no_number(made):
    settings, found, said = prepare(), {}, {}
    for batch in (1, 16):
        found[batch] = evaluate_language(settings | {"batch": batch}, made["random"], made["random"], "in", f"b{batch}")
        said[batch] = pl.read_parquet(f"b{batch}/answers.parquet")
    assert said[1].equals(said[16])
    assert found[1] == pytest.approx(found[16], rel=1e-4, abs=1e-9)
    assert found[1]["forgetting_en"] == found[1]["retrieval_gain"] == found[1]["accuracy_gain_quiz"] == 0


def test_windows_of_a_long_text(made):
    text = "ab" * 40
    whole, cut = (open_measured(made["likes"], length, 4, "cpu").perplexity([text]) for length in (None, 7))
    assert cut == pytest.approx(whole)  # what stands before does not matter to this model, and no token is lost
    assert whole["perplexity"] == pytest.approx(math.exp(-(math.log(0.5) + math.log(0.25 / (BYTES - 2))) / 2), rel=1e-5)


def test_a_character_without_a_token_costs_a_guess_among_all(made):
    found = open_measured(made["words"], None, 4, "cpu").perplexity(["a 你好 b"])
    # Six characters, three tokens of four equal ones, of which [UNK] stands for two characters.
    assert found["unknown"] == pytest.approx(2 / 6)
    assert found["character_perplexity"] == pytest.approx(math.exp((3 * math.log(4) + 2 * UNICODE) / 6), rel=1e-5)


def test_examples_are_of_the_subject_and_in_the_order_of_their_file():
    shown = [Question(f"Shown {n}?", None, ["x", "y"], n, "chinese_law", "zh") for n in range(2)]
    question = Question("去吗？", "男：去。", ["去", "不去"], 0, "chinese_law", "zh", shown)
    first, second, third = prompts(question, "letter", 5)
    assert [p.shots for p in (first, second, third)] == [2, 1, 0]
    assert first.before == (
        "以下是关于chinese law的单项选择题，请直接给出正确答案的选项。\n\n题目：Shown 0?\nA. x\nB. y\n答案是：A\n\n"
        "题目：Shown 1?\nA. x\nB. y\n答案是：B\n\n男：去。\n题目：去吗？\nA. 去\nB. 不去\n答案是："
    )
    assert third.options == ["A", "B"]
    assert next(prompts(question, "text", 0)).options == ["去", "不去"]
    assert next(prompts(Question("Q", None, ["x"], 0, "s", "en"), "text", 0)).options == [" x"]


def test_what_does_not_fit_loses_examples_then_its_beginning(made):
    shown = [Question("Shown?", None, ["x", "y"], 0, "s", "en")] * 3
    question = Question("Which?", "a" * 30, ["x", "y"], 1, "s", "en", shown)
    sizes = [len(prompt.before) + 1 for prompt in prompts(question, "letter", 3)]
    for length, fewer in ((sizes[0], 0), (sizes[0] - 1, 1), (sizes[-1], 1), (20, 1)):
        answers, found = open_measured(made["likes"], length + 1, 4, "cpu").answers([question], "letter", 3)
        assert (answers, found) == ([1], fewer)
    with pytest.raises(SettingsError, match="an option has 41 tokens, but the model reads 40 at once"):
        open_measured(made["likes"], 40, 4, "cpu").answers(
            [Question("Which?", None, ["x" * 40, "y"], 0, "s", "en")], "text", 0
        )


def test_a_third_language_is_a_matter_of_settings(made):
    for module, settings in (
        (corpora, {"documents": 200, "languages": {"en": 40, "zh": 30, "ja": 30}}),
        (parallel, {"pairs": 120, "languages": ["en", "zh", "ja"]}),
        (questions, {"questions": 40, "languages": ["zh", "ja"]}),
    ):
        raw, name = Path("raw", module.__name__.rpartition(".")[2]), module.__name__.rpartition(".")[2]
        raw.mkdir(parents=True)
        module.fetch(raw, Path(module.__file__), **settings)
        needs = getattr(module, "NEEDS", None)
        ingest_text(module.KIND, module.read(raw), 1, Path("in", name), heldout=0.2, needs=needs)
    settings = {
        "texts": {language: {"data": "corpora", "characters": 300} for language in ("en", "zh", "ja")},
        "pairs": {"all": {"data": "parallel", "sentences": 10}},
        "questions": {"shop": {"data": "questions", "shots": 1, "most": 10}},
    }
    found = evaluate_language(settings, made["even"], made["random"], "in", "out")
    assert {f"forgetting_{language}" for language in ("en", "zh", "ja")} < set(found)
    assert found["pairs_en_ja"] > 1 and found["pairs_en_zh"] > 1
    assert found["base_character_perplexity_ja"] > found["base_character_perplexity_en"]  # three bytes a character
    assert found["retrieval"] == pytest.approx(
        (found["retrieval_en_zh"] + found["retrieval_zh_en"] + found["retrieval_en_ja"] + found["retrieval_ja_en"]) / 4
    )


def test_command(made, capsys):
    Path("params.yaml").write_text(yaml.safe_dump({"evaluation": prepare()}))
    main("params.yaml:evaluation", str(made["even"]), str(made["likes"]), "in", "out")
    said = capsys.readouterr()
    assert "accuracy_quiz 0.6667" in said.out and "forgetting_en" in said.out
    assert "warning: 1 items of quiz stand in training data" in said.err
    assert read_json("out/run.json")["model"]["folder"] == str(made["likes"])
    assert set(read_json("out/run.json")["data"]["content"]) == {"texts", "pairs", "quiz"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"text": {}}, "evaluation has no 'text'; closest: texts"),
        ({"texts": {"en": {"dataset": "texts"}}}, "evaluation.texts.en has no 'dataset'; closest: data"),
        ({"texts": {"en": {}}}, "evaluation.texts.en needs `data`"),
        ({"texts": {"ja": {"data": "texts"}}}, "texts holds out no text in it; it has en, zh"),
        ({"texts": {"en": {"data": "none"}}}, "in/none was not ingested"),
        ({"texts": {"en": {"data": "quiz"}}}, "wants documents or pairs, but quiz holds examples"),
        ({"pairs": {"a": {"data": "texts"}}}, "wants pairs, but texts holds documents"),
        ({"questions": {"a": {"data": "quiz", "form": "words"}}}, "form is 'words'; it is letter or text"),
        ({"length": 1000}, "length is 1000, but .* has 512 positions"),
    ],
)
def test_what_cannot_be_evaluated_is_told(made, changed, words):
    with pytest.raises(SettingsError, match=words):
        evaluate_language(prepare() | changed, made["even"], made["likes"], "in", "out")
    assert not Path("out").exists()


def test_nothing_to_do_is_an_error(made):
    with pytest.raises(SettingsError, match="nothing is evaluated; give texts, pairs or questions"):
        evaluate_language({}, made["even"], made["likes"], "in", "out")


def test_a_folder_that_may_run_code_is_not_read(made, tmp_path):
    poisoned = unigram(tmp_path / "poisoned")
    (poisoned / "weights.bin").write_bytes(b"x")
    with pytest.raises(PoisonedFolder, match="weights.bin"):
        evaluate_language(prepare(), made["even"], poisoned, "in", "out")
