"""Multiple-choice benchmarks in every published form; what cannot be asked is counted; made-up ones never change."""

import json
from pathlib import Path

import pytest

from tasks.datasets import questions
from tasks.datasets._listings import ListingError
from tasks.datasets._text import TextUnreadable
from tasks.fetch import fetch
from tasks.files import digest, read_json
from tasks.ingest import main
from tasks.validate import DataRejected


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def rows(raw: str = ".") -> list[dict]:
    return questions.read(Path(raw)).collect().to_dicts()


def picked(*names: str) -> list[tuple]:
    return [tuple(row[name] for name in names) for row in rows()]


def test_mmlu_as_it_is_published(folder):
    write("test/anatomy_test.csv", '"Which bone, ""the long one""?",ulna,femur,tibia,rib,B\n"Two\nlines?",1,2,3,4,D\n')
    write("dev/anatomy_dev.csv", "What is it?,a,b,c,d,A\n")
    assert picked("text", "choices", "label", "split", "subject", "language", "number") == [
        ("What is it?", ["a", "b", "c", "d"], "0", "dev", "anatomy", "en", 0),
        ('Which bone, "the long one"?', ["ulna", "femur", "tibia", "rib"], "1", "test", "anatomy", "en", 0),
        ("Two\nlines?", ["1", "2", "3", "4"], "3", "test", "anatomy", "en", 1),
    ]


def test_cmmlu_as_it_is_published(folder):
    write("test/agronomy.csv", ",Question,A,B,C,D,Answer\n0,水稻的病害是什么？,一,二,三,四,C\n")
    assert picked("text", "choices", "label", "split", "subject", "language") == [
        ("水稻的病害是什么？", ["一", "二", "三", "四"], "2", "test", "agronomy", "zh")
    ]


def test_ceval_is_asked_on_val_where_test_has_no_answers(folder):
    write("dev/law_dev.csv", "id,question,A,B,C,D,answer,explanation\n0,一？,a,b,c,d,A,因为\n")
    write("val/law_val.csv", "id,question,A,B,C,D,answer\n0,二？,a,b,c,d,B\n")
    write("test/law_test.csv", "id,question,A,B,C,D,answer\n0,三？,a,b,c,d,\n")
    assert picked("text", "split", "subject") == [("一？", "dev", "law"), ("二？", "test", "law")]
    assert questions.left_out(folder) == {"questions without an answer": 1}
    write("test/law_test.csv", "id,question,A,B,C,D,answer\n0,三？,a,b,c,d,D\n")
    assert picked("text", "split") == [("一？", "dev"), ("三？", "test"), ("二？", "train")]


def test_c3_as_it_is_published(folder):
    said = [
        ["男：去吗？", "女：去。"],
        [{"question": "她去吗？", "choice": ["去", "不去", "不知道"], "answer": "去"}],
        "1",
    ]
    open_ended = [["男：嗯。"], [{"question": "什么？", "choice": ["甲", "乙"], "answer": "丙"}], "2"]
    write("c3-d-test.json", json.dumps([said, open_ended], ensure_ascii=False))
    (row,) = rows()
    assert row["second"] == "男：去吗？\n女：去。"
    assert (row["choices"], row["label"], row["split"]) == (["去", "不去", "不知道"], "0", "test")
    assert questions.left_out(folder) == {"questions without an answer": 1}


