"""Filters of texts: what each drops, by hand; every drop is counted; without filters nothing changes."""

from pathlib import Path

import polars as pl
import pytest

from tasks.datasets import corpora, instructions, parallel
from tasks.files import digest, read_json
from tasks.ingest import main
from tasks.ingest_text import TextRejected, ingest_text
from tasks.settings import SettingsError
from tasks.text_filters import Filters

ENGLISH = "I am selling my brown boots, which would be great for long walks in the hills."
GERMAN = "Ich verkaufe meine braunen Stiefel, die für lange Wanderungen in den Bergen gut sind."
CHINESE = "出售我的棕色靴子，这双皮靴很适合在山里长时间散步，商品几乎全新，没有任何磨损。"
JAPANESE = "茶色のブーツを売ります。この革のブーツは山での長い散歩にぴったりです。"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def documents(*texts: tuple[str, str]) -> pl.DataFrame:
    rows = [{"sentences": text.split("\n"), "language": said, "licence": "MIT", "source": "a"} for text, said in texts]
    return pl.DataFrame(rows, schema=corpora.SCHEMA)


def kept(sieve: Filters, frame: pl.DataFrame) -> list[str]:
    return ["\n".join(sentences) for sentences in sieve(frame)["sentences"]]


def test_a_text_in_another_language_is_dropped():
    sieve = Filters("documents", {"language": {"among": ["en", "de", "zh", "ja"]}})
    texts = documents(
        (ENGLISH, "en"), (GERMAN, "en"), (CHINESE, "zh"), (JAPANESE, "zh"), (JAPANESE, "ja"), ("42", "en")
    )
    assert kept(sieve, texts) == [ENGLISH, CHINESE, JAPANESE, "42"]
    assert sieve.dropped == {"language: en reads as de": 1, "language: zh reads as ja": 1}
    assert sieve.unjudged == 1  # no letters, no verdict
    assert sieve.report["examples"] == {
        "language: en reads as de": [GERMAN[:80]],
        "language: zh reads as ja": [JAPANESE],
    }


def test_or_gets_its_language():
    sieve = Filters("documents", {"language": {"among": ["en", "de"], "otherwise": "relabel"}})
    assert sieve(documents((GERMAN, "en"), (CHINESE, "zh")))["language"].to_list() == ["de", "zh"]
    assert sieve.relabelled == {"language: en reads as de": 1}
    assert (sieve.dropped, sieve.unjudged) == ({}, 1)  # no verdict on a language that it does not tell apart


def test_both_sides_of_a_pair_are_judged_and_an_instruction_but_not_its_answer():
    pair = dict.fromkeys(parallel.NAMES, "MIT") | {"source_language": "en", "target_language": "zh"}
    rows = [pair | {"source": ENGLISH, "target": CHINESE}, pair | {"source": ENGLISH, "target": JAPANESE}]
    sieve = Filters("pairs", {"language": {"among": ["en", "zh", "ja"]}})
    assert len(sieve(pl.DataFrame(rows, schema=parallel.SCHEMA))) == 1
    asked = {"instruction": ENGLISH, "input": "", "output": CHINESE, "language": "en", "licence": "MIT", "origin": "a"}
    sieve = Filters("instructions", {"language": {"among": ["en", "zh", "ja"]}})
    assert len(sieve(pl.DataFrame([asked], schema=instructions.SCHEMA))) == 1


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        (ENGLISH.replace("which would", "which with the rest would"), "en", None),  # stop words: be, with, the
        ("Boots. Great.", "en", "quality: gopher_short_doc"),  # 2 words
        ("to be the of and that", "en", "quality: gopher_below_avg_threshold"),  # 16 letters for 6 words: 2.7
        ("# # # " + ENGLISH, "en", "quality: gopher_too_many_hashes"),  # 3 for 20 words
        ("the boots with 1 2 3 4 5 6 7 88888888888888 99999999999", "en", "quality: gopher_below_alpha_threshold"),
        ("brown boots lovely leather great walks", "en", "quality: gopher_enough_stop_words"),
        (GERMAN, "de", None),  # stop words are English ones
        (CHINESE, "zh", None),  # and words of Chinese are shorter than three characters
        (JAPANESE, "ja", None),
        ("全新。", "zh", "quality: gopher_short_doc"),
        (" ", "en", "quality: no words"),
    ],
)
def test_gophers_rules_by_hand(text, language, reason):
    sieve = Filters("documents", {"quality": {"min_doc_words": 5}})
    assert len(sieve(documents((text, language)))) == (reason is None)
    assert list(sieve.dropped) == ([reason] if reason else [])


