from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest

from tasks.datasets._schema import COLUMNS, IDS, REQUIRED, SchemaError, conform

NOON = datetime(2023, 5, 1, 12, tzinfo=UTC)


def events(**columns):
    return pl.LazyFrame({"stime": [NOON], "user_id": [1], "event_id": ["item_view"], "item_id": [2], **columns})


def test_order_and_types_are_the_schemas():
    frame = conform(events(price=[3], brand_id=[None], unknown=["dropped"])).collect()
    assert frame.schema == pl.Schema(
        {name: COLUMNS[name] for name in ("user_id", "stime", "event_id", "item_id", "price", "brand_id")}
    )
    assert frame.row(0) == (1, NOON, "item_view", 2, 3.0, None)


def test_ids_may_be_strings_and_dictionaries_become_strings():
    frame = events(c2_id=["a"]).with_columns(pl.col("event_id").cast(pl.Categorical), pl.col("user_id").cast(pl.UInt16))
    schema = conform(frame).collect_schema()
    assert (schema["c2_id"], schema["event_id"], schema["user_id"]) == (pl.String, pl.String, pl.Int64)
    assert {"user_id", "size_id"} <= set(IDS)
    assert not {"event_id", "session_id"} & set(IDS)


@pytest.mark.parametrize(
    "stime",
    [
        pl.Series([NOON.replace(tzinfo=None)], dtype=pl.Datetime("ms")),
        pl.Series([NOON.astimezone(timezone(timedelta(hours=9)))]).dt.convert_time_zone("Asia/Tokyo"),
        pl.Series([NOON], dtype=pl.Datetime("ns", "UTC")),
    ],
)
def test_every_kind_of_time_becomes_microseconds_in_utc(stime):
    frame = conform(events().with_columns(stime=stime)).collect()
    assert frame.schema["stime"] == pl.Datetime("us", "UTC")
    assert frame["stime"][0] == NOON


def test_own_columns_come_last():
    frame = conform(events(age=[30], price=[1.0]), own={"age": pl.Float64})
    assert frame.collect_schema().names()[-2:] == ["price", "age"]
    assert frame.collect()["age"].to_list() == [30.0]


def test_all_faults_are_named_at_once():
    frame = events(price=["dear"], color=[7], age=["old"]).drop("user_id").with_columns(stime=pl.lit(5))
    with pytest.raises(SchemaError) as error:
        conform(frame, own={"age": pl.Int64, "city": pl.String, "brand_id": pl.Int64})
    faults = str(error.value).split("\n  ")[1:]
    assert sorted(fault.split(":")[0] for fault in faults) == sorted(
        ["user_id", "city", "brand_id", "brand_id", "stime", "price", "color", "age"]
    )
    assert "stime: is Int32, must be Datetime(time_unit='us', time_zone='UTC')" in faults


@pytest.mark.parametrize("name", REQUIRED)
def test_each_required_column_is_missed(name):
    with pytest.raises(SchemaError, match=f"{name}: missing"):
        conform(events().drop(name))


def test_numbers_are_not_guessed_from_floats():
    with pytest.raises(SchemaError, match="item_id: is Float64, must be Int64 or String"):
        conform(events().with_columns(item_id=pl.lit(1.5)))
