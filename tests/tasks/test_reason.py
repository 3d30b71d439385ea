"""Reasoning by a model's folder: ways, votes, what is written, bad questions."""

import polars as pl
import pytest
from _speaker import speaker

from models.language._reader import TooLong
from tasks.files import read_json
from tasks.reason import Reasoning, reason
from tasks.settings import SettingsError

SMALL = {"paths": 3, "tokens": 6}
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return speaker(tmp_path_factory.mktemp("speaker"))


def test_each_way_has_as_many_paths_and_a_vote(model, tmp_path):
    rows = {"id": ["a", "b"], "question": ["Two and two?", "Ten less one?"], "answer": ["2 + 2 = 4\n#### 4", "9"]}
    pl.DataFrame(rows).write_parquet("q.parquet")
    metrics = reason(model, "q.parquet", SMALL, tmp_path / "out")
    paths = pl.read_parquet(tmp_path / "out" / "paths.parquet")
    assert paths.group_by("id", "way").len()["len"].to_list() == [3] * 6
    assert paths.filter(pl.col("id") == "a")["right"].unique().to_list() == ["4"]
    assert read_json(tmp_path / "out" / "metrics.json")["reasoning"] == metrics
    for way in ("icn", "top_b", "sample"):
        part = paths.filter(pl.col("way") == way)
        assert metrics[f"{way}_generated_tokens"] == part["generated"].sum() <= 6 * 7
        assert metrics[f"{way}_path"] == (part["answer"] == part["right"]).mean()
        assert metrics[f"{way}_passes"] > 0
    first = paths.filter(pl.col("number") == 0)
    assert first.filter(pl.col("way") == "icn")["path"].equals(first.filter(pl.col("way") == "top_b")["path"])
    assert metrics["icn_read_tokens"] > metrics["top_b_read_tokens"]  # the list is read as well
    assert reason(model, "q.parquet", SMALL | {"batch": 1}, tmp_path / "again")["icn_voted"] == metrics["icn_voted"]
    one = reason(model, "q.parquet", SMALL | {"limit": 1, "ways": ["sample"]}, tmp_path / "one")
    assert one["questions"] == 1 and "icn_voted" not in one
    with pytest.raises(TooLong, match="2 of 2 prompts, such as 'a' of"):
        reason(model, "q.parquet", {"tokens": 200}, tmp_path / "long")


@pytest.mark.parametrize(("rows", "words"), [
    ({"id": ["a"], "question": ["x"]}, "no column answer"),
    ({"id": ["a", "b"], "question": ["x", "y"], "answer": ["4", "four"]}, "1 of 2 questions .* such as 'b'"),
    ({"id": ["a", "a"], "question": ["x", "y"], "answer": ["4", "5"]}, "2 of 2 questions"),
])  # fmt: skip
def test_questions_that_cannot_be(rows, words, model, tmp_path):
    pl.DataFrame(rows).write_parquet("q.parquet")
    with pytest.raises(ValueError, match=words):
        reason(model, "q.parquet", SMALL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("chosen", "words"), [
    ({"path": 3}, "no setting path; it"), ({"ways": ["beam"]}, "has no 'beam'"), ({"answer": "word"}, "has no 'word'"),
    ({"prompt": "Solve it."}, "no {question}"), ({"temperature": 0}, "must be > 0"), ({"ways": []}, "one way or more"),
])  # fmt: skip
def test_settings_of_reasoning_that_cannot_be(chosen, words):
    with pytest.raises(SettingsError, match=words):
        Reasoning.read(chosen)


def test_letters_are_read_of_choices(model, tmp_path):
    pl.DataFrame({"id": ["a"], "question": ["Which? A) 1 B) 2"], "answer": ["B"]}).write_parquet("q.parquet")
    metrics = reason(model, "q.parquet", SMALL | {"answer": "letter", "ways": ["icn"]}, tmp_path / "out")
    assert set(pl.read_parquet(tmp_path / "out" / "paths.parquet")["answer"]) <= {"", "A", "B", "C", "D", "E"}
    assert metrics["icn_voted"] in (0.0, 1.0)
