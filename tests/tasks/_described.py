"""A log in which three groups of users like three categories of items, and items are new every day."""

from pathlib import Path

import numpy as np
import polars as pl
from ingested import seconds, write_ingest

from tasks.files import read_json, write_json

ENTRY = {
    "method": "towers/two_tower",
    "data": "log",
    "pairs": {"events": ["item_like"]},
    "fields": {"history": 6},
    "settings": {"embedding": 8, "widths": [16], "width": 8, "negatives": 16},
    "training": {"epochs": 4, "batch": 64, "lr": 5e-3},
}


def write_described(folder: Path, users: int = 45, days: int = 9, seed: int = 0) -> Path:
    """Each day 12 items are new, and gone the day after; a user views any of them and likes those of one category."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(users):
        for day in range(days):
            for step, place in enumerate(rng.permutation(24)[:8]):  # of today and yesterday
                item, time = 12 * max(day - 1, 0) + int(place), day * 86_400 + user * 600 + 20 * step
                rows.append((user * 10 + 7, f"{day}", "item_view", item, time))
                if item % 3 == user % 3:
                    rows.append((user * 10 + 7, f"{day}", "item_like", item, time + 10))
    user, session, event, item, time = zip(*rows, strict=True)
    item = np.array(item)
    frame = pl.DataFrame({"user_id": user, "session_id": session, "event_id": event, "item_id": item * 2 + 100})
    frame = frame.with_columns(
        seconds(time),
        c0_id=pl.Series(item % 3 + 1),
        brand_id=pl.Series(item % 5 + 1),
        price=pl.Series(3.0 + item % 7),
        name=pl.Series([f"{('red', 'green', 'blue')[i % 3]} thing no {i}" for i in item]),
    )
    write_ingest(folder, frame)
    mix = {name: {"rows": rows} for name, rows in frame["event_id"].value_counts().iter_rows()}
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | {"events": mix})
    return folder
