"""Faults of the MerRec benchmark's published code, each of which this benchmark must not have.

Causal masks, gates that are trained and scores of the last place are in the contracts of models/recommend.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from ingested import EVENTS, random_log, write_ingest

from models import build
from tasks.batches import Batches, load_split
from tasks.features import make_features
from tasks.merrec_groups import _few, _some
from tasks.sequences import Cases, read_log, sequences
from tasks.training import Training, train

FEATURES = {"categorical": ["item_id", "color", "brand_id"], "numerical": ["price"], "history": {"item_id": 3}}


@pytest.fixture(scope="module")
def ingest(tmp_path_factory) -> Path:
    return write_ingest(tmp_path_factory.mktemp("faults") / "ingest", random_log())


def test_ids_colours_and_histories_are_not_all_zero(ingest, tmp_path):
    """There the maps of ids stay empty, so product, colour and the last seven products of every row are 0."""
    manifest = make_features({"negatives": {}}, ingest, tmp_path / "features", FEATURES, EVENTS)
    categorical, _ = load_split(tmp_path / "features", "train")
    distinct = {name: len(np.unique(categorical[:, place])) for place, name in enumerate(manifest["categorical"])}
    assert set(distinct) == {"item_id", "color", "brand_id", "hist_item_id_1", "hist_item_id_2", "hist_item_id_3"}
    assert distinct["color"] >= 3 and min(distinct[f"hist_item_id_{k}"] for k in (1, 2, 3)) > 50
    raw = pl.read_parquet(tmp_path / "features/rows/train.parquet", columns=["item_id"])["item_id"].n_unique()
    assert distinct["item_id"] == raw


def test_the_test_history_holds_what_came_before_it_val_included(ingest):
    """There the test input lacks the validation item, and an appended padding is asked instead of the last item."""
    log = read_log(ingest)
    made = sequences(log, key=["user"], unit="item", length=50, collapse=False)
    ids = dict(zip(made.vocabulary.values.to_list(), range(2, 10_000), strict=False))
    for history, target, user in zip(made.test.items, made.test.targets[:, 0], made.test.user, strict=True):
        own = log.filter(pl.col("user") == int(user)).sort("stime", maintain_order=True)
        told = [ids.get(item, 1) for item in own["item"]]
        assert [*history[history > 0].tolist(), int(target)] == told[-51:]


def test_no_training_row_is_later_than_a_test_row(ingest):
    """There rows are split by chance, so a user's later events are trained on."""
    spans = read_log(ingest).group_by("split").agg(first=pl.col("stime").min(), last=pl.col("stime").max())
    when = {row["split"]: row for row in spans.iter_rows(named=True)}
    assert when["train"]["last"] <= when["val"]["first"] and when["val"]["last"] <= when["test"]["first"]


def test_samples_are_seeded_and_spread():
    """There the sample is unseeded, and validation is the first hundredth of the sequences."""
    rows = np.arange(10_000)
    assert np.array_equal(_some(rows, 500, 3), _some(rows, 500, 3))
    assert not np.array_equal(_some(rows, 500, 3), _some(rows, 500, 4))
    cases = Cases(np.zeros((10_000, 2), np.int32), np.zeros((10_000, 1), np.int32), rows)
    kept = _few(cases, {"cases": 500}).user
    assert len(kept) == 500 and kept.mean() == pytest.approx(5000, rel=0.1)
    assert np.array_equal(_some(rows, None, 3), rows)


def test_early_stopping_stops():
    """There the counter of epochs without progress is set back in every epoch."""
    torch.manual_seed(0)
    model = build("recommend.session", "gru4rec", 5, width=4)
    batches = Batches({"items": np.ones((8, 3), np.int32)}, 4, 0)
    trained = train(model, batches, Training(epochs=50, patience=2), lambda: {"score": 0.5}, "constant")
    assert len(trained.curve) == 3


def test_sequences_longer_than_the_model_are_cut_to_their_end():
    """There histories that are too long run into the targets' places."""
    torch.manual_seed(0)
    content = torch.randint(1, 9, (31, 3))
    model = build("recommend.session", "mercatran", 30, content, width=8, heads=2, inner=8, length=6).eval()
    items = torch.randint(1, 31, (2, 40))
    assert torch.equal(model.score_steps(items), model.score_steps(items[:, -6:]))
