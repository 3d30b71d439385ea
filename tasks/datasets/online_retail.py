"""UCI Online Retail: a year of invoices of a gift shop; buys and cancellations with product names and prices.

Expects *.parquet with InvoiceNo, StockCode, Description, Quantity, InvoiceDate, UnitPrice, CustomerID, Country. An
invoice is a session; its number starts with C when it cancels, and its quantities are then negative. A quarter of the
lines has no customer: without one there is no history to learn from, so they are left out and counted. Times have no
zone and are read as UTC. Licence CC BY 4.0 (UCI).
"""

from pathlib import Path

import polars as pl

from tasks.datasets._rules import Rule, at_most_per_user, between, distinct_key, in_set, never, not_null
from tasks.datasets._schema import REQUIRED, conform

__all__ = ["EVENTS", "FEATURES", "expectations", "left_out", "read"]

EVENTS = ("buy_comp", "cancellation")
FEATURES = {
    "categorical": ["user_id", "item_id", "country", "hour", "weekday"],
    "numerical": [
        "price",
        "session_position",
        "seconds_since_previous",
        "user_events_before",
        "user_cancellation_before",
        "item_events_before",
        "seen_before",
    ],
    "history": {"item_id": 3},
}


def read(raw: Path) -> pl.LazyFrame:
    """The lines with a customer in the event schema; `quantity`, in pieces, is negative where they were taken back."""
    cancelled = pl.col("InvoiceNo").str.starts_with("C")
    frame = (
        pl.scan_parquet(raw / "*.parquet")
        .filter(pl.col("CustomerID").is_not_null())
        .select(
            user_id="CustomerID",
            session_id="InvoiceNo",
            stime="InvoiceDate",
            event_id=pl.when(cancelled).then(pl.lit("cancellation")).otherwise(pl.lit("buy_comp")),
            item_id="StockCode",
            product_id="StockCode",
            name="Description",
            price="UnitPrice",
            quantity="Quantity",
            country="Country",
        )
    )
    return conform(frame, own={"quantity": pl.Int64, "country": pl.String})


def left_out(raw: Path) -> dict[str, int]:
    """What read() leaves out."""
    missing = pl.scan_parquet(raw / "*.parquet").select(pl.col("CustomerID").is_null().sum())
    return {"lines without a customer": missing.collect(engine="streaming").item()}


def expectations() -> list[Rule]:
    """The sign of a quantity says what its invoice says. A product may stand on an invoice several times."""
    buys, signed = pl.col("event_id") == "buy_comp", pl.col("quantity") > 0
    return [
        *map(not_null, (*REQUIRED, "session_id", "price", "quantity")),
        in_set("event_id", EVENTS),
        between("price", 0, 50_000),
        never("sign of quantity", "a buy has quantity > 0, a cancellation < 0", buys != signed, "event_id", "quantity"),
        distinct_key(("user_id", "session_id", "item_id", "event_id", "stime"), most=0.05),
        at_most_per_user(5000),
    ]
