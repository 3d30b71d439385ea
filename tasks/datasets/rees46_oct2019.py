"""REES46: shop events of October 2019 with sessions, a dotted category path, brand and price.

Expects *.parquet with event_time, event_type (view, cart, purchase), product_id, category_id, category_code, brand,
price, user_id, user_session. A category's id at each level is its path so far, because the same word occurs under
several parents; category_id, the shop's own leaf, is there for every row and stays a column. A sequence is one user's
day. Offered by REES46 for use with attribution.
"""

from pathlib import Path

import polars as pl

from tasks.datasets._rules import (
    Rule,
    at_most_per_user,
    between,
    distinct_key,
    implies,
    in_set,
    not_null,
    null_rate,
    one_name_per_id,
)
from tasks.datasets._schema import REQUIRED, conform

__all__ = ["EVENTS", "FEATURES", "expectations", "read"]

NAMES = {"view": "item_view", "cart": "item_add_to_cart_tap", "purchase": "buy_comp"}
EVENTS = tuple(NAMES.values())
FEATURES = {
    "categorical": ["user_id", "category_id", "c0_id", "c1_id", "c2_id", "brand_id", "hour", "weekday"],
    "numerical": [
        "price",
        "session_position",
        "seconds_since_previous",
        "user_events_before",
        "user_item_add_to_cart_tap_before",
        "item_events_before",
        "seen_before",
    ],
    "history": {"category_id": 3},
}


def read(raw: Path) -> pl.LazyFrame:
    """The log in the event schema; an event of another name stays, for the rules to find."""
    levels = pl.col("category_code").str.splitn(".", 3)  # what is deeper stays in the third
    c0, c1, c2 = (levels.struct.field(f"field_{k}") for k in range(3))
    frame = pl.scan_parquet(raw / "*.parquet").select(
        "user_id",
        "price",
        "category_id",
        c0_id=c0,
        c0_name=c0,
        c1_id=pl.concat_str(c0, c1, separator="."),  # null where a part is
        c1_name=c1,
        c2_id=pl.concat_str(c0, c1, c2, separator="."),
        c2_name=c2,
        item_id="product_id",
        product_id=pl.col("product_id").cast(pl.String),
        session_id="user_session",
        sequence_id=pl.col("event_time").dt.strftime("%Y-%m-%d"),
        stime="event_time",
        event_id=pl.col("event_type").replace(NAMES),
        brand_id="brand",
        brand_name="brand",
    )
    return conform(frame, own={"category_id": pl.Int64})


def expectations() -> list[Rule]:
    """The categories form a tree; brand and category are missing as often as in the first hours of the month."""
    return [
        *map(not_null, (*REQUIRED, "session_id", "category_id")),
        in_set("event_id", EVENTS),
        between("price", 0, 100_000),
        implies("c1_id", "c0_id"),
        implies("c2_id", "c1_id"),
        one_name_per_id("category_id", "c1_id"),
        null_rate("c0_id", 0.33, 0.1),
        null_rate("brand_id", 0.14, 0.1),
        distinct_key(("user_id", "session_id", "item_id", "event_id", "stime")),
        at_most_per_user(5000),
    ]
