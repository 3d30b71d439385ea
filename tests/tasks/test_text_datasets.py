"""Texts of every usual form are read; broken, empty and unlicensed ones are refused; made-up ones never change."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from tasks.datasets import corpora, instructions, parallel
from tasks.datasets._listings import CATEGORIES, Listing, ListingError
from tasks.datasets._text import TextUnreadable, language_of, split_sentences
from tasks.fetch import fetch
from tasks.files import digest
from tasks.validate import DataRejected, validate

MODULES = {"corpora": corpora, "parallel": parallel, "instructions": instructions}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def documents(raw: Path) -> list[list[str]]:
    return corpora.read(raw).collect()["sentences"].to_list()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("Wait... what? 3.5 dollars.", ["Wait... what?", "3.5 dollars."]),
        ("第一句。第二句！\u201d第三句", ["第一句。", "第二句！\u201d", "第三句"]),
        ("a title\n\n  a line \r\n", ["a title", "a line"]),
        (" \n ", []),
    ],
)
def test_sentences_by_hand(text, sentences):
    assert split_sentences(text) == sentences


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a red bag", "en"),
        ("红色的包", "zh"),
        ("赤いバッグを売ります", "ja"),
        ("빨간 가방", "ko"),
        ("красная", "ru"),
        ("12", "und"),
    ],
)
def test_language_is_that_of_the_script(text, language):
    assert language_of(text) == language


def test_every_form_of_documents(folder):
    raw = folder / "raw"
    raw.mkdir()
    pl.DataFrame({"sentences": [["A b.", "C d."]]}).write_parquet(raw / "a.parquet")
    rows = {"file": ["x", "x", "y"], "sent": [0, 1, 0], "text": ["One. Still one.", "Two.", "Three."]}
    pl.DataFrame(rows).write_parquet(raw / "b.parquet")
    pl.DataFrame(
        {"line": ["", " = Title = ", " = = Part = = ", "One. Two.", "", " = Next = ", "Three."]}
    ).write_parquet(raw / "c.parquet")
    (raw / "d.txt").write_text("first line\nsecond line\n\nthe next document, whose line never ends")
    (raw / "e.txt").write_text("one\ntwo\n")
    with gzip.open(raw / "f.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "Kept whole. Cut.", "licence": "CC0-1.0", "language": "en"}) + "\n")
    (raw / "g.csv").write_text('text,licence\n"With, comma. End.",MIT\n')
    (raw / "h.json").write_text(json.dumps([{"content": "In a list."}]))
    assert documents(raw) == [
        ["A b.", "C d."],
        ["One. Still one.", "Two."],  # numbered sentences stand as they are
        ["Three."],
        ["One.", "Two."],
        ["Three."],
        ["first line", "second line"],
        ["the next document, whose line never ends"],
        ["one"],
        ["two"],
        ["Kept whole.", "Cut."],
        ["With, comma.", "End."],
        ["In a list."],
    ]
    frame = corpora.read(raw).collect()
    assert frame["licence"].drop_nulls().to_list() == ["CC0-1.0", "MIT"]
    assert frame["source"].unique().len() == 8
    assert corpora.read(raw).select("language").head(3).collect().height == 3  # the scan takes columns and limits


def test_wikitext_that_begins_with_its_title(folder):
    (folder / "w.txt").write_text(" = A = \n\nOne.\n\nTwo.\n = = B = = \nThree.\n = C = \nFour.\n")
    assert documents(folder / "w.txt") == [["One.", "Two.", "Three."], ["Four."]]


def test_every_form_of_pairs_and_instructions(folder):
    (folder / "p").mkdir()
    pl.DataFrame({"en": ["Wait!", "no"], "zh": ["等一下！", ""], "kind": ["question", "x"]}).write_parquet(
        "p/a.parquet"
    )
    Path("p/b.jsonl").write_text(json.dumps({"translation": {"en": "a", "ja": "あ"}}) + "\n")
    Path("p/c.tsv").write_text("source\ttarget\nred bag\t红包\n")
    assert parallel.read(folder / "p").drop("licence").collect().rows() == [
        ("Wait!", "等一下！", "en", "zh", "a.parquet:question"),
        ("a", "あ", "en", "ja", "b.jsonl"),
        ("red bag", "红包", "en", "zh", "c.tsv"),
    ]
    (folder / "i").mkdir()
    lines = [
        {"instruction": "Say hi.", "input": None, "output": "hi"},
        {"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}, {"input": "1 2", "output": "3"}]},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
        {"instruction": "No answer.", "output": ""},
    ]
    Path("i/a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert instructions.read(folder / "i").select("instruction", "input", "output").collect().rows() == [
        ("Say hi.", "", "hi"),
        ("Add.", "1 1", "2"),
        ("Add.", "1 2", "3"),
        ("Why?", "", "So."),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"fine\nsecond caf\xe9\n", ["a.txt, line 2: not UTF-8 (byte 0xe9 at column 11)"]),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', ["a.jsonl, line 2: a JSON object was expected"]),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', ["a.jsonl, line 2: no JSON"]),
        ("a.csv", b"text,licence\nx\n", ["a.csv, line 2: not as many fields"]),
        ("a.jsonl", b'{"a": 1}\n', ["a.jsonl has the columns a: none of sentences, text"]),
        ("a.txt", b"", ["source is empty"]),
    ],
)
def test_bad_texts_are_refused_at_the_door(folder, name, content, words):
    (folder / "source").mkdir()
    (folder / "source" / name).write_bytes(content)
    settings = {"source": "source"} if words == ["source is empty"] else {"source": "source", "licence": "MIT"}
    with pytest.raises(DataRejected) as refused:
        fetch("corpora", settings, "landing/corpora", "report")
    for word in words:
        assert word in str(refused.value)
    assert ".new-" not in str(refused.value)
    assert not Path("landing/corpora").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"one line alone", ["there are 2 texts or more: found 1"]),
        ("a.txt", b" \n\n", ["the log has rows: found 0"]),
        ("a.txt", b"bell \x07 here\n\nplain\n", ["control characters"]),
        ("a.txt", "broken \ufffd here\n\nplain\n".encode(), ["wrong decoding"]),
        ("a.txt", b"same\n\nsame\n\nsame\n", ["repeat the texts of another: found 0.666667"]),
        ("a.jsonl", b'{"text": "x y", "language": "zh"}\n{"text": "z"}\n', ["letters of another script"]),
    ],
)
def test_texts_that_break_a_rule_are_refused(folder, name, content, words):
    (folder / name).write_bytes(content)
    frame = corpora.read(folder / name).with_columns(licence=pl.lit("MIT"))
    with pytest.raises(DataRejected) as refused:
        validate(frame, corpora.expectations(), name="corpora")
    for word in words:
        assert word in str(refused.value)


def test_a_text_without_licence_is_refused_and_licences_go_by_file(folder):
    (folder / "source").mkdir()
    for name in ("brown.txt", "other.txt"):
        (folder / "source" / name).write_text(f"first of {name}\n\nsecond of {name}\n")
    with pytest.raises(DataRejected, match="every row names its licence.*: 4 broken"):
        fetch("corpora", {"source": "source"}, "landing/corpora", "report")
    settings = {"source": "source", "licence": {"brown*": "research", "*": "CC0-1.0"}, "language": "en"}
    profile = fetch("corpora", settings, "landing/corpora", "report")
    assert profile["rows"] == 4
    assert profile["events"] == {"en": 1.0}
    rows = corpora.read(Path("landing/corpora")).select("source", "licence").unique().sort("source").collect().rows()
    assert rows == [("brown.txt", "research"), ("other.txt", "CC0-1.0")]


def test_a_new_mix_of_languages_is_drift(folder):
    source = folder / "a.txt"
    source.write_text("".join(f"an english text {n}\n\n" for n in range(20)))
    fetch("corpora", {"source": "a.txt", "licence": "MIT"}, "landing/corpora", "report")
    source.write_text("".join(f"an english text {n}\n\n" if n < 10 else f"中文文章{n}。\n\n" for n in range(20)))
    with pytest.raises(DataRejected, match="the share of en is near that of the log accepted before"):
        fetch("corpora", {"source": "a.txt", "licence": "MIT"}, "landing/corpora", "report")


@pytest.mark.parametrize("name", MODULES)
def test_made_up_texts_keep_the_rules_and_their_bytes(folder, name):
    module = MODULES[name]
    settings = {"source": module.__file__, {"corpora": "documents", "parallel": "pairs"}.get(name, name): 200}
    profile = fetch(name, settings, "landing/one", "report")
    count = {key: value for key, value in settings.items() if key != "source"}
    for out, seed in (("two", 7), ("three", 8)):
        Path("landing", out).mkdir()
        module.fetch(Path("landing", out), Path(module.__file__), seed=seed, **count)
    assert profile["rows"] == 200
    assert not profile["warnings"]
    assert digest("landing/one") == digest("landing/two") != digest("landing/three")
    assert set(module.read(Path("landing/one")).collect()["licence"]) == {"CC0-1.0"}


def test_languages_are_a_setting_of_made_up_texts(folder):
    corpora.fetch(folder, Path(corpora.__file__), documents=300, languages={"en": 50, "ja": 50})
    spoken = corpora.read(folder).collect()["language"].value_counts()
    assert set(spoken["language"]) == {"en", "ja"}
    assert spoken["count"].min() > 120  # 150, give or take three standard deviations of 8.7
    Path("pairs").mkdir()
    parallel.fetch(Path("pairs"), Path(parallel.__file__), pairs=40, languages=["en", "zh", "ja"])
    made = parallel.read(Path("pairs")).collect()
    assert made.group_by("source_language", "target_language").len().sort("target_language").rows() == [
        ("en", "ja", 20),
        ("en", "zh", 20),
    ]
    assert made["source"][0] == Listing(7, 0).title()
    assert made["target"][0] == Listing(7, 0).title("zh")
    assert made["target"][2] == Listing(7, 1).title("ja")


def test_instructions_in_three_languages(folder):
    settings = {"source": instructions.__file__, "instructions": 300, "languages": ["en", "zh", "ja"]}
    assert not fetch("instructions", settings, "landing", "report")["warnings"]
    made = instructions.read(Path("landing")).collect()
    assert made["language"].to_list() == ["en", "zh", "ja"] * 100
    asked = made.group_by("language").agg(pl.col("instruction").n_unique())
    assert asked["instruction"].min() >= 5
    translated = made.filter(instruction="このタイトルを英語に訳してください。").row(0, named=True)
    titles = {Listing(7, number).title("ja"): Listing(7, number).title() for number in range(300)}
    assert titles[translated["input"]] == translated["output"]
    Path("alone").mkdir()
    instructions.fetch(Path("alone"), Path(instructions.__file__), instructions=60, languages=["ja"])
    assert set(instructions.read(Path("alone")).collect()["language"]) == {"ja"}


@pytest.mark.parametrize(
    ("module", "languages", "words"),
    [
        (corpora, {"en": 50, "ko": 50}, "languages has ko; made-up listings come in en, zh, ja"),
        (corpora, {"en": 50, "zh": 40}, "languages add up to 90"),
        (parallel, ["en"], "a pair has two of them"),
        (parallel, [], "languages has none"),
        (instructions, ["fr"], "languages has fr"),
    ],
)
def test_languages_that_cannot_be_made(folder, module, languages, words):
    with pytest.raises(ListingError, match=words):
        module.fetch(folder, Path(module.__file__), languages=languages)


def test_a_listing_tells_its_category(folder):
    corpora.fetch(folder, Path(corpora.__file__), documents=300)
    frame = corpora.read(folder).collect()
    assert {"en", "zh", "ja"} == set(frame["language"])
    assert (frame["sentences"].list.len() >= 4).all()
    things = {word[0]: name for name, entry in CATEGORIES.items() for word in entry["things"]}
    for number in range(40):
        listing = Listing(7, number)
        named = [things[word] for word in listing.title().replace(",", "").split() if word in things]
        assert named == [listing.category]


def test_shared_files_are_read(shared_data):
    if shared_data is None:
        pytest.skip("the shared data are not here")
    frame = corpora.read(shared_data / "nlp_zh/raw").collect()
    assert frame.height == 2500
    assert (frame["language"] == "zh").mean() > 0.99
    english = corpora.read(shared_data / "nlp_en/raw/us_inaugural.parquet").collect()
    assert english.height == 59
    titled = corpora.read(shared_data / "nlp_en/raw/wikitext2_test.parquet").collect()
    assert titled.height < 100  # articles, not paragraphs
    with pytest.raises(TextUnreadable, match="has no file that ends in"):
        corpora.read(shared_data / "vocab/cluecorpussmall_spm")
