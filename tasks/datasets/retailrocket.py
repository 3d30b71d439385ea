"""Retail Rocket: views, carts and buys of one shop over 137 days; no sessions and no item attributes.

Expects events*.parquet with user, item, behaviour (view, cart, buy) and ts, the Unix second of that behaviour: the
cut that github.com/HKUDS/SSLRec made of the public log, one row per user, item and behaviour. Its other file, the
held-out buys without a time, is not read. One user has 4,961 rows where the median has 9: likely a bot, which the
report names.
"""

from pathlib import Path

import polars as pl

from tasks.datasets._rules import Rule, at_most_per_user, distinct_key, in_set, not_null
from tasks.datasets._schema import REQUIRED, conform

__all__ = ["EVENTS", "FEATURES", "expectations", "read"]

NAMES = {"view": "item_view", "cart": "item_add_to_cart_tap", "buy": "buy_comp"}
EVENTS = tuple(NAMES.values())
FEATURES = {
    "categorical": ["user_id", "item_id", "hour", "weekday"],
    "numerical": [
        "session_position",
        "seconds_since_previous",
        "user_events_before",
        "user_item_add_to_cart_tap_before",
        "user_buy_comp_before",
        "item_events_before",
        "seen_before",
    ],
    "history": {"item_id": 3},
}


def read(raw: Path) -> pl.LazyFrame:
    """The log in the event schema; a behaviour of another name stays, for the rules to find."""
    return conform(
        pl.scan_parquet(raw / "events*.parquet").select(
            user_id="user",
            item_id="item",
            event_id=pl.col("behaviour").replace(NAMES),
            stime=pl.from_epoch("ts", time_unit="s"),
        )
    )


def expectations() -> list[Rule]:
    """One row per user, item and behaviour; no users like machines."""
    return [
        *map(not_null, REQUIRED),
        in_set("event_id", EVENTS),
        distinct_key(("user_id", "item_id", "event_id"), most=0),
        at_most_per_user(1000),
    ]