def test_options_may_be_fewer_and_an_empty_one_is_counted(folder):
    lines = [
        {"question": "Place?", "A": "x", "B": "y", "answer": 1, "subject": "few"},
        {"question": "Two?", "A": "x", "B": "y", "C": None, "answer": "B", "subject": "few"},
        {"question": "Hole?", "A": "x", "B": "", "C": "z", "answer": "C"},
        {"question": "Beyond?", "A": "x", "B": "y", "C": "", "answer": "C"},
    ]
    write("some_val.jsonl", "\n".join(map(json.dumps, lines)))
    assert picked("choices", "label", "subject", "split") == [(["x", "y"], "1", "few", "test")] * 2
    assert questions.left_out(folder) == {questions.EMPTY: 1, questions.NO_ANSWER: 1}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "question,first,second,answer\nq,1,2,A\n", "needed"),
        ("a.json", '{"data": 1}', "not of C3's form"),
        ("a.json", "[", "line 1: no JSON"),
        ("a.bin", "x", "no file that ends in"),
    ],
)
def test_other_forms_are_refused(folder, name, content, words):
    write(name, content)
    with pytest.raises(TextUnreadable, match=words):
        rows()


def test_the_door_counts_what_is_left_out_and_ingestion_keeps_the_columns(folder, capsys):
    write("source/law_dev.csv", "question,A,B,answer\n" + "".join(f"one {n}?,a,b,A\n" for n in range(3)))
    write("source/law_test.csv", "question,A,B,answer\n" + "".join(f"two {n}?,a,b,B\n" for n in range(9)) + "x?,a,b,\n")
    settings = {"source": "source", "licence": {"law*": "MIT"}}
    assert fetch("questions", settings, "landing", "report")["left_out"] == {questions.NO_ANSWER: 1}
    write("params.yaml", "datasets: {questions: {source: source}}\n")
    main("params.yaml:datasets.questions", "landing", "ingested")
    assert read_json("ingested/manifest.json")["rows"] == {"dev": 3, "test": 9}
    assert read_json("ingested/manifest.json")["licences"] == {"MIT": 12}
    assert {"subject", "language", "number"} < set(read_json("ingested/manifest.json")["columns"])


def test_a_broken_benchmark_does_not_land(folder):
    write("source/law_test.csv", "question,A,B,answer\n" + "".join(" ,a,b,B\n" for _ in range(9)))
    with pytest.raises(DataRejected, match="text"):
        fetch("questions", {"source": "source"}, "landing", "report")


@pytest.mark.parametrize("languages", [["en", "zh"], ["en", "zh", "ja"], ["ja"]])
def test_made_up_questions(folder, languages):
    settings = {"source": questions.__file__, "questions": 120, "languages": languages}
    profile = fetch("questions", settings, "landing/one", "report")
    for out, seed in (("two", 7), ("three", 8)):
        Path("landing", out).mkdir()
        questions.fetch(Path("landing", out), Path(questions.__file__), questions=120, languages=languages, seed=seed)
    assert profile["rows"] == 120 and not profile["left_out"]
    assert digest("landing/one") == digest("landing/two") != digest("landing/three")
    made = rows("landing/one")
    assert {row["language"] for row in made} == set(languages)
    assert {row["split"] for row in made} == {"dev", "test"}
    for row in made:
        assert len(set(row["choices"])) == 4
        if row["subject"] in ("thing", "condition"):  # the text has the right one, and no other thing
            right = row["choices"][int(row["label"])]
            assert right in row["second"]
    places = [row["label"] for row in made]
    assert all(places.count(str(place)) >= 12 for place in range(4))  # 30, give or take four standard deviations of 4.7


def test_a_language_that_is_not_made_is_named(folder):
    with pytest.raises(ListingError, match="languages has ko; made-up listings come in en, zh, ja"):
        questions.fetch(folder, Path(questions.__file__), languages=["en", "ko"])


def test_shared_benchmarks_are_read(shared_data):
    if shared_data is None:
        pytest.skip("the shared data are not here")
    mmlu = questions.read(shared_data / "nlp_en/mmlu").collect()
    assert mmlu.height == 285 + 14042
    assert mmlu["subject"].n_unique() == 57
    c3 = questions.read(shared_data / "nlp_zh/c3").collect()
    assert c3["split"].to_list() == ["test"] * 3816  # the file called dev; that called test has no answers
    assert (c3["language"] == "zh").mean() > 0.99
