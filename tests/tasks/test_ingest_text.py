"""Ingested texts: no duplicate, the same bytes in any order, a fixed share held out; splits of examples keep apart."""

import json
from pathlib import Path

import polars as pl
import pytest

from tasks.datasets import corpora, instructions
from tasks.files import digest, read_json
from tasks.ingest import main
from tasks.ingest_text import TextRejected, batches, ingest_text, sentences
from tasks.settings import SettingsError
from tests.tasks._memory import peak


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(count: int = 400, first: int = 0) -> pl.DataFrame:
    numbers = range(first, first + count)
    rows = [{"sentences": [f"Text {n}.", "More."], "language": "en", "licence": "MIT", "source": "a"} for n in numbers]
    return pl.DataFrame(rows, schema=corpora.SCHEMA)


def split(out: str, name: str) -> list[str]:
    return [row[0] for frame in batches(out, name) for row in frame["sentences"].to_list()]


def test_every_text_is_in_one_split_once_and_stays_there():
    manifest = ingest_text("documents", texts().lazy(), 1000, "a", heldout=0.1)
    train, held = split("a", "train"), split("a", "heldout")
    assert sorted(train + held) == sorted(f"Text {n}." for n in range(400))
    assert 20 <= len(held) <= 60  # 40, give or take three standard deviations of 6
    assert manifest["rows"] == {"train": len(train), "heldout": len(held)}
    ingest_text("documents", texts(800).lazy(), 1000, "b", heldout=0.1)
    assert set(held) <= set(split("b", "heldout"))
    assert set(train) <= set(split("b", "train"))


def test_same_bytes_for_any_order_of_rows_and_any_number_of_buckets():
    twice = pl.concat([texts(), texts(50)])
    first = ingest_text("documents", twice.lazy(), 1000, "a")
    ingest_text("documents", twice.sample(fraction=1, shuffle=True, seed=3).lazy(), 1000, "b")
    many = ingest_text("documents", twice.reverse().lazy(), 500_000_000, "c")
    assert first["rows_in"] == 450
    assert first["duplicates_removed"] == 50
    assert digest("a") == digest("b")
    assert split("a", "train") == split("c", "train")
    assert {**first, "digest": ""} == {**many, "digest": ""}


def test_equal_texts_of_two_sources_leave_the_same_one():
    other = texts(100).with_columns(source=pl.lit("b"), licence=pl.lit("Apache-2.0"))
    one = ingest_text("documents", pl.concat([texts(100), other]).lazy(), 1000, "a")
    two = ingest_text("documents", pl.concat([other, texts(100)]).lazy(), 1000, "b")
    assert one["licences"] == two["licences"]
    assert sum(one["licences"].values()) == 100


def examples(*rows: tuple[str, str | None, str, str]) -> pl.LazyFrame:
    return (
        pl.DataFrame(rows, schema=["text", "second", "label", "split"], orient="row")
        .with_columns(choices=pl.lit(None, pl.List(pl.String)), licence=pl.lit("MIT"))
        .lazy()
    )


def test_examples_keep_their_splits_and_no_text_of_a_later_one():
    rows = examples(
        ("a", None, "0", "train"),
        ("a", None, "0", "train"),  # a duplicate
        ("a", None, "1", "train"),  # the same text with another answer is not one
        ("b", None, "1", "train"),
        ("b", None, "1", "dev"),
        ("b", "c", "1", "train"),  # another pair
        ("d", None, "0", "dev"),
        ("d", None, "0", "test"),
    )
    manifest = ingest_text("examples", rows, 1000, "a")
    assert manifest["rows"] == {"train": 3, "dev": 1, "test": 1}
    assert manifest["duplicates_removed"] == 1
    assert manifest["overlaps_removed"] == 2
    train = pl.read_parquet("a/rows/train.parquet")
    assert sorted(train.select("text", "second", "label").rows(), key=str) == [
        ("a", None, "0"),
        ("a", None, "1"),
        ("b", "c", "1"),
    ]
    assert sorted(sentences("a", "train")) == ["a", "a", "b", "c"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [(texts(0), "0 rows leave train and heldout"), (texts(1), "1 rows leave"), (texts(3), "3 rows leave heldout")],
)
def test_too_few_texts_are_refused(rows, words):
    with pytest.raises(TextRejected, match=words):
        ingest_text("documents", rows.lazy(), 10, "a", heldout=0.01)
    assert not Path("a").exists()


@pytest.mark.parametrize("heldout", [0, 1, 1.5, True, "much"])
def test_a_share_is_a_share(heldout):
    with pytest.raises(SettingsError, match="heldout is"):
        ingest_text("documents", texts().lazy(), 10, "a", heldout=heldout)


def test_unknown_kind_is_named():
    with pytest.raises(SettingsError, match="KIND is 'songs'; it is one of documents, pairs, instructions, examples"):
        ingest_text("songs", texts().lazy(), 10, "a")


def test_command_takes_texts_too(capsys):
    Path("params.yaml").write_text(f"datasets: {{instructions: {{source: {instructions.__file__}, heldout: 0.2}}}}\n")
    Path("raw").mkdir()
    lines = [{"instruction": f"Do {n}.", "output": "done", "licence": "MIT"} for n in range(50)]
    Path("raw/a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main("params.yaml:datasets.instructions", "raw", "out")
    assert "50 instructions (train" in capsys.readouterr().out
    assert read_json("out/manifest.json")["settings"] == {"heldout": 0.2}
    assert list(sentences("out", "train"))[0].startswith("Do ")


INGEST = """
import sys
import polars as pl
from polars.io.plugins import register_io_source
import tasks.ingest_text as module
rows, module.SPILL_BYTES = int(sys.argv[1]), 500_000
text = "The boots from the shop are new. " * 40
frame = lambda first: pl.DataFrame({"sentences": [[f"{n} {text}"] for n in range(first, first + 100)]})
made = register_io_source(lambda *_: map(frame, range(0, rows, 100)), schema={"sentences": pl.List(pl.String)})
module.ingest_text("documents", made, 16 * module.BUCKET_BYTES, sys.argv[2])
"""


def test_memory_does_not_grow_with_the_texts():
    """Six times the rows, 33 MB more of text: a process that kept them would need as much more, and again as much."""
    small, large = peak(INGEST, 5000, "small"), peak(INGEST, 30_000, "large")
    assert sum(read_json("large/manifest.json")["rows"].values()) == 30_000
    assert large < small + 20
