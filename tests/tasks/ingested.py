"""A tiny ingested dataset, written by hand, and a random one with the shape of a log."""

import json
from pathlib import Path

import numpy as np
import polars as pl

MONDAY = 1_682_899_200  # 2023-05-01 00:00 UTC, in seconds
EVENTS = ("item_view", "item_like", "item_add_to_cart_tap", "offer_make", "buy_start", "buy_comp")
SPLIT = pl.Enum(["train", "val", "test"])


def seconds(times) -> pl.Series:
    """Seconds after MONDAY as the log's time column."""
    return pl.Series("stime", [(MONDAY + t) * 1_000_000 for t in times]).cast(pl.Datetime("us", "UTC"))


def number(frame: pl.DataFrame) -> pl.DataFrame:
    """Add user, item, session and, where it is absent, split: thirds of the sorted rows."""
    frame = frame.with_columns(
        pl.col(name).rank("dense").cast(pl.UInt32).alias(name[:4]) for name in ("user_id", "item_id")
    )
    frame = frame.with_columns(pl.struct("user_id", "session_id").rank("dense").cast(pl.UInt32).alias("session"))
    if "split" not in frame.columns:
        third = (pl.col("stime").rank("ordinal") - 1) * 3 // pl.len()
        frame = frame.with_columns(split=third.replace_strict([0, 1, 2], ["train", "val", "test"]))
    return frame.with_columns(pl.col("split").cast(SPLIT)).sort("user", "stime", "item", "event_id")


def write_ingest(folder: Path, frame: pl.DataFrame, buckets: int = 2) -> Path:
    """Write events as the ingest stage does: users by bucket, sorted."""
    frame = number(frame)
    for bucket in range(buckets):
        part = frame.filter(pl.col("user") % buckets == bucket)
        (folder / f"events/bucket={bucket}").mkdir(parents=True)
        part.write_parquet(folder / f"events/bucket={bucket}/part.parquet")
    (folder / "manifest.json").write_text(json.dumps({"rows": len(frame)}))
    return folder


def random_log(events: int = 1500, users: int = 40, items: int = 120, seed: int = 0) -> pl.DataFrame:
    """Ten days; items appear over time, have a category of two levels, a brand (partly null) and a fixed price."""
    rng = np.random.default_rng(seed)
    born = rng.integers(0, 9 * 86_400, items) * (rng.random(items) < 0.5)
    c2 = rng.integers(0, 12, items)
    time = np.sort(rng.integers(0, 10 * 86_400, events))
    user = rng.integers(0, users, events)
    item = np.array([rng.choice(np.flatnonzero(born <= t)) for t in time])
    event = rng.choice(EVENTS, events, p=[0.7, 0.15, 0.05, 0.04, 0.03, 0.03])
    frame = pl.DataFrame({
        "user_id": user * 10 + 7,
        "session_id": pl.Series(time // 7200).cast(pl.String),
        "event_id": event,
        "item_id": item * 3 + 100,
        "price": np.round(np.exp(rng.normal(3, 1, items)), 2)[item],
        "c1_id": (c2 // 4)[item],
        "c2_id": c2[item],
        "brand_id": pl.Series(rng.integers(0, 6, items)[item]),
        "color": pl.Series(rng.integers(0, 3, items)[item]).cast(pl.String),
    })  # fmt: skip
    brand = pl.when(pl.col("brand_id") > 0).then("brand_id").alias("brand_id")
    return frame.with_columns(seconds(time), brand)
