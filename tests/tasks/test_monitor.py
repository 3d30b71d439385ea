"""Drift: distances worked out by hand and against SciPy, windows and columns that cannot be compared, champions."""

import math
from datetime import UTC, datetime, timedelta

import _memory
import _shop
import numpy as np
import polars as pl
import pytest
from ingested import random_log
from scipy import stats

from tasks import fresh, monitor_predictions
from tasks.files import read_json, write_json
from tasks.ingest import ingest
from tasks.monitor import CannotCompare, Settings, alarms, due, main, monitor, settings_for
from tasks.monitor_predictions import compare, declarations
from tasks.settings import SettingsError
from tasks.shift import GRID, Counts, auc_interval, bins, grid_of, ks, psi


def counted(grid: np.ndarray, *sides) -> list[Counts]:
    found = [Counts(grid) for _ in sides]
    for count, values in zip(found, sides, strict=True):
        for part in np.array_split(np.asarray(values, dtype=float), 3):  # in batches
            count.add(part)
    return found


def test_psi_and_ks_by_hand():
    # Shares 1/2, 1/4, 1/4 become 1/4, 1/4, 1/2: (1/2 - 1/4) ln 2 twice; the distributions differ most at 1, by 1/4.
    old, new = counted(np.array([1.0, 2.0, 3.0]), [1, 1, 2, 3], [1, 2, 3, 3])
    assert psi(*bins(old, new, 10)) == pytest.approx(math.log(2) / 2)
    assert ks(old, new) == 0.25
    assert psi(*bins(old, old, 10)) == ks(old, old) == 0
    # Half of the values missing: (1 - 1/2) ln 2 for those there, (1/2 - 1e-4) ln(5000) for those that are not.
    full, holes = counted(np.array([5.0]), [5, 5], [5, math.nan])
    assert psi(*bins(full, holes, 10)) == pytest.approx(math.log(2) / 2 + (0.5 - 1e-4) * math.log(5000))
    assert ks(full, holes) == 0


def test_bins_of_many_values_are_equally_full():
    values = np.arange(1, 101)
    old, new = counted(grid_of(values.astype(float)), values, values + 10)
    before, after = bins(old, new, 10)
    assert list(before.values()) == [10] * 10 + [0]
    assert list(after.values()) == [0, *[10] * 8, 20, 0]  # the last bin is open
    tail = (0.1 - 1e-4) * math.log(1000) + 0.1 * math.log(2)
    assert psi(before, after) == pytest.approx(tail)
    assert ks(old, new) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", ["continuous", "ties", "disjoint", "infinite"])
def test_ks_is_that_of_scipy(shape):
    rng = np.random.default_rng(3)
    old, new = rng.normal(size=2000), rng.normal(0.1, 1.2, size=700)
    if shape == "ties":
        old, new = old.round(1), new.round(1)
    if shape == "disjoint":
        new = new + 100
    if shape == "infinite":
        new[:50] = math.inf
    sides = counted(grid_of(old), old, new)
    assert ks(*sides) == pytest.approx(stats.ks_2samp(old, new).statistic, abs=1e-12)


def test_ks_of_more_values_than_the_grid_has_is_near():
    rng = np.random.default_rng(4)
    old, new = rng.exponential(size=60_000), rng.exponential(1.05, size=50_000)
    grid = grid_of(old)
    assert len(grid) == GRID
    assert ks(*counted(grid, old, new)) == pytest.approx(stats.ks_2samp(old, new).statistic, abs=2 / GRID)


def test_interval_of_an_auc_by_hand_and_by_chance():
    # Positives 3 and 1, negatives 2 and 0: of four pairs three are in order. Each side's components are 1 and 1/2, with
    # variance 1/8, so the error is 1.96 sqrt(1/16 + 1/16).
    auc, low, high = auc_interval(np.array([3.0, 1.0, 2.0, 0.0]), np.array([1, 1, 0, 0]))
    assert (auc, high) == (0.75, 1.0)
    assert low == pytest.approx(0.75 - 1.959964 * math.sqrt(1 / 8), abs=1e-6)
    assert all(math.isnan(value) for value in auc_interval(np.array([1.0, 2.0]), np.array([1, 1])))
    rng, covered = np.random.default_rng(0), 0
    true = stats.norm.cdf(1 / math.sqrt(2))  # AUC of two normals a deviation apart
    for _ in range(300):
        label = np.repeat([1, 0], [40, 80])
        _, low, high = auc_interval(rng.normal(size=120) + label, label)
        covered += low <= true <= high
    assert 0.91 <= covered / 300 <= 0.99


