"""Ingestion: ten rows by hand, the split's properties, the same bytes from any order of rows, and a second opinion."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tasks import ingest as module
from tasks.files import DiskFull, digest
from tasks.ingest import EmptySplit, RawUnreadable, ingest
from tasks.settings import SettingsError

ROOT = Path(__file__).parents[2]
START = datetime(2023, 5, 1, tzinfo=UTC)
THIRDS = {"val": 0.3, "test": 0.3}


def log(rows, columns="user_id session_id sequence_id day minute event_id item_id price", **types) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=columns.split(), orient="row")
    time = pl.lit(START) + pl.duration(days="day", minutes="minute")
    return frame.with_columns(stime=time.dt.cast_time_unit("us")).drop("day", "minute").cast(types)


def read(folder: Path) -> pl.DataFrame:
    parts = sorted((folder / "events").glob("*/part.parquet"))
    return pl.concat([pl.read_parquet(path, hive_partitioning=False) for path in parts])


def random_log(rows=3000, seed=0, strings=False) -> pl.DataFrame:
    """A crowded log: few users, items and minutes, so that every kind of tie and duplicate occurs."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame({
        "user_id": rng.integers(0, 40, rows) * 7 - 100,
        "session_id": pl.Series([f"s{i}" if i else None for i in rng.integers(0, 4, rows)]),
        "sequence_id": pl.Series([f"q{i}" for i in rng.integers(0, 2, rows)]),
        "stime": pl.Series(rng.integers(0, 600, rows) * 60_000_000).cast(pl.Datetime("us", "UTC")),
        "event_id": rng.choice(["view", "like"], rows),
        "item_id": rng.integers(0, 90, rows) * 3,
        "price": pl.Series([[1.0, 2.0, None][i] for i in rng.integers(0, 3, rows)]),
        "age": rng.integers(18, 22, rows),
    })  # fmt: skip
    if strings:
        frame = frame.with_columns(user_id=pl.format("u{}", "user_id"), item_id=pl.format("i{}", "item_id"))
    return pl.concat([frame, frame.sample(rows // 10, seed=seed)])


@pytest.fixture
def small(monkeypatch):
    """Buckets, row groups and ranges so small that a test's log needs several of each."""
    monkeypatch.setattr(module, "BUCKET_BYTES", 60_000)
    monkeypatch.setattr(module, "SPILL_ROWS", 64)
    monkeypatch.setattr(module, "RANGE_IDS", 100)


def test_ten_rows_by_hand(tmp_path):
    rows = log([
        # user session sequence day minute event item price
        (9, "a", "q", 0, 0, "view", 50, 1.0),
        (9, "a", "q", 0, 0, "view", 50, 2.0),    # the same event again at another price: the least row stays
        (9, "a", "q", 0, 0, "like", 50, 1.0),    # the same moment, another event: sorted by name
        (9, "b", "q", 0, 0, "view", 50, 1.0),    # another session: not a duplicate
        (9, "a", "q", 1, 0, "view", 20, 1.0),    # session a goes on after b
        (3, "a", "q", 1, 0, "view", 50, 1.0),    # another user's session a
        (3, None, None, 2, 0, "view", 70, 1.0),
        (3, None, None, 2, 30, "view", 20, 1.0),  # 30 minutes later: the same session
        (3, None, None, 3, 1, "like", 20, 1.0),  # a new session
        (5, "c", "q", 3, 2, "view", 90, 1.0),    # cold user and item
    ])  # fmt: skip
    manifest = ingest(rows.lazy(), tmp_path / "out", {"val_days": 1, "test_days": 1})
    got = read(tmp_path / "out")
    assert got.select("user", "item", "session", "split", "event_id", "session_id", "price").rows() == [
        (1, 2, 1, "train", "view", "a", 1.0),
        (1, 3, 2, "val", "view", None, 1.0),
        (1, 1, 2, "val", "view", None, 1.0),
        (1, 1, 3, "test", "like", None, 1.0),
        (2, 4, 4, "test", "view", "c", 1.0),
        (3, 2, 5, "train", "like", "a", 1.0),
        (3, 2, 5, "train", "view", "a", 1.0),
        (3, 2, 6, "train", "view", "b", 1.0),
        (3, 1, 5, "train", "view", "a", 1.0),
    ]
    assert got.schema["user"] == got.schema["item"] == got.schema["session"] == pl.UInt32
    assert got.schema["split"] == pl.Enum(["train", "val", "test"])
    assert got.columns == [*rows.columns, "user", "item", "session", "split"]
    assert pl.read_parquet(tmp_path / "out/users.parquet").rows() == [(1, 3), (2, 5), (3, 9)]
    assert pl.read_parquet(tmp_path / "out/items.parquet").rows() == [(1, 20), (2, 50), (3, 70), (4, 90)]
    assert manifest["rows_in"] == 10
    assert (manifest["rows"], manifest["duplicates_removed"]) == (9, 1)
    assert (manifest["users"], manifest["items"], manifest["sessions"]) == (3, 4, 6)
    assert manifest["sessions_by_id_alone"] == 3  # a, b, c
    assert manifest["sessions_cut_by_idle_time"] == 2
    assert {name: part["rows"] for name, part in manifest["splits"].items()} == {"train": 5, "val": 2, "test": 2}
    assert manifest["borders"] == {"val": "2023-05-03T00:00:00+00:00", "test": "2023-05-04T00:00:00+00:00"}
    assert manifest["events"]["like"] == {"rows": 2, "share": 2 / 9}
    assert manifest["cold"] == {
        "val": {"item_share": 1 / 2, "user_share": 0.0, "both_share": 0.0},
        "test": {"item_share": 1 / 2, "user_share": 1 / 2, "both_share": 1 / 2},
    }
    assert manifest == json.loads((tmp_path / "out/manifest.json").read_text())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "events", "items.parquet", "manifest.json", "users.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize("strings", [False, True])
def test_agrees_with_pandas(tmp_path, small, strings):
    raw = random_log(strings=strings)
    manifest = ingest(raw.lazy(), tmp_path / "out", THIRDS, idle_minutes=5)
    assert manifest["buckets"] > 3
    got = read(tmp_path / "out")

    key = ["user_id", "stime", "item_id", "event_id", "session_id", "sequence_id"]
    clock = raw.with_columns(pl.col("stime").dt.replace_time_zone(None))
    want = clock.to_pandas().sort_values([*key, "price", "age"], na_position="first").drop_duplicates(key)
    want = want.reset_index(drop=True)
    want["user"] = pd.factorize(want["user_id"], sort=True)[0] + 1
    want["item"] = pd.factorize(want["item_id"], sort=True)[0] + 1
    lone = want["session_id"].isna()
    pause = want[lone].groupby("user_id")["stime"].diff() > pd.Timedelta(minutes=5)
    want["cut"] = pause.groupby(want.loc[lone, "user_id"]).cumsum()
    pairs = want["user"].astype(str) + "/" + want["session_id"].fillna("") + "/" + want["cut"].fillna(-1).astype(str)
    want["session"] = pd.factorize(pairs)[0] + 1
    times = clock["stime"].sort()
    cut = [times[len(raw) - 2 * round(0.3 * len(raw))], times[len(raw) - round(0.3 * len(raw))]]
    want["split"] = np.where(want["stime"] < cut[0], "train", np.where(want["stime"] < cut[1], "val", "test"))

    expected = pl.from_pandas(want.drop(columns="cut")).with_columns(pl.col("stime").dt.replace_time_zone("UTC"))
    expected = expected.select(got.columns).cast(dict(got.schema))
    for name in got.columns:
        assert got[name].equals(expected[name], null_equal=True), name
    known = set(want[want["split"] == "train"]["item"])
    test = want[want["split"] == "test"]
    assert manifest["cold"]["test"]["item_share"] == pytest.approx(1 - test["item"].isin(known).mean())
    assert manifest["sessions"] == want["session"].max() >= manifest["sessions_by_id_alone"] == 3
    assert pl.read_parquet(tmp_path / "out/items.parquet")["item_id"].to_list() == sorted(set(want["item_id"]))


def test_same_bytes_whatever_the_order_and_cut_of_the_rows(tmp_path, small):
    raw = random_log()
    ingest(raw.lazy(), tmp_path / "one", THIRDS)
    expected = digest(tmp_path / "one")
    for seed in range(3):
        mixed = raw.sample(fraction=1, shuffle=True, seed=seed)
        for index, part in enumerate(mixed.iter_slices(len(mixed) // (2 + 5 * seed))):
            (tmp_path / f"raw{seed}").mkdir(exist_ok=True)
            part.write_parquet(tmp_path / f"raw{seed}" / f"{index}.parquet", row_group_size=100)
        ingest(pl.scan_parquet(tmp_path / f"raw{seed}" / "*.parquet"), tmp_path / "again", THIRDS)
        assert digest(tmp_path / "again") == expected
    ingest(raw.with_columns(age=pl.col("age") + 1).lazy(), tmp_path / "again", THIRDS)
    assert digest(tmp_path / "again") != expected


@pytest.mark.parametrize("threads", ["1", "3"])
def test_same_bytes_with_any_number_of_threads(tmp_path, threads):
    random_log().write_parquet(tmp_path / "raw.parquet", row_group_size=100)
    code = (
        "import sys, polars as pl; from tasks import ingest as m; m.BUCKET_BYTES = 60_000; m.SPILL_ROWS = 64;"
        f"m.ingest(pl.scan_parquet(sys.argv[1]), sys.argv[2], {THIRDS}); print(pl.thread_pool_size())"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "raw.parquet"), str(tmp_path / "out")]
    env = os.environ | {"POLARS_MAX_THREADS": threads, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == threads
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BUCKET_BYTES", 60_000)
        patch.setattr(module, "SPILL_ROWS", 64)
        ingest(pl.scan_parquet(tmp_path / "raw.parquet"), tmp_path / "here", THIRDS)
    assert digest(tmp_path / "out") == digest(tmp_path / "here")


def test_splits_do_not_touch_in_time(tmp_path):
    raw = random_log(seed=5)
    manifest = ingest(raw.lazy(), tmp_path / "out", {"val": 0.1, "test": 0.2})
    got = read(tmp_path / "out").group_by("split").agg(first=pl.col("stime").min(), last=pl.col("stime").max())
    times = {row["split"]: row for row in got.iter_rows(named=True)}
    assert times["train"]["last"] < times["val"]["first"]
    assert times["val"]["last"] < times["test"]["first"]
    assert manifest["splits"]["test"]["share"] == pytest.approx(0.2, abs=0.01)
    assert manifest["splits"]["val"]["first"] == manifest["borders"]["val"] == times["val"]["first"].isoformat()


def test_a_border_inside_equal_times_moves_back(tmp_path):
    # Minutes 0 1 2 3 4 5 6 7 7 7. The last 2 of 10 rows would cut the three rows of minute 7.
    rows = log([(1, "a", "q", 0, minute, "view", 100 + n, 1.0) for n, minute in enumerate([*range(7), 7, 7, 7])])
    manifest = ingest(rows.lazy(), tmp_path / "out", {"val": 0.2, "test": 0.2})
    assert {name: part["rows"] for name, part in manifest["splits"].items()} == {"train": 6, "val": 1, "test": 3}


def test_a_day_with_a_handful_of_rows_is_not_a_day(tmp_path):
    # Days 0 to 5 with 20 rows each, one row on day 6: days count back from day 5, and the row stays in test.
    days = [*range(6)] * 20 + [6]
    rows = log([(1, "a", "q", day, n, "view", n, 1.0) for n, day in enumerate(days)])
    manifest = ingest(rows.lazy(), tmp_path / "out", {"val_days": 2, "test_days": 1})
    assert {name: part["rows"] for name, part in manifest["splits"].items()} == {"train": 60, "val": 40, "test": 21}
    assert manifest["borders"]["test"] == "2023-05-06T00:00:00+00:00"


def test_columns_that_may_be_absent_and_columns_of_its_own(tmp_path):
    rows = [(1, 0, 0, "view", 1, 30), (1, 0, 0, "view", 1, 31), (1, 0, 40, "view", 1, 30), (1, 1, 0, "view", 2, 30)]
    rows = log(rows, "user_id day minute event_id item_id age")
    manifest = ingest(rows.lazy(), tmp_path / "out", {"val": 0.25, "test": 0.25})
    got = read(tmp_path / "out")
    assert got["age"].to_list() == [30, 30, 30]
    assert got["session"].to_list() == [1, 2, 3]
    assert "session_id" not in got.columns
    assert manifest["sessions_cut_by_idle_time"] == manifest["sessions"] == 3
    assert manifest["sessions_by_id_alone"] == 0


@pytest.mark.parametrize(
    ("split", "error", "text"),
    [
        ({"val_days": 1, "test_days": 3}, EmptySplit, "train would be empty.*2023-05-01.*change the dataset's split"),
        ({"val_days": 4, "test_days": 4}, EmptySplit, "train and val would be empty"),
        ({"val_days": 0, "test_days": 1}, SettingsError, "whole days from 1 on; got 0 and 1"),
        ({"val": 0.5, "test": 0.5}, SettingsError, "leave some rows to train"),
        ({"val": 0.1}, SettingsError, "val_days and test_days, or val and test"),
    ],
)
def test_a_split_that_cannot_be(tmp_path, split, error, text):
    rows = log([(1, "a", "q", day, n, "view", n, 1.0) for n, day in enumerate([0, 1, 2, 3] * 3)])
    with pytest.raises(error, match=text):
        ingest(rows.lazy(), tmp_path / "out", split)
    assert not list(tmp_path.iterdir())


def test_one_moment_cannot_be_split(tmp_path):
    rows = log([(user, "a", "q", 0, 0, "view", 1, 1.0) for user in range(9)])
    with pytest.raises(EmptySplit, match="train and val would be empty .*'test': 9"):
        ingest(rows.lazy(), tmp_path / "out", THIRDS)


def test_bad_input_leaves_the_last_good_version(tmp_path):
    good = random_log(300)
    ingest(good.lazy(), tmp_path / "out", THIRDS)
    before = digest(tmp_path / "out")
    good.write_parquet(tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-2000])
    bad = {
        "lack item_id": good.drop("item_id").lazy(),
        "have user, which ingestion adds": good.with_columns(user=1).lazy(),
        r"item_id \(330 rows\)": good.with_columns(item_id=pl.lit(None, pl.Int64)).lazy(),
        "no events": good.clear().lazy(),
        "cannot be read": pl.scan_parquet(tmp_path / "cut.parquet"),
        "cannot be read.*absent": pl.scan_parquet(tmp_path / "absent.parquet"),
    }
    for text, events in bad.items():
        with pytest.raises(ValueError, match=f"(?s){text}") as caught:
            ingest(events, tmp_path / "out", THIRDS)
        assert isinstance(caught.value, RawUnreadable) == ("cannot be read" in text)
    assert digest(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.parquet", "out"]


@pytest.mark.parametrize("step", ["_spill", "_arrange"])
@pytest.mark.parametrize("why", ["No space left on device", "Disk quota exceeded"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, step, why):
    def full(*_):  # the words of a full tmpfs
        raise pl.exceptions.ComputeError(f"parquet: File out of specification: {why} (os error 28)")

    monkeypatch.setattr(module, step, full)
    with pytest.raises(DiskFull, match=rf"{why}; nothing was written to {tmp_path}/out\. [\d.,]+ MB are free at"):
        ingest(random_log(300).lazy(), tmp_path / "out", THIRDS)
    assert not list(tmp_path.iterdir())


def test_one_user_larger_than_a_bucket(tmp_path, small):
    rows = [(7, "a", "q", 0, n, "view", n, 1.0) for n in range(1300)]
    rows = log([(3, "a", "q", 0, 0, "view", 1, 1.0), *rows, (9, "a", "q", 0, 5, "view", 1, 1.0)])
    manifest = ingest(rows.lazy(), tmp_path / "out", THIRDS)
    assert manifest["buckets"] > 1
    assert read(tmp_path / "out")["user"].to_list() == [1] + [2] * 1300 + [3]


def test_times_far_apart(tmp_path):
    rows = log([(1, "a", "q", 40_000 * n, 0, "view", n, 1.0) for n in range(-3, 7)])
    ingest(rows.lazy(), tmp_path / "out", THIRDS)
    got = read(tmp_path / "out")
    assert got["stime"].is_sorted()
    assert got["stime"][0] == START - timedelta(days=120_000)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reader = SimpleNamespace(read=lambda raw: pl.scan_parquet(raw / "*.parquet"))
    monkeypatch.setattr(module, "dataset", {"shop": reader}.get)
    Path("data").mkdir()
    random_log(300).write_parquet("data/log.parquet")
    Path("params.yaml").write_text("datasets: {shop: {split: {val: 0.3, test: 0.3}, idle_minutes: 1}, other: {}}")
    module.main("params.yaml:datasets.shop", "data", "out")
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["settings"] == {"split": THIRDS, "idle_minutes": 1}
    assert re.match(
        r"out: 3\d\d events \(train 1\d\d, val \d+, test \d+\), \d+ dup.*, 40 users", capsys.readouterr().out
    )
    with pytest.raises(SettingsError, match="datasets.other has no split"):
        module.main("params.yaml:datasets.other", "data", "out")
    with pytest.raises(RawUnreadable, match="nothing was written"):
        module.main("params.yaml:datasets.shop", "nowhere", "out")


def test_a_past_period_is_read_as_if_nothing_came_later():
    days = pl.LazyFrame({"stime": [START + timedelta(days=day) for day in range(4)]})
    kept = lambda **period: module.in_period(days, **period).collect()["stime"].dt.day().to_list()
    assert kept() == [1, 2, 3, 4]
    assert kept(since="2023-05-02") == [2, 3, 4]
    assert kept(until="2023-05-03T00:00") == [1, 2]  # `until` itself is outside
    assert kept(since=START.date() + timedelta(days=1), until="2023-05-03T00:00:01+00:00") == [2, 3]
    with pytest.raises(SettingsError, match="runs from 2023-05-01 .* to 2023-05-04"):
        kept(since="2024-01-01")
    with pytest.raises(SettingsError, match="until is 'May'"):
        kept(until="May")
