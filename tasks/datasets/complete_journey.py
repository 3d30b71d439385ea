"""Complete Journey: a year of grocery baskets, joined with the products' departments, sizes and makers.

Expects transactions*.parquet (household_id, store_id, basket_id, product_id, quantity, sales_value, retail_disc,
coupon_disc, transaction_timestamp) and products*.parquet (product_id, manufacturer_id, department, brand,
product_category, product_type, package_size). Every event is a bought line; its name says what made it cheaper:
nothing, the shop's own discount, or a coupon. `price` is what the shop received per piece, null for a quantity of 0.
Times have no zone and are read as UTC. From 84.51's study, via github.com/bradleyboehmke/completejourney.
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

EVENTS = ("buy", "buy_on_discount", "buy_with_coupon")
FEATURES = {  # none of what is known at the till only: discounts, quantity
    "categorical": [
        "user_id",
        "item_id",
        "c0_id",
        "c1_id",
        "c2_id",
        "brand_id",
        "manufacturer",
        "size_id",
        "hour",
        "weekday",
    ],
    "numerical": [
        "price",
        "session_position",
        "seconds_since_previous",
        "user_events_before",
        "user_buy_on_discount_before",
        "user_buy_with_coupon_before",
        "item_events_before",
        "seen_before",
    ],
    "history": {"c1_id": 3},
}


def read(raw: Path) -> pl.LazyFrame:
    """The lines in the event schema; a product that the product file lacks has no attributes."""
    paid = pl.scan_parquet(raw / "transactions*.parquet")
    products = pl.scan_parquet(raw / "products*.parquet")
    levels = pl.col("department"), pl.col("product_category"), pl.col("product_type")
    frame = paid.join(products, on="product_id", how="left").select(
        "quantity",
        user_id="household_id",
        session_id="basket_id",
        stime="transaction_timestamp",
        event_id=pl.when(pl.col("coupon_disc") > 0)
        .then(pl.lit("buy_with_coupon"))
        .when(pl.col("retail_disc") > 0)
        .then(pl.lit("buy_on_discount"))
        .otherwise(pl.lit("buy")),
        item_id="product_id",
        product_id="product_id",
        price=pl.when(pl.col("quantity") > 0).then(pl.col("sales_value") / pl.col("quantity")),
        **{f"c{k}_id": pl.concat_str(levels[: k + 1], separator="/") for k in range(3)},  # null where a part is
        **{f"c{k}_name": level for k, level in enumerate(levels)},
        brand_id="brand",
        brand_name="brand",
        manufacturer="manufacturer_id",
        size_id="package_size",
        size_name="package_size",
        store="store_id",
    )
    return conform(frame, own={"quantity": pl.Int64, "manufacturer": pl.String, "store": pl.String})


def expectations() -> list[Rule]:
    """A line per household, basket and product; products are known but for a few, and their categories form a tree."""
    return [
        *map(not_null, (*REQUIRED, "session_id", "store")),
        in_set("event_id", EVENTS),
        between("price", 0, 1000),
        between("quantity", 0, 1_000_000),
        null_rate("c0_id", 0, 0.02),
        implies("c1_id", "c0_id"),
        implies("c2_id", "c1_id"),
        one_name_per_id("session_id", "user_id"),
        distinct_key(("user_id", "session_id", "item_id"), most=0),
        at_most_per_user(5000),
    ]