def log(**changes) -> pl.DataFrame:
    """Ten days; in the last, what `changes` says becomes of a column."""
    frame = random_log(events=4000, users=60, items=80)
    last = pl.col("stime") >= frame["stime"].max() - timedelta(days=1)
    return frame.with_columns(pl.when(last).then(value).otherwise(pl.col(name)).alias(name)
                              for name, value in changes.items())  # fmt: skip


def looked(folder, frame: pl.DataFrame, **settings) -> dict:
    ingest(frame.lazy(), folder / "ingest", {"val_days": 1, "test_days": 1})
    return monitor(settings, "toy", folder / "ingest", folder / "out/toy.json")


def test_a_log_like_before_is_calm_and_one_that_moved_is_not(tmp_path):
    calm = looked(tmp_path / "calm", log(), psi=0.25, ks=0.15)
    assert calm["over"] == [] and alarms(calm) == []
    moved = looked(tmp_path / "moved", log(
        price=pl.col("price") * 3, color=pl.lit("9"), brand_id=pl.lit(None), c1_id=pl.lit(0),
    ), psi=0.25, ks=0.15)  # fmt: skip
    assert set(moved["over"]) == {"price", "color", "brand_id", "c1_id"}
    told = moved["features"]
    assert told["color"]["unseen"] == 1.0 and told["color"]["kind"] == "categorical"
    assert told["brand_id"]["missing"] == 1.0 > told["brand_id"]["missing_reference"] > 0
    assert told["price"]["ks"] > 0.15 and told["price"]["kind"] == "numeric"
    assert told["event_id"]["over"] is False
    lines = "\n".join(alarms(moved))
    assert "price: psi" in lines and "brand_id: " in lines and "100.0% missing" in lines
    ignored = monitor({"ignore": ["price"]}, "toy", tmp_path / "moved/ingest", tmp_path / "again.json")
    assert "price" not in ignored["over"] and ignored["features"]["price"]["psi"] == told["price"]["psi"]


def test_what_is_written(tmp_path, capsys):
    done = looked(tmp_path, log())
    folder = tmp_path / "out"
    assert read_json(folder / "toy.json") == done
    assert done["reference"]["to"] < done["new"]["from"]
    manifest = read_json(tmp_path / "ingest/manifest.json")
    assert [done[side]["rows"] for side in ("reference", "new")] == [
        manifest["splits"][split]["rows"] for split in ("train", "test")
    ]
    table = pl.read_csv(folder / "toy.csv")
    assert table.columns == ["feature", "kind", "psi", "ks", "missing", "missing_reference", "unseen", "over"]
    assert set(table["feature"]) == set(done["features"])
    assert (folder / "toy.png").read_bytes()[:4] == b"\x89PNG"
    written = [(folder / f"toy.{end}").read_bytes() for end in ("json", "csv", "png")]
    monitor({}, "toy", tmp_path / "ingest", folder / "toy.json")
    assert [(folder / f"toy.{end}").read_bytes() for end in ("json", "csv", "png")] == written
    (tmp_path / "params.yaml").write_text("monitor: {psi: 0.0}")
    main(f"{tmp_path}/params.yaml:monitor", "toy", str(tmp_path / "ingest"), str(folder / "toy.json"))
    assert "price: psi" in capsys.readouterr().out


def test_it_is_due_once_for_the_same_events(tmp_path):
    out = tmp_path / "out/toy.json"
    assert not due({}, tmp_path / "ingest", out)  # nothing was ingested
    looked(tmp_path, log())
    assert not due({}, tmp_path / "ingest", out)
    ingest(log(price=pl.lit(1.0)).lazy(), tmp_path / "ingest", {"val_days": 1, "test_days": 1})
    assert due({}, tmp_path / "ingest", out)
    looked(tmp_path, log())
    assert due({"psi": 0.3}, tmp_path / "ingest", out)  # other thresholds may give another answer
    write_json(tmp_path / "texts/manifest.json", {"rows": {"train": 5}})
    assert not due({}, tmp_path / "texts", out)


