"""Near duplicates: similarities by hand, what is inside a longer text, benchmarks protected, every removal named."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tasks.datasets import corpora, instructions, parallel, questions
from tasks.files import digest, read_json, write_json
from tasks.ingest_text import TextRejected, ingest_text, sentences
from tasks.near import leaks, main, near
from tasks.settings import SettingsError
from tasks.shingles import Likeness, Runs, Seen, jaccard, shingles, units

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
QUESTION = "Which of the planets of our solar system has the shortest day of all?"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(*numbers: int) -> list[str]:
    """Sentences without a shared run of words: their words carry their number."""
    return [" ".join(f"{word}{number}" for word in WORDS) + "." for number in numbers]


def documents(out: str, *texts: list[str]) -> dict:
    rows = [{"sentences": text, "language": "en", "licence": "MIT", "source": out} for text in texts]
    folder = Path(out, "rows")
    folder.mkdir(parents=True)
    frame = pl.DataFrame(rows, schema=corpora.SCHEMA)
    frame[: len(rows) - 1].write_parquet(folder / "train.parquet")
    frame[len(rows) - 1 :].write_parquet(folder / "heldout.parquet")
    count = {"train": len(rows) - 1, "heldout": 1}
    write_json(
        Path(out, "manifest.json"), {"kind": "documents", "rows": count, "licences": {}, "digest": digest(folder)}
    )
    return {out: out}


def benchmark(out: str, *asked: dict) -> dict:
    base = {
        "choices": ["a", "b", "c"],
        "label": "0",
        "split": "test",
        "licence": "MIT",
        "subject": "s",
        "language": "en",
    }
    rows = [base | {"number": n} | one for n, one in enumerate(asked)]
    frame = pl.DataFrame([dict.fromkeys(questions.SCHEMA) | row for row in rows], schema=questions.SCHEMA)
    ingest_text("examples", frame.lazy(), 10, out, needs=("test",))
    return {out: out}


def train(out: str) -> list[str]:
    return [row[0] for row in pl.read_parquet(Path(out, "rows/train.parquet"))["sentences"].to_list()]


def test_units_and_shingles_by_hand():
    assert len(units("全新 New, new!")) == 4
    assert units("New")[0] == units("ＮＥＷ")[0] == units("全new")[1]  # width and case do not count
    a, b = shingles(units("a b c d e f"), 5), shingles(units("a b c d e g"), 5)
    assert (len(a), len(b), jaccard(a, b)) == (2, 2, 1 / 3)  # abcde, bcdef and abcde, bcdeg
    assert jaccard(shingles(units("b a"), 5), shingles(units("a b"), 5)) == 0  # order counts
    assert shingles(units("b a"), 2) == shingles(units("b a"), 5)


def test_candidates_are_verified_and_those_that_are_alike_are_found():
    # 20 words, the last replaced: 15 of 17 shingles are shared; the first and the last: 14 of 18; every fifth: none.
    like, text = Likeness(threshold=0.8), [f"w{n}" for n in range(20)]
    seen = Seen(like)
    seen.add("whole", units(" ".join(text)))
    key, share = seen.nearest(units(" ".join([*text[:-1], "x"])))
    assert (key, share) == ("whole", pytest.approx(15 / 17))
    assert seen.nearest(units(" ".join(["x", *text[1:-1], "x"]))) is None
    assert Seen(like).nearest(units("")) is None


def test_of_equals_the_first_is_named_and_a_text_is_added_only_if_it_is_like_none():
    seen = Seen(Likeness())
    assert seen.nearest(units("a b c"), add=1) is None
    assert seen.nearest(units("A, b, C."), add=2) == (1, 1.0)
    assert seen.nearest(units("a b c"), add=3) == (1, 1.0)


def test_runs_inside_by_hand():
    runs = Runs(Likeness())
    assert not runs.add("short", units("seven words are not enough for this"))
    assert runs.add("question", units(QUESTION))  # 14 units: 7 runs of 8
    assert runs.inside(units(f"Before it. {QUESTION} After it.")) == [("question", 1.0)]
    cut = " ".join(QUESTION.split()[2:])  # 12 units: 5 of 7 runs, 0.714
    assert runs.inside(units(f"No: {cut}")) == [("question", pytest.approx(5 / 7))]
    assert runs.inside(units(" ".join(QUESTION.split()[3:]))) == []  # 4 of 7
    assert runs.inside(units("too short")) == []
    assert runs.add("chinese", units("太阳系中哪一颗行星的白天最短？"))
    assert runs.inside(units("问：太阳系中，哪一颗行星的白天最短？答：木星。")) == [("chinese", 1.0)]


def test_training_texts_that_repeat_others_go_and_are_named():
    changed = [*lines(1, 2, 3)[:2], "one3 two3 three3 four3 five3 six3 seven3 eight3 nine3 ten3 eleven3 other."]
    first = documents("first", lines(1, 2, 3), lines(4), lines(5))
    second = documents("second", changed, lines(6), lines(4), lines(5, 7), lines(8))
    report = near(first | second, {}, "out")
    assert train("out/first") == [lines(1)[0], lines(4)[0]]
    assert train("out/second") == [lines(6)[0]]
    # 36 units are 32 shingles, of which the last is another: 31 / 33. What is held out of the first set (5) lies in
    # `lines(5, 7)` and protects itself.
    assert report["sets"]["first"] == {"rows": 2, "kept": 2, "removed": {}}
    assert report["sets"]["second"] == {
        "rows": 4,
        "kept": 1,
        "removed": {"inside a benchmark or held-out text": 1, "near a training text": 2},
    }
    named = pl.read_parquet("out/removed.parquet")
    assert named.select("set", "row", "how", "of", "of_split", "of_row").rows() == [
        ("second", 0, "near", "first", "train", 0),
        ("second", 2, "near", "first", "train", 1),
        ("second", 3, "inside", "first", "heldout", 0),
    ]
    assert named["share"].to_list() == pytest.approx([31 / 33, 1.0, 1.0])
    manifest = read_json("out/second/manifest.json")
    assert (manifest["rows"], manifest["near_removed"]) == ({"train": 1, "heldout": 1}, 3)
    assert manifest["licences"] == {"MIT": 2}
    assert list(sentences("out/second", "heldout")) == lines(8)  # what reads ingested texts reads these


def test_a_benchmark_item_in_training_data_is_named_and_its_text_removed(capsys):
    data = documents("data", [*lines(1), f"{QUESTION} Nobody knows."], lines(2), [QUESTION + " a b c"], lines(3))
    asked = benchmark("bench", {"text": QUESTION}, {"text": "How many moons has the fourth planet, seen from the sun?"})
    report = near(data, asked, "out")
    assert train("out/data") == lines(2)
    assert report["benchmarks"] == {"bench": {"items": 2, "found": 1}}
    named = pl.read_parquet("out/removed.parquet")
    assert set(named["of_text"]) == {f"{QUESTION}\na\nb\nc"}
    assert named.select("row", "how", "of", "of_split").rows() == [(0, "inside", "bench", "test"),
                                                                   (2, "inside", "bench", "test")]  # fmt: skip
    assert leaks(asked, {"data": "out/data"}).is_empty()
    found = leaks(asked, data)
    assert found["of_row"].n_unique() == 1
    assert found["row"].unique().to_list() == [0, 2]


def test_questions_that_many_rows_ask_are_known_by_their_options():
    asked = {"text": "Which of the following statements about this subject is true, then?"}
    rows = [asked | {"choices": [f"first {n} choice of words", f"second {n}"]} for n in range(2)]
    # Of 11 units, and in two rows: with its options 18 units, 11 runs.
    bench = benchmark("bench", *rows)
    with_options = f"{asked['text']} First 0 choice of words, second 0"
    data = documents("data", [f"{asked['text']} Nobody was asked."], [with_options], lines(3))
    near(data, bench, "out")
    assert train("out/data") == [f"{asked['text']} Nobody was asked."]


def test_a_short_question_alone_is_no_item():
    bench = benchmark(
        "bench", {"text": "电影什么时候开始？", "choices": ["六点半", "七点", "七点半"]}
    )  # 8 units, 16 with options
    data = documents("data", ["When does the film begin?", "电影什么时候开始？"],
                     ["电影什么时候开始？六点半，七点，七点半。"], lines(1))  # fmt: skip
    near(data, bench, "out")
    assert train("out/data") == ["When does the film begin?"]


def test_a_dialogue_in_training_data_is_found_too():
    bench = benchmark("bench", {"text": "去吗？", "second": "男：明天我们一起去看电影吧。女：好的，我很想去看。"})
    data = documents("data", ["小说。", "男：明天我们一起去看电影吧！女：好的，我很想去看！"], lines(1), lines(2))
    report = near(data, bench, "out")
    assert report["benchmarks"]["bench"]["found"] == 1


def test_short_items_are_counted_and_found_when_they_are_the_same():
    bench = benchmark("bench", {"text": "Is it?", "choices": ["yes", "no"]})
    report = near(documents("data", ["Is it? Yes, no!"], lines(1), lines(2)), bench, "out")
    assert report["too_short"] == {"bench": 1}
    assert report["benchmarks"]["bench"]["found"] == 1


def test_pairs_and_instructions_are_compared_by_what_is_said():
    pair = dict.fromkeys(parallel.NAMES, "MIT")
    rows = [pair | {"source": lines(n)[0], "target": f"第{n}句话是这样说的吗"} for n in range(40)]
    ingest_text("pairs", pl.DataFrame(rows, schema=parallel.SCHEMA).lazy(), 9, "pairs", heldout=0.2)
    told = {"instruction": " ".join(WORDS), "language": "en", "licence": "MIT", "origin": "a"}
    rows = [told | {"input": lines(100 + n)[0], "output": "yes"} for n in range(40)]
    rows += [told | {"instruction": lines(200 + n // 2)[0], "input": "", "output": "!" * (n % 2)} for n in range(20)]
    ingest_text("instructions", pl.DataFrame(rows, schema=instructions.SCHEMA).lazy(), 9, "told", heldout=0.2)
    report = near({"pairs": "pairs", "told": "told"}, {}, "out")
    assert report["sets"]["pairs"]["removed"] == {}
    train, held = (pl.read_parquet(f"told/rows/{split}.parquet") for split in ("train", "heldout"))
    asked = train.filter(pl.col("input") == "")["instruction"]
    held_out = held.filter(pl.col("input") == "")["instruction"]
    # One instruction with many inputs repeats nothing; without an input it is the text, of which one stays.
    told = report["sets"]["told"]
    assert told["rows"] - told["kept"] == len(asked) - len(set(asked) - set(held_out))


def test_the_same_bytes_whatever_the_order_of_reading():
    data = documents("data", lines(1), lines(2), lines(1), lines(3))
    near(data, {}, "a")
    near(data, {}, "b")
    assert digest("a") == digest("b")


def test_command(capsys):
    documents("in/data", [*lines(1), QUESTION], lines(2), lines(2), lines(3))
    benchmark("in/bench", {"text": QUESTION})
    Path("params.yaml").write_text("near: {train: {data: [data]}, benchmarks: {data: bench}, threshold: 0.9}\n")
    main("params.yaml:near", "in", "out")
    said = capsys.readouterr()
    assert (
        "out/data: 1 of 3 training texts kept; removed: 1 inside a benchmark or held-out text, 1 near a training"
        in said.out
    )
    assert "warning: bench: 1 of 1 items were in training texts" in said.err
    assert read_json("out/report.json")["likeness"]["threshold"] == 0.9


@pytest.mark.parametrize(
    ("sets", "benchmarks", "error", "words"),
    [
        (["data"], ["data"], SettingsError, "data is both a training set and a benchmark"),
        (["nowhere"], [], TextRejected, "nowhere was not ingested"),
        (["data"], ["copy"], TextRejected, "data: all 2 training texts repeat others; nothing was written"),
    ],
)
def test_what_cannot_be_compared_is_told(sets, benchmarks, error, words):
    documents("data", lines(1), lines(2), lines(3))
    documents("copy", lines(1), lines(2), lines(3))
    with pytest.raises(error, match=words):
        near({name: name for name in sets}, {name: name for name in benchmarks}, "out")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"treshold": 0.5}, "near has no setting treshold; it has: "),
        ({"threshold": 1.5}, "threshold is 1.5; it is a share"),
        ({"run": 0}, "run is 0; it is a whole number from 1 on"),
    ],
)
def test_likeness_is_checked(chosen, words):
    with pytest.raises(SettingsError, match=words):
        Likeness.read(chosen)


def test_signatures_find_nearly_all_that_are_alike():
    # Of pairs with similarity 0.82 (20 of 220 words replaced at one end) a band of 8 agrees with 0.82^8 = 0.2; one of
    # 14 with 0.96. 100 pairs: 96, give or take three standard deviations of 2.
    rng, found = np.random.default_rng(0), 0
    for _ in range(100):
        seen, text = Seen(Likeness()), [f"w{n}" for n in rng.integers(0, 10**9, 220)]
        seen.add("a", units(" ".join(text)))
        found += seen.nearest(units(" ".join([*text[:-20], *(f"v{n}" for n in range(20))]))) is not None
    assert found >= 90


def test_without_training_sets_there_is_an_empty_report(tmp_path):
    report = near({}, {}, tmp_path / "out")
    assert report["sets"] == {} and pl.read_parquet(tmp_path / "out/removed.parquet").is_empty()
