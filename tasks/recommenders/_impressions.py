"""What was seen, and what was read of it: the two labels that DMTL learns from, out of a log of events.

An impression is the first event of a user with an item in a session; it was clicked, or it would not be in the log.
Whether it was read is known by one of two signs, both ours where a log has no reading time:

    event   a stronger event than a view followed in the session (like, cart, offer, purchase)
    dwell   seconds to the session's next event, at most the training's 99th percentile, above theta, their mean
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from tasks.settings import SettingsError

__all__ = ["READING", "impressions"]

READING = ("event", "dwell")
CAP = 0.99


def impressions(
    ingest: Path, unit: str, stronger: Sequence[str], reading: str, place: str
) -> tuple[pl.DataFrame, dict]:
    """The training impressions `user`, `item`, `time`, `reading` (0 or 1), by time; and how they were read.

    Args:
        unit: column of the items.
        stronger: events that are reading, for "event".
        reading: see the module's first lines.

    Raises:
        SettingsError: no such sign, or every impression, or none, was read.
    """
    if reading not in READING:
        raise SettingsError(f"{place}.reading is {reading!r}; it is {' or '.join(READING)}")
    log = pl.scan_parquet(ingest / "events" / "**" / "*.parquet", hive_partitioning=False)
    log = log.filter(pl.col("split") == "train", pl.col(unit).is_not_null())
    log = log.select(user="user_id", item=unit, time="stime", session="session", event="event_id").collect()
    log = log.sort("user", "session", "time", maintain_order=True)
    told: dict = {"reading": reading}
    if reading == "event":
        rows = log.group_by("user", "session", "item", maintain_order=True).agg(
            pl.col("time").first(), read=pl.col("event").is_in(list(stronger)).any()
        )
    else:
        next_at = pl.col("time").shift(-1).over("user", "session")
        log = log.with_columns(dwell=(next_at - pl.col("time")).dt.total_microseconds() / 1e6).drop_nulls("dwell")
        cap = log["dwell"].quantile(CAP, "linear")
        log = log.with_columns(pl.col("dwell").clip(upper_bound=cap))
        told |= {"cap_seconds": cap, "theta_seconds": log["dwell"].mean()}
        rows = log.group_by("user", "session", "item", maintain_order=True).agg(
            pl.col("time").first(), read=pl.col("dwell").max() > told["theta_seconds"]
        )
    read = int(rows["read"].sum())
    if not 0 < read < len(rows):
        raise SettingsError(f"{place}: {read} of {len(rows)} training impressions were read, by {reading}; a teacher "
                            f"needs both kinds: take the other sign, or a longer log")  # fmt: skip
    told["read_share"] = read / len(rows)
    chosen = rows.select("user", "item", "time", reading=pl.col("read").cast(pl.Float32))
    return chosen.sort("time", maintain_order=True), told
