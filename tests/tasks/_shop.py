"""A very small shop, from ingested events to a backbone and a head: what gate, promotion and serving judge."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import polars as pl

from tasks import bundle, track
from tasks.features import make_features
from tasks.files import digest, write_json
from tasks.train import train_backbone
from tasks.tune_prompt import tune

EVENTS = ("item_view", "item_like", "offer_make")
FEATURES = {"categorical": ["user_id", "brand_id", "c0_name"], "numerical": ["price", "user_events_before"]}
RECOMMEND = {
    "negatives": {"popularity": 1},
    "backbone": {
        "method": "mpt_rec",
        "settings": {"embedding": 4, "experts": [8, 8], "towers": [4]},
        "tasks": {
            "view": {
                "given": "event_id = 'item_view' or sampled is not null",
                "positive": "event_id = 'item_view'",
                "within": "row",
            },
            "item_like": {"given": "event_id = 'item_view'", "positive": "event_id = 'item_like'", "within": "session"},
        },
        "training": {"epochs": 2, "batch": 128, "lr": 0.01},
    },
    "head": {"training": {"epochs": 2, "batch": 64, "lr": 0.01, "negatives_per_positive": 3, "seed": 3}},
    "tasks": {
        "offer_make": {"given": "event_id = 'item_view'", "positive": "event_id = 'offer_make'", "within": "session"}
    },
}


def build(root: Path) -> None:
    """Fill `root`: ingest/, features/, backbone/, prompt/offer_make/."""
    write_events(root / "ingest")
    make_features(RECOMMEND, root / "ingest", root / "features", FEATURES, EVENTS)
    train_backbone(RECOMMEND["backbone"], root / "ingest", root / "features", root / "backbone", root / "checkpoints")
    tune_head(root)


def tune_head(root: Path, **training) -> None:
    """Tune offer_make on the backbone of `root`, with other training settings."""
    head = {"training": RECOMMEND["head"]["training"] | training}
    tune(RECOMMEND | {"head": head}, "offer_make", root / "ingest", root / "features", root / "backbone",
         root / "prompt/offer_make", root / "memo")  # fmt: skip


def answer(uri: str, rows: pl.DataFrame) -> tuple[pl.DataFrame, dict]:
    """What `fresh.score` answers, in this process and so without the seconds that a fresh one takes."""
    version = track.resolve(uri)
    folder = Path(mlflow.artifacts.download_artifacts(version.uri))
    model = bundle.load(folder / "artifacts")
    return model.score(model.frame(rows.to_pandas())), {"row_ms": 1.0}


def write_events(ingest: Path, users: int = 80, sessions: int = 6, views: int = 5) -> None:
    """Viewed items of two categories: cheap ones are liked, users with an even number make offers."""
    rng, start, rows = np.random.default_rng(5), datetime(2024, 5, 1, tzinfo=UTC), []
    price, brand = rng.integers(3, 90, 41), rng.integers(1, 6, 41)
    for user in range(1, users + 1):
        for visit in range(sessions):
            when = start + timedelta(days=visit, minutes=int(rng.integers(0, 900)))
            for item in rng.choice(np.arange(1, 41), views, replace=False):
                item, chance = int(item), rng.random(2)
                events = ["item_view"]
                events += ["item_like"] * bool(chance[0] < (0.7 if price[item] < 30 else 0.1))
                events += ["offer_make"] * bool(chance[1] < (0.5 if user % 2 == 0 else 0.08))
                split = "train" if visit < sessions - 2 else "val" if visit < sessions - 1 else "test"
                of_item = float(price[item]), f"c{item % 2}", None if brand[item] == 5 else int(brand[item])
                for step, event in enumerate(events):
                    keys = user * 11, user, visit, user * sessions + visit, when + timedelta(seconds=step), event
                    rows.append((*keys, item * 7, item, *of_item, split))
                when += timedelta(minutes=1)
    schema = {
        "user_id": pl.Int64,
        "user": pl.UInt32,
        "session_id": pl.Int64,
        "session": pl.UInt32,
        "stime": pl.Datetime("us", "UTC"),
        "event_id": pl.String,
        "item_id": pl.Int64,
        "item": pl.UInt32,
        "price": pl.Float64,
        "c0_name": pl.String,
        "brand_id": pl.Int64,
        "split": pl.Enum(["train", "val", "test"]),
    }
    frame = pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col("session_id").cast(pl.String))
    bucket = ingest / "events/bucket=0"
    bucket.mkdir(parents=True)
    frame.sort("user", "stime", "item", "event_id").write_parquet(bucket / "part.parquet")
    write_json(ingest / "manifest.json", {"events": digest(bucket / "part.parquet")})