def test_repetition_by_hand():
    sieve = Filters("documents", {"repetition": {"top_n_grams": []}})
    once = "\n".join(["Buy now and save!"] * 2 + [ENGLISH, GERMAN, "A last line."])  # 1 line of 5 is there again
    assert kept(sieve, documents((ENGLISH, "en"), (once, "en"))) == [ENGLISH, once]
    assert not kept(sieve, documents(("\n".join(["Buy now and save!"] * 3 + [ENGLISH]), "en")))  # 2 of 4: 0.5 > 0.3
    assert sieve.dropped == {"repetition: dup_line_frac": 1}


def test_gophers_own_numbers_are_for_pages():
    # Any four words of a short text are more than 16 % of it: "I am selling my" are 15 of 78 characters.
    sieve = Filters("documents", {"repetition": {}})
    assert not kept(sieve, documents((ENGLISH, "en")))
    assert sieve.dropped == {"repetition: top_4_gram": 1}


def test_ingestion_without_filters_is_what_it_was_and_with_them_counts(capsys):
    texts = [(f"{ENGLISH} Number {n}.", "en") for n in range(60)] + [(f"{GERMAN} Nummer {n}.", "en") for n in range(6)]
    frame = documents(*texts)
    plain = ingest_text("documents", frame.lazy(), 100, "plain", heldout=0.2)
    clean = ingest_text("documents", frame[:60].lazy(), 100, "clean", heldout=0.2)
    asked = {"language": {"among": ["en", "de"]}}
    found = ingest_text("documents", frame.lazy(), 100, "found", heldout=0.2, filters=asked)
    assert "filters" not in plain
    assert found["digest"] == clean["digest"] != plain["digest"]
    assert digest("found/rows") == digest("clean/rows")
    assert (found["rows_in"], sum(found["rows"].values())) == (66, 60)
    assert found["filters"]["dropped"] == {"language: en reads as de": 6}
    assert len(found["filters"]["examples"]["language: en reads as de"]) == 3
    again = ingest_text("documents", frame.reverse().lazy(), 100, "again", heldout=0.2, filters=asked)
    assert again == found


def test_filters_are_a_setting_of_a_data_set(capsys):
    Path("raw").mkdir()
    Path("raw/a.txt").write_text("".join(f"{ENGLISH} {n}\n\n" for n in range(60)) + GERMAN + "\n")
    Path("raw/about.json").write_text('{"licence": "MIT"}')
    Path("params.yaml").write_text("datasets: {corpora: {source: raw, filters: {language: {among: [en, de]}}}}\n")
    main("params.yaml:datasets.corpora", "raw", "out")
    assert read_json("out/manifest.json")["filters"]["dropped"] == {"language: en reads as de": 1}
    assert "warning: corpora: dropped 1 texts (language: en reads as de)" in capsys.readouterr().err


def test_what_leaves_nothing_is_told():
    frame = documents(*[(f"{GERMAN} {n}", "en") for n in range(9)])
    with pytest.raises(TextRejected, match=r"9 rows leave train and heldout .* dropped 9 \(language: en reads as de\)"):
        ingest_text("documents", frame.lazy(), 9, "out", filters={"language": {"among": ["en", "de"]}})


@pytest.mark.parametrize(
    ("kind", "chosen", "words"),
    [
        ("examples", {"language": {}}, "filters are for documents, pairs, instructions; examples are kept"),
        ("documents", {"langage": {}}, "filters has no 'langage'; closest: language"),
        ("documents", {"language": {"least_sure": 1}}, "filters.language has no 'least_sure'"),
        ("documents", {"language": {"among": ["en"]}}, "two languages or more"),
        ("documents", {"language": {"among": ["en", "qq"]}}, "among has qq, which the detector does not know"),
        ("documents", {"language": {"otherwise": "keep"}}, "otherwise is 'keep'; it is drop or relabel"),
        ("documents", {"quality": {"min_words": 5}}, "filters.quality has no 'min_words'; closest: min_doc_words"),
    ],
)
def test_settings_are_checked_before_any_text(kind, chosen, words):
    with pytest.raises(SettingsError, match=words):
        Filters(kind, chosen)