def test_a_constant_an_empty_and_a_new_kind_of_value(tmp_path):
    never = pl.lit(None, pl.Float64)
    frame = log().with_columns(same=pl.lit(2.0), none=never, late=never, gone=pl.col("price"))
    last = pl.col("stime") >= frame["stime"].max() - timedelta(days=1)
    frame = frame.with_columns(late=pl.when(last).then(1.0), gone=pl.when(~last).then("price"))
    told = looked(tmp_path, frame)["features"]
    for column in ("same", "none"):
        assert told[column]["psi"] == 0 and told[column]["over"] is False
    assert told["none"]["ks"] is None and told["none"]["missing"] == 1.0
    assert told["late"]["over"] and told["late"]["psi"] > 5 and told["late"]["ks"] is None
    assert told["gone"]["over"] and told["gone"]["missing"] == 1.0


def test_ids_are_compared_by_what_is_unseen(tmp_path):
    looked(tmp_path, log())
    again = lambda **settings: monitor(settings, "toy", tmp_path / "ingest", tmp_path / "o.json")
    told = again()["features"]["item_id"]
    assert told["kind"] == "ids" and told["psi"] is None and told["over"] is False
    assert again(unseen=0.0)["features"]["item_id"]["over"] is (told["unseen"] > 0)
    assert again()["features"]["color"]["kind"] == "categorical"
    assert told["unseen"] == pytest.approx(read_json(tmp_path / "ingest/manifest.json")["cold"]["test"]["item_share"])


def test_what_cannot_be_compared_says_so(tmp_path):
    looked(tmp_path, log())
    write_json(tmp_path / "texts/manifest.json", {"rows": {"train": 5}})
    with pytest.raises(CannotCompare, match="no time"):
        monitor({}, "texts", tmp_path / "texts", tmp_path / "o.json")
    features = tmp_path / "features"
    (features / "rows").mkdir(parents=True)
    write_json(features / "manifest.json", {"categorical": ["c0"], "numerical": ["price"]})
    time = pl.Series([datetime(2024, 1, 1, tzinfo=UTC)])
    row = pl.DataFrame({"stime": time, "sampled": [None], "event_id": ["v"], "price": [1.0]},
                       schema_overrides={"sampled": pl.String})  # fmt: skip
    for split in ("train", "test"):
        row.write_parquet(features / f"rows/{split}.parquet")
    with pytest.raises(CannotCompare, match="rows of train lack c0"):
        monitor({}, "toy", tmp_path / "ingest", tmp_path / "o.json", features)
    row.with_columns(c0=pl.lit("x")).write_parquet(features / "rows/train.parquet")
    row.with_columns(c0=pl.lit("x")).clear().write_parquet(features / "rows/test.parquet")
    with pytest.raises(CannotCompare, match="test has no rows"):
        monitor({}, "toy", tmp_path / "ingest", tmp_path / "o.json", features)
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"psy": 1}, "monitor has no setting psy; it has: psi, ks"),
        ({"psi": -1}, "psi is -1"),
        ({"ks": "0.1"}, "ks is '0.1'"),
        ({"bins": 1}, "bins is 1"),
        ({"retrain": "never"}, "retrain is 'never'"),
        ({"new": "train"}, "reference and new are two of"),
        ({"answered": "test"}, "answered and new are two of"),
        ({"computed": 1}, "computed is 1"),
        ({"ignore": "price"}, "ignore is 'price'"),
    ],
)
def test_settings_that_cannot_work(chosen, said):
    with pytest.raises(SettingsError, match=said):
        settings_for(chosen)


def test_no_settings_are_the_signature():
    assert settings_for(None) == settings_for({}) == Settings()


def test_features_are_those_that_a_model_reads_and_counts_are_quiet(shop, tmp_path):
    manifest = read_json(shop / "ingest/manifest.json")
    (tmp_path / "ingest").mkdir()
    write_json(tmp_path / "ingest/manifest.json", manifest | {"splits": {}, "digest": "d"})
    (tmp_path / "ingest/events").symlink_to(shop / "ingest/events")
    told = lambda **settings: monitor(settings, "shop", tmp_path / "ingest", tmp_path / "o.json", shop / "features")
    calm = told()["features"]
    assert set(calm) == {"event_id", "user_id", "brand_id", "c0_name", "price", "user_events_before"}
    counts = calm["user_events_before"]
    assert counts["psi"] > 1 and counts["over"] is False  # users have more of a past on the last day
    assert told(computed=True)["features"]["user_events_before"]["over"] is True
    rows = pl.read_parquet(shop / "features/rows/test.parquet").filter(pl.col("sampled").is_null())
    assert told()["new"]["rows"] == len(rows)


