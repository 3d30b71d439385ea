"""A shop's own table of products becomes a catalogue."""

import polars as pl
import pytest

from tasks.authoring._catalogue import read_catalogue
from tasks.datasets import catalogue
from tasks.datasets._text import TextUnreadable


def ingested(raw, folder):
    rows = catalogue.read(raw).collect()
    (folder / "rows").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        rows.filter(pl.col("split") == split).write_parquet(folder / "rows" / f"{split}.parquet")
    return rows


def test_a_table_s_facts_are_the_products_facts(tmp_path):
    (tmp_path / "raw").mkdir()
    table = pl.DataFrame({"title": ["Albora boots", "", "a lamp"], "category": ["shoes > boots", "home", "home"],
                          "brand": ["Albora", None, None], "price": ["45", None, "9"], "stock": [1, 2, 3]})  # fmt: skip
    table.write_csv(tmp_path / "shop.csv")
    catalogue.fetch(tmp_path / "raw", tmp_path / "shop.csv", licence="ours")
    rows = ingested(tmp_path / "raw", tmp_path / "in")
    assert rows["text"].to_list() == ["Albora boots", "a lamp"]
    assert rows["second"].to_list() == ["brand: Albora\nprice: 45", "price: 9"]
    assert rows["licence"].unique().to_list() == ["ours"]
    boots = next(one for one in read_catalogue(tmp_path / "in") if one.category == ("shoes", "boots"))
    assert boots.facts["brand"] == "Albora"


def test_made_up_products_speak_two_languages(tmp_path):
    catalogue.fetch(tmp_path, catalogue.__file__, rows=40)
    rows = ingested(tmp_path, tmp_path / "in")
    products = read_catalogue(tmp_path / "in")
    assert len(products) == len(rows) == 40
    assert {one.language for one in products} == {"en", "zh"}


def test_a_table_without_a_title_is_named(tmp_path):
    pl.DataFrame({"name": ["x"], "category": ["y"]}).write_parquet(tmp_path / "shop.parquet")
    with pytest.raises(TextUnreadable, match="no column title; it has name, category"):
        catalogue.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no table and holds none"):
        catalogue.fetch(tmp_path / "out", tmp_path / "nowhere")
