"""A log in which three groups of users like three groups of items, and a recommender entry for it."""

from pathlib import Path

import mlflow
import numpy as np
import polars as pl
from ingested import seconds, write_ingest

from tasks import track
from tasks.files import read_json, write_json
from tasks.recommender import load

GATES = {
    "default": {
        "ceilings": {"size_mb": 5},
        "above": {"popularity": {"metric": "recall@10", "margin": 0.0, "confidence": 0.9}},
        "improvement": {"metric": "recall@10", "margin": -0.05, "confidence": 0.9},
    }
}


def entries(**more) -> dict:
    """One recommender that needs no training steps, and whatever is given."""
    weak = {"width": 8, "alpha": 10.0, "regularization": 0.1}  # sixty users: the defaults are for real logs
    return {"similar": {"method": "retrieval/als", "data": "log", "settings": weak}} | more


def write_log(folder: Path, users: int = 60, items: int = 45, days: int = 9, seed: int = 0) -> Path:
    """Views of anything, likes of the own group's items; sessions of one group's items in a fixed order."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(users):
        group = user % 3
        for day in range(days):
            start = int(rng.integers(0, items // 3))
            for step in range(3):
                item = group + 3 * ((start + step) % (items // 3))
                kind = "item_like" if step else "item_view"
                rows.append((user * 10 + 7, f"{day}", kind, item * 2 + 100, day * 86_400 + user * 60 + step))
    user, session, event, item, time = zip(*rows, strict=True)
    frame = pl.DataFrame({"user_id": user, "session_id": session, "event_id": event, "item_id": item})
    frame = frame.with_columns(seconds(time), product_id=pl.format("p{}", "item_id"))
    write_ingest(folder, frame)
    counts = frame["event_id"].value_counts()
    mix = {name: {"rows": rows} for name, rows in counts.iter_rows()}
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | {"events": mix})
    return folder


def answer(uri: str, rows: pl.DataFrame) -> tuple[pl.DataFrame, dict]:
    """What `fresh.score` answers, in this process and so without the seconds that a fresh one takes."""
    folder = Path(mlflow.artifacts.download_artifacts(track.resolve(uri).uri))
    return pl.from_pandas(load(folder, "artifacts/bundle").predict(None, rows.to_pandas())), {"row_ms": 1.0}