def test_champions_are_asked_about_both_periods(promoted, shop, monkeypatch):
    monkeypatch.setattr(fresh, "score", _shop.answer)
    told = compare(Settings(), "recommend-backbone", shop / "ingest", shop / "features")
    assert set(told) == {"recommend-backbone/view", "recommend-backbone/item_like"}
    found = compare(Settings(psi=9, ks=1), "recommend-offer_make", shop / "ingest", shop / "features")
    facts = found["recommend-offer_make"]
    # The very test rows that the gate measured: the AUC is that at promotion, and its interval holds it.
    assert facts["auc"] == pytest.approx(facts["auc_reference"], abs=1e-6)
    assert facts["calibration"] == pytest.approx(facts["calibration_reference"], rel=1e-5)
    assert facts["auc_low"] < facts["auc"] < facts["auc_high"] and facts["over"] is False
    assert facts["rows"] > 100 and facts["psi"] >= 0 and 0 <= facts["ks"] <= 1
    assert compare(Settings(), "recommend-nobody", shop / "ingest", shop / "features") == {}


def test_a_worse_auc_and_a_champion_that_cannot_answer_are_over(promoted, shop, monkeypatch):
    def turned(uri, rows):
        found, times = _shop.answer(uri, rows)
        return found.select(pl.all() * -1 + 1), times

    def broken(uri, rows):
        raise fresh.FreshProcessFailed("it lacks the column price")

    asked = lambda: compare(Settings(psi=99, ks=2), "recommend-offer_make", shop / "ingest", shop / "features")
    monkeypatch.setattr(monitor_predictions.fresh, "score", turned)
    worse = asked()["recommend-offer_make"]
    assert worse["over"] and worse["auc_high"] < worse["auc_reference"] - 0.02
    monkeypatch.setattr(monitor_predictions.fresh, "score", broken)
    lost = asked()["recommend-offer_make"]
    assert lost["over"] and "lacks the column price" in lost["fault"]
    done = {"features": {}, "predictions": {"recommend-offer_make": worse, "other": lost},
            "thresholds": {"psi": 99, "ks": 2}}  # fmt: skip
    lines = alarms(done)
    assert "at promotion" in lines[0] and "lacks the column price" in lines[1]


def test_declarations_of_a_backbone():
    told = {"tasks.view.given": "a", "tasks.view.positive": "b", "tasks.view.within": "row", "tasks.like.given": "c",
            "training.epochs": "2"}  # fmt: skip
    assert declarations("recommend-backbone", told) == {
        "view": {"given": "a", "positive": "b", "within": "row"}, "like": {"given": "c"},
    }  # fmt: skip


MANY = """
import sys
from pathlib import Path
from tasks.monitor import monitor
monitor({}, "big", Path(sys.argv[1]), Path(sys.argv[1]) / "o.json")
"""


def test_memory_does_not_grow_with_the_rows(tmp_path):
    rng = np.random.default_rng(0)
    for name, parts in (("small", 1), ("large", 8)):
        (tmp_path / name / "events").mkdir(parents=True)
        for part in range(parts):
            rows = 250_000
            frame = pl.DataFrame({
                "stime": pl.Series(rng.integers(0, 10**15, rows)).cast(pl.Datetime("us", "UTC")),
                "event_id": rng.choice(["view", "like"], rows),
                "price": rng.exponential(size=rows), "size": rng.normal(size=rows), "weight": rng.normal(size=rows),
            }).with_columns(split=pl.Series(rng.choice(["train", "test"], rows)))  # fmt: skip
            frame.write_parquet(tmp_path / name / f"events/{part}.parquet", row_group_size=50_000)
        write_json(tmp_path / name / "manifest.json", {"splits": {}, "digest": name})
    small, large = (_memory.peak(MANY, tmp_path / name) for name in ("small", "large"))
    assert large < small + 60  # MiB; seven times as many rows more are 85 MB of numbers
