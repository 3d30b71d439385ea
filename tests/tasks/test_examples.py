"""Labelled sets: every form that GLUE, CLUE, SuperGLUE, SQuAD and C3 have, their splits, and the made-up listings."""

import json
from pathlib import Path

import polars as pl
import pytest

from tasks.datasets import glue, listings
from tasks.validate import DataRejected, validate

ROWS = {"sentence": ["good", "bad", "fine"], "label": [1, 0, 1]}


def write(folder: Path, **frames: dict) -> Path:
    for name, frame in frames.items():
        pl.DataFrame(frame).write_parquet(folder / f"{name}.parquet")
    return folder


def first(raw: Path) -> dict:
    return glue.read(raw).collect().row(0, named=True)


def test_files_make_the_splits(tmp_path):
    write(tmp_path, train=ROWS, val=ROWS, test_unlabelled={"sentence": ["x"]}, dev32=ROWS)
    splits = glue.read(tmp_path).collect()["split"].value_counts().sort("split").rows()
    assert splits == [("dev", 3), ("train", 3)]  # val is dev by its name; dev32 is another cut, test has no answers


def test_the_whole_cut_is_taken_of_several(tmp_path):
    one = {"sentence": ["only"], "label": ["a"]}
    write(tmp_path, train_0=one, train_few_all=ROWS, dev_0=one, dev_few_all=ROWS, unlabeled={"sentence": ["x"]})
    assert glue.read(tmp_path).collect().height == 6


def test_two_equal_candidates_are_refused(tmp_path):
    write(tmp_path, train_a=ROWS, train_b=ROWS)
    with pytest.raises(glue.NoExamples, match="train_a.parquet, train_b.parquet; name it in `splits`"):
        glue.read(tmp_path)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"sentence1": ["a"], "sentence2": ["b"], "label": ["x"]}, ("a", "b", "x")),
        ({"premise": ["a"], "hypothesis": ["b"], "label": ["x"]}, ("a", "b", "x")),
        ({"question": ["a"], "passage": ["b"], "label": [True]}, ("a", "b", "true")),
        ({"word": ["w"], "sentence1": ["a"], "sentence2": ["b"], "label": [False]}, ("w a", "b", "false")),
        ({"label": ["1"], "text_a": ["a"]}, ("a", None, "1")),
        ({"genre": ["g"], "score": [2.5], "sentence1": ["a"], "sentence2": ["b"]}, ("a", "b", "2.5")),
        ({"label": [110], "label_desc": ["news"], "sentence": ["a"]}, ("a", None, "news")),
        ({"cat": ["books"], "label": [1], "review": ["\ufeffa\x13b "]}, ("a b", None, "1")),
    ],
)
def test_columns_are_recognised(tmp_path, columns, expected):
    row = first(write(tmp_path, train=columns, dev=columns))
    assert (row["text"], row["second"], row["label"]) == expected


def test_options_become_choices(tmp_path):
    copa = {
        "premise": ["It broke."],
        "choice1": ["It fell."],
        "choice2": ["It rose."],
        "question": ["cause"],
        "label": [0],
    }
    row = first(write(tmp_path, train=copa, dev=copa))
    assert (row["choices"], row["second"], row["label"]) == (["It fell.", "It rose."], "cause", "0")
    letters = {"Question": ["Which?"], "A": ["p"], "B": ["q"], "C": ["r"], "D": ["s"], "Answer": ["C"]}
    row = first(write(tmp_path, train=letters, dev=letters))
    assert (row["choices"], row["label"]) == (["p", "q", "r", "s"], "2")


def test_tsv_keeps_lone_quotation_marks(tmp_path):
    (tmp_path / "train.tsv").write_text('label\ttext_a\n1\t"so it goes\n0\tfine\n')
    (tmp_path / "dev.tsv").write_text("label\ttext_a\n1\tok\n")
    assert glue.read(tmp_path).collect()["text"].to_list() == ['"so it goes', "fine", "ok"]


def test_squad_gives_spans_and_mends_starts(tmp_path):
    answers = [{"text": "Denver", "answer_start": 0}, {"text": "in", "answer_start": 7}]
    lost = [{"text": "Boston", "answer_start": 3}]
    questions = [{"question": "Where?", "answers": answers}, {"question": "Who?", "answers": lost}]
    paragraph = {"context": "It is in Denver.", "qas": questions}
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    rows = glue.read(tmp_path).collect()
    assert rows.height == 1  # the answer of the second is not in its context
    assert rows["spans"][0].to_list() == [{"start": 9, "text": "Denver"}, {"start": 6, "text": "in"}]


def test_c3_gives_choices(tmp_path):
    one = {"question": "他们在谈论什么?", "choice": ["旅行", "工作"], "answer": "工作"}
    (tmp_path / "dev.json").write_text(json.dumps([[["男：听说", "女：是呀"], [one], "47"]]))
    row = first(tmp_path)
    assert (row["second"], row["choices"], row["label"]) == ("男：听说\n女：是呀", ["旅行", "工作"], "1")


