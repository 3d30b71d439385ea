"""Readers of real logs: worked by hand on a few rows; the published counts where the logs are beside the checkout."""

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from tasks.datasets import census_income_kdd, complete_journey, online_retail, rees46_oct2019, retailrocket
from tasks.datasets._schema import COLUMNS, REQUIRED
from tasks.validate import DataRejected, validate

MODULES = {
    "retailrocket": retailrocket,
    "rees46_oct2019": rees46_oct2019,
    "online_retail": online_retail,
    "complete_journey": complete_journey,
    "census_income_kdd": census_income_kdd,
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def raw_retailrocket(folder: Path) -> None:
    pl.DataFrame(
        {
            "user": [3, 3, 0],
            "item": [8, 8, 0],
            "behaviour": ["view", "buy", "cart"],
            "ts": [1430600000, 1430600060, 1442500000],
        },
        schema={"user": pl.Int32, "item": pl.Int32, "behaviour": pl.String, "ts": pl.Int64},
    ).write_parquet(folder / "events.parquet")
    pl.DataFrame({"user": [3], "item": [9]}).write_parquet(folder / "test.parquet")


def raw_rees46_oct2019(folder: Path) -> None:
    times = [datetime(2019, 10, 1, 0, 0, s, tzinfo=UTC) for s in range(4)]
    pl.DataFrame(
        {
            "event_time": times,
            "event_type": ["view", "cart", "purchase", "view"],
            "product_id": [1, 1, 1, 2],
            "category_id": [20, 20, 20, 21],
            "category_code": ["a.b.c.d", "a.b.c.d", "a.b", None],
            "brand": ["lenovo", "lenovo", None, None],
            "price": [2.5, 2.5, 2.5, 0.0],
            "user_id": [7, 7, 7, 8],
            "user_session": ["s", "s", "s", "t"],
        },
        schema_overrides={"event_time": pl.Datetime("us", "UTC")},
    ).write_parquet(folder / "part.parquet")


def raw_online_retail(folder: Path) -> None:
    pl.DataFrame(
        {
            "InvoiceNo": ["536365", "C536379", "536380"],
            "StockCode": ["85123A", "D", "85123A"],
            "Description": ["WHITE HANGING HEART", "Discount", None],
            "Quantity": [6, -1, 2],
            "InvoiceDate": [datetime(2010, 12, 1, 8, 26), datetime(2010, 12, 1, 9, 41), datetime(2010, 12, 1, 10)],
            "UnitPrice": [2.55, 27.5, 0.0],
            "CustomerID": [17850, 14527, None],
            "Country": ["United Kingdom", "United Kingdom", "France"],
        },
        schema_overrides={"Quantity": pl.Int32, "CustomerID": pl.Int32},
    ).write_parquet(folder / "transactions.parquet")


def raw_complete_journey(folder: Path) -> None:
    bought = datetime(2017, 1, 28, 19, 6, 53)
    pl.DataFrame(
        {
            "household_id": ["2261"] * 4,
            "store_id": ["309"] * 4,
            "basket_id": ["31625220889"] * 4,
            "product_id": ["1", "2", "3", "4"],
            "quantity": pl.Series([2, 1, 1, 0], dtype=pl.Int32),
            "sales_value": [3.0, 1.5, 1.0, 0.0],
            "retail_disc": [0.0, 0.4, 0.4, 0.0],
            "coupon_disc": [0.0, 0.0, 1.0, 0.0],
            "transaction_timestamp": [bought] * 4,
        }
    ).write_parquet(folder / "transactions_sample.parquet")
    pl.DataFrame(
        {
            "product_id": ["1", "2", "3"],
            "manufacturer_id": ["69", "69", "2"],
            "department": ["GROCERY", "PASTRY", "GROCERY"],
            "brand": ["Private", "Private", "National"],
            "product_category": ["BREAD", "BREAD", None],
            "product_type": ["RYE", None, None],
            "package_size": ["50 OZ", None, None],
        }
    ).write_parquet(folder / "products.parquet")


def raw_census_income_kdd(folder: Path) -> None:
    words = {name: ["?", "Not in universe", "x"] for name in census_income_kdd.WORDS}
    numbers = {name: [40, 41, 42] for name in (*census_income_kdd.NUMBERS, *census_income_kdd.CODES)}
    pl.DataFrame(
        {
            **words,
            **numbers,
            "year": [94, 95, 94],
            "education": ["Children", "10th grade", "Children"],
            "marital_stat": ["Never married", "Divorced", "Widowed"],
            "instance_weight": [1.0, 2.0, 3.0],
            "income_50k": ["- 50000.", "50000+.", "- 50000."],
        }
    ).write_parquet(folder / "part.parquet")


MAKERS = {name: globals()[f"raw_{name}"] for name in MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_every_reader_keeps_the_schema(name, folder):
    MAKERS[name](folder)
    events = MODULES[name].read(folder).collect()
    assert all(events[column].null_count() == 0 for column in REQUIRED)
    assert events["stime"].dtype == pl.Datetime("us", "UTC")
    assert set(events["event_id"]) <= set(MODULES[name].EVENTS)
    features = MODULES[name].FEATURES
    declared = {*features["categorical"], *features["numerical"], *features["history"]}
    assert declared & set(events.columns)
    assert not {"event_id", "sampled", "split"} & declared
    own = [column for column in events.columns if column not in COLUMNS]
    assert all(column.islower() for column in own)


def test_retailrocket_by_hand(folder):
    raw_retailrocket(folder)
    events = retailrocket.read(folder).collect()
    assert events["event_id"].to_list() == ["item_view", "buy_comp", "item_add_to_cart_tap"]
    assert events["stime"][0] == datetime(2015, 5, 2, 20, 53, 20, tzinfo=UTC)  # 1430600000
    assert events["user_id"].to_list() == [3, 3, 0]
    assert events["user_id"].dtype == pl.Int64
    assert "session_id" not in events.columns  # cut by idle time at ingestion


def test_rees46_by_hand(folder):
    raw_rees46_oct2019(folder)
    events = rees46_oct2019.read(folder).collect()
    assert events["event_id"].to_list() == ["item_view", "item_add_to_cart_tap", "buy_comp", "item_view"]
    assert events["c0_id"].to_list() == ["a", "a", "a", None]
    assert events["c1_id"].to_list() == ["a.b", "a.b", "a.b", None]
    assert events["c2_id"].to_list() == ["a.b.c.d", "a.b.c.d", None, None]
    assert events["c2_name"].to_list() == ["c.d", "c.d", None, None]
    assert events["sequence_id"].to_list() == ["2019-10-01"] * 4
    assert events["category_id"].to_list() == [20, 20, 20, 21]


def test_online_retail_by_hand(folder):
    raw_online_retail(folder)
    events = online_retail.read(folder).collect()
    assert events["event_id"].to_list() == ["buy_comp", "cancellation"]  # the line without a customer is left out
    assert online_retail.left_out(folder) == {"lines without a customer": 1}
    assert events["quantity"].to_list() == [6, -1]
    assert events["session_id"].to_list() == ["536365", "C536379"]
    assert events["stime"][0] == datetime(2010, 12, 1, 8, 26, tzinfo=UTC)
    turned = online_retail.read(folder).with_columns(-pl.col("quantity"))
    with pytest.raises(DataRejected, match="a cancellation < 0: 2 broken"):
        validate(turned, online_retail.expectations())


def test_complete_journey_by_hand(folder):
    raw_complete_journey(folder)
    events = complete_journey.read(folder).sort("item_id").collect()
    assert events["event_id"].to_list() == ["buy", "buy_on_discount", "buy_with_coupon", "buy"]
    assert events["price"].to_list() == [1.5, 1.5, 1.0, None]  # per piece; none for a quantity of 0
    assert events["c1_id"].to_list() == ["GROCERY/BREAD", "PASTRY/BREAD", None, None]
    assert events["c2_id"].to_list() == ["GROCERY/BREAD/RYE", None, None, None]
    assert events["brand_id"].to_list() == ["Private", "Private", "National", None]  # product 4 is unknown


def test_census_by_hand(folder):
    raw_census_income_kdd(folder)
    people = census_income_kdd.read(folder).collect()
    assert people["user_id"].to_list() == [1, 2, 3]
    assert people["income_50k"].to_list() == [0, 1, 0]
    assert people["never_married"].to_list() == [1, 0, 0]
    assert people["education"].to_list() == ["Children", "10th grade", "Children"]
    assert people["race"].to_list() == [None, "Not in universe", "x"]  # "?" is missing
    milliseconds = [1_327_217_885, 506_952_123, 1_834_170_008]  # k * step mod (2^31 - 1), k = 1, 2, 3
    start = datetime(2000, 1, 1, tzinfo=UTC)
    assert [round((t - start).total_seconds() * 1000) for t in people["stime"]] == milliseconds
    features = {*census_income_kdd.FEATURES["categorical"], *census_income_kdd.FEATURES["numerical"]}
    assert not features & {"education", "marital_stat", "instance_weight", "income_50k", "never_married", "user_id"}


def test_census_order_is_an_even_draw(folder):
    raw_census_income_kdd(folder)
    pl.concat([pl.read_parquet(folder / "part.parquet")] * 1000).write_parquet(folder / "part.parquet")
    people = census_income_kdd.read(folder).collect().sort("stime")
    assert people["stime"].is_unique().all()
    last = people.tail(300)["user_id"].sort()  # a tenth
    assert last.diff().drop_nulls().max() <= 16  # from all over the file: no stretch of it is left out


COUNTS = {  # published with the logs
    "retailrocket": ("recsys/retailrocket", {"item_view": 75374, "item_add_to_cart_tap": 12456, "buy_comp": 9551}),
    "rees46_oct2019": ("recsys/rees46_oct2019", {"item_view": 17055, "item_add_to_cart_tap": 165, "buy_comp": 214}),
    "online_retail": ("recsys/online_retail", {"buy_comp": 397924, "cancellation": 8905}),
    "complete_journey": ("recsys/complete_journey", {"buy": 36901, "buy_on_discount": 36964, "buy_with_coupon": 1135}),
    "census_income_kdd": ("multitask/census_income_kdd", {"row": 99762}),
}


@pytest.mark.parametrize("name", MODULES)
def test_real_log_has_its_published_counts_and_keeps_the_rules(name, shared_data, folder):
    if shared_data is None:  # then the small one of its kind, with the same rules but for those about a whole log
        MAKERS[name](folder)
        rules = [rule for rule in MODULES[name].expectations() if rule.counts_violations]
        assert not validate(MODULES[name].read(folder), rules, name=name)["not_applicable"]
        return
    place, counts = COUNTS[name]
    events, module = MODULES[name].read(shared_data / place), MODULES[name]
    found = dict(events.group_by("event_id").len().collect().iter_rows())
    assert found == counts
    profile = validate(events, module.expectations(), name=name)
    assert profile["rows"] == sum(counts.values())
    assert not profile["not_applicable"]


def test_real_facts(shared_data, folder):
    """What the logs' descriptions say beyond counts; the self-made ones stand in for absent logs above."""
    if shared_data is None:
        raw_retailrocket(folder)
        assert retailrocket.read(folder).select(pl.col("stime").max()).collect().item().year == 2015
        return
    log = retailrocket.read(shared_data / "recsys/retailrocket")
    profile = validate(log, retailrocket.expectations())
    assert "user_id=326 rows=4961" in profile["warnings"][0]  # the likely bot
    days = log.select(first=pl.col("stime").min().dt.date(), last=pl.col("stime").max().dt.date()).collect().row(0)
    assert days == (date(2015, 5, 3), date(2015, 9, 18))
    shop = rees46_oct2019.read(shared_data / "recsys/rees46_oct2019").collect()
    assert (shop["c0_id"].null_count(), shop["brand_id"].null_count()) == (5746, 2477)
    assert (shop["user_id"].n_unique(), shop["item_id"].n_unique(), shop["session_id"].n_unique()) == (4504, 6493, 5066)
    assert online_retail.left_out(shared_data / "recsys/online_retail") == {"lines without a customer": 135080}
    people = census_income_kdd.read(shared_data / "multitask/census_income_kdd")
    labels = people.select(pl.col("income_50k").sum(), pl.col("never_married").sum()).collect().row(0)
    assert labels == (6186, 43143)
