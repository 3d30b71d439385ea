"""Listings of the synthetic marketplace: the items of its log, saying the log's facts in every language."""

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tasks.datasets import corpora, parallel, sample
from tasks.datasets._sample_texts import WORDS, ItemTexts
from tasks.datasets.sample import SampleError, items
from tasks.fetch import fetch
from tasks.files import digest

SMALL = {"rows": 20_000, "seed": 3}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_items_are_those_of_the_log(folder):
    Path("log").mkdir()
    sample.fetch(Path("log"), Path(sample.__file__), **SMALL)
    log = sample.read(Path("log")).collect()
    made = items(2374, **SMALL)
    assert made["item_id"].n_unique() == 2374  # all of them
    shared = [name for name in made.columns if name in log.columns]
    seen = log.select(shared).unique("item_id").join(made.select("item_id"), on="item_id", how="semi").sort("item_id")
    assert len(seen) > 500
    assert_frame_equal(
        seen, made.select(shared).join(seen, on="item_id", how="semi").sort("item_id"), check_dtypes=False
    )


def test_leaves_come_as_they_are_listed():
    made = items(1200, **SMALL)["c0_name"].value_counts()
    share = dict(made.rows())
    assert share["Women"] / 1200 == pytest.approx(0.338, abs=0.03)
    assert len(share) == 12


def test_every_word_has_its_translations():
    world = sample._world()
    for kind, names in {"noun": [name.lower() for name in world.c2_name], "style": sample.STYLE_WORDS,
                        "detail": sample.DETAIL_WORDS.split(), "color": sample.COLORS}.items():  # fmt: skip
        assert set(names) == set(WORDS[kind])
        assert all(len(words) == 3 for words in WORDS[kind].values())
    for row in items(300, **SMALL).iter_rows(named=True):
        for language in ("en", "zh", "ja"):
            assert len(ItemTexts(row).description(language)) >= 5


def test_an_item_by_hand():
    row = {"name": "Famira vintage puzzles bundle like new", "style": "vintage", "noun": "puzzles", "detail": "bundle",
           "color": None, "size_name": "S", "brand_name": "Famira", "item_condition_name": "Like new", "price": 34.0,
           "c0_name": "Toys & Collectibles", "shipper_name": "Seller"}  # fmt: skip
    item = ItemTexts(row)
    assert item.title() == row["name"]
    assert item.title("zh") == "Famira复古拼图 打包 几乎全新"
    assert item.description() == [
        "I am selling vintage puzzles.", "The brand is Famira.", "The size is S.", "Condition: like new.",
        "More like it: Toys & Collectibles.", "The seller pays for shipping.", "I ask 34 dollars.",
    ]  # fmt: skip
    assert item.description("zh") == [
        "出售复古拼图。",
        "品牌是Famira。",
        "尺码是S。",
        "状态：几乎全新。",
        "同类商品：玩具与收藏。",
        "运费由卖家承担。",
        "价格是34美元。",
    ]
    assert ItemTexts(row | {"brand_name": None}).title("ja") == "ビンテージパズル まとめ売り 未使用に近い"


@pytest.mark.parametrize("name", ["corpora", "parallel"])
def test_texts_of_the_marketplace_pass_the_door(folder, name):
    count = {"corpora": {"documents": 300, "languages": {"en": 50, "zh": 50}}, "parallel": {"pairs": 300}}[name]
    profile = fetch(name, {"source": sample.__file__, **count}, "landing/one", "report")
    for out, seed in (("two", 7), ("three", 8)):
        Path("landing", out).mkdir()
        {"corpora": corpora, "parallel": parallel}[name].fetch(
            Path("landing", out), Path(sample.__file__), seed=seed, **count
        )
    assert profile["rows"] == 300 and not profile["warnings"]
    assert digest("landing/one") == digest("landing/two") != digest("landing/three")
    if name == "corpora":
        made = corpora.read(Path("landing/one")).collect()
        assert set(made["language"]) == {"en", "zh"}
        titles = set(items(300)["name"])
        assert set(made.filter(language="en")["sentences"].list.first()) <= titles
    else:
        made = parallel.read(Path("landing/one")).collect()
        assert made["source"].to_list()[::2] == items(150)["name"].to_list()


def test_more_listings_than_there_are():
    with pytest.raises(SampleError, match="100,000 listings are asked for, but a log of 20,000 rows lists 2,374"):
        items(100_000, **SMALL)
    assert isinstance(items(2, **SMALL), pl.DataFrame)