def test_rows_of_one_context_stay_together_and_never_move(tmp_path):
    texts = {"question": [f"q{n}" for n in range(60)], "passage": [f"a long passage {n // 3}" for n in range(60)]}
    write(tmp_path, all={**texts, "label": ["x"] * 60})
    rows = glue.read(tmp_path).collect()
    assert rows.group_by("second").agg(pl.col("split").n_unique()).max()["split"].item() == 1
    assert set(rows["split"]) == {"train", "dev", "test"}
    fewer = {name: values[:30] for name, values in texts.items()}
    write(tmp_path, all={**fewer, "label": ["x"] * 30})
    assert glue.read(tmp_path).collect()["split"].to_list() == rows["split"].to_list()[:30]


def test_settings_name_columns_and_files(tmp_path):
    (source := tmp_path / "source").mkdir()
    write(source, one={"a": ["x", "y"], "b": ["1", "2"], "text": ["z", "z"], "label": ["n", "n"]})
    (out := tmp_path / "out").mkdir()
    glue.fetch(out, source, text=["a", "text"], label="b", splits={"train": "one.parquet"}, licence="CC0")
    rows = glue.read(out).collect()
    assert rows["text"].to_list() == ["x z", "y z"]
    assert rows["label"].to_list() == ["1", "2"]
    assert set(rows["licence"]) == {"CC0"}


def test_what_cannot_be_told_is_refused(tmp_path):
    (empty := tmp_path / "empty").mkdir()
    write(tmp_path, train={"body": ["x"], "label": ["1"]}, dev={"body": ["x"], "label": ["1"]})
    with pytest.raises(
        glue.NoExamples, match="no column is known as text among body, label; name it with `text: COLUMN`"
    ):
        glue.read(tmp_path)
    with pytest.raises(glue.NoExamples, match="splits names gone.parquet"):
        glue.fetch(empty, tmp_path, splits={"train": "gone.parquet"})
    with pytest.raises(glue.NoExamples, match="splits has valid"):
        glue.fetch(empty, tmp_path, splits={"valid": "train.parquet"})
    (empty := tmp_path / "nothing").mkdir()
    with pytest.raises(glue.NoExamples, match="no file that ends in"):
        glue.read(empty)


def test_rules_find_a_moved_span_and_a_missing_choice(tmp_path):
    good = glue.conform(pl.DataFrame({"text": ["q", "r"], "second": ["abc", "d"], "label": ["0", "0"], "licence": "x",
                                      "split": "train", "choices": [["p", "q"], ["s"]]}))  # fmt: skip
    validate(good, glue.expectations())
    with pytest.raises(DataRejected, match="label is the place of a choice"):
        validate(good.with_columns(label=pl.lit("2")), glue.expectations())
    span = pl.lit([{"start": 1, "text": "x"}], pl.List(pl.Struct({"start": pl.Int64, "text": pl.String})))
    with pytest.raises(DataRejected, match="second has the answer at its start"):
        validate(good.with_columns(spans=span), glue.expectations())


@pytest.mark.parametrize("answer", listings.ANSWERS)
def test_listings_keep_their_rules_and_bytes(tmp_path, answer):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        listings.fetch(tmp_path / name, Path(listings.__file__), rows=120, answer=answer)
    validate(listings.read(tmp_path / "one"), listings.expectations())
    assert (tmp_path / "one/examples.parquet").read_bytes() == (tmp_path / "two/examples.parquet").read_bytes()


def test_more_listings_keep_the_earlier_ones():
    titles = lambda *how: [one.title() for one in listings.listings(*how)]
    assert titles(20)[:5] == titles(5) and titles(5, 1) != titles(5)


def test_listings_are_asked_in_three_languages(tmp_path):
    listings.fetch(tmp_path, Path(listings.__file__), rows=10, answer="choice", language="zh")
    row = listings.read(tmp_path).collect().row(0, named=True)
    assert row["choices"][int(row["label"])] in row["second"] and row["text"] == "出售什么？"
    with pytest.raises(listings.ListingError, match="with answer tags it is one of en"):
        listings.fetch(tmp_path, tmp_path, answer="tags", language="zh")


def test_listings_refuse(tmp_path):
    with pytest.raises(listings.ListingError, match="answer is 'colour'; it is one of category, condition"):
        listings.fetch(tmp_path, tmp_path, answer="colour")
    with pytest.raises(listings.ListingError, match="rows is 3"):
        listings.fetch(tmp_path, tmp_path, rows=3)


@pytest.mark.parametrize(
    ("folder", "rows", "second", "columns"),
    [
        ("nlp_en/glue/rte", 2767, True, ("label",)),
        ("nlp_en/glue/stsb", 8628, True, ("label",)),
        ("nlp_en/superglue_fewshot/COPA", 132, True, ("label", "choices")),
        ("nlp_en/xquad", 2380, True, ("spans",)),
        ("nlp_zh/chnsenticorp", 12000, False, ("label",)),
        ("nlp_zh/cmrc2018", 3219, True, ("spans",)),
        ("nlp_zh/fewclue_tnews", 4293, False, ("label",)),
    ],
)
def test_real_sets_keep_the_rules(shared_data, folder, rows, second, columns):
    if shared_data is None or not (shared_data / folder).is_dir():
        pytest.skip("the labelled sets are not beside this checkout")
    examples = glue.read(shared_data / folder)
    assert validate(examples, glue.expectations())["rows"] == rows
    found = examples.collect()
    assert found["second"].null_count() == (0 if second else rows)
    assert all(found[name].null_count() == 0 for name in columns)
