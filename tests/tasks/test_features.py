import json

import numpy as np
import polars as pl
import pytest

from tasks.context import History, Popularity, add_context
from tasks.encoder import Encoder, EncodingError
from tasks.features import Declared, FeatureError, make_features
from tasks.files import digest
from tasks.ingest import EmptySplit
from tasks.negatives import Sampler
from tasks.settings import SettingsError
from tests.tasks.ingested import EVENTS, MONDAY, number, random_log, seconds, write_ingest

DAY = 86_400
CONTEXT = [
    "hour", "weekday", "session_position", "seconds_since_previous", "user_events_before", "user_item_like_before",
    "item_events_before", "seen_before", "same_c2_id_before", "same_brand_id_before", "price_ratio",
    "hist_c2_id_1", "hist_c2_id_2", "hist_event_id_1", "hist_price_1",
]  # fmt: skip
FEATURES = {
    "categorical": ["user_id", "item_id", "c2_id", "brand_id", "color", "hour", "weekday"],
    "numerical": ["price", *(name for name in CONTEXT if name[:4] not in ("hour", "week", "hist"))],
    "history": {"c2_id": 2, "event_id": 1, "price": 1},
}
BOTH = {"category": 1, "popularity": 2, "seed": 5}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Locks lie below the working directory."""
    monkeypatch.chdir(tmp_path)


def made(tmp_path, frame: pl.DataFrame, name: str = "a", negatives=None, features=None, defaults=None, events=EVENTS):
    """The manifest and all rows with their split."""
    ingest = write_ingest(tmp_path / f"ingest-{name}", frame)
    settings = {"features": features or {}, "negatives": negatives or {}}
    manifest = make_features(settings, ingest, tmp_path / name, defaults or FEATURES, events)
    return manifest, pl.concat(
        [pl.read_parquet(tmp_path / f"{name}/rows/{split}.parquet") for split in ("train", "val", "test")]
    )


def test_context_by_hand():
    # user, session, event, item, seconds after Monday 00:00 UTC, c2, brand, price
    log = [
        (1, "a", "item_view", 1, 36_000, 5, 1, 10.0),
        (1, "a", "item_view", 2, 36_060, 5, None, 30.0),
        (1, "a", "item_like", 2, 36_060, 5, None, 30.0),  # at the same second: neither sees the other
        (1, "a", "item_view", 1, 36_100, 5, 1, 10.0),
        (1, "b", "item_view", 1, DAY + 36_000, 5, 1, 30.0),
        (2, "a", "item_view", 1, 7_200, 5, 1, 10.0),
    ]
    names = ("user_id", "session_id", "event_id", "item_id", "s", "c2_id", "brand_id", "price")
    frame = pl.DataFrame(log, schema=names, orient="row")
    events = number(frame.with_columns(seconds(frame["s"])).drop("s"))
    counts = Popularity(events.group_by("item", pl.col("stime").dt.epoch("d").alias("day")).agg(events=pl.len()))
    rows = events.with_columns(pl.int_range(pl.len()).alias("at"))
    found = add_context(rows, CONTEXT, History(events), counts)
    order = found.select("user", "event_id", "item").rows()
    view, like = "item_view", "item_like"
    assert order == [(1, view, 1), (1, like, 2), (1, view, 2), (1, view, 1), (1, view, 1), (2, view, 1)]
    expected = {
        "hour": [10, 10, 10, 10, 10, 2],
        "weekday": [1, 1, 1, 1, 2, 1],
        "session_position": [0, 1, 1, 3, 0, 0],
        "seconds_since_previous": [None, 60, 60, 40, DAY - 100, None],
        "user_events_before": [0, 1, 1, 3, 4, 0],
        "user_item_like_before": [0, 0, 0, 1, 1, 0],
        "item_events_before": [0, 0, 0, 0, 3, 0],  # Monday's events of item 1, both users'
        "seen_before": [0, 0, 0, 1, 2, 0],
        "same_c2_id_before": [0, 1, 1, 3, 4, 0],
        "same_brand_id_before": [0, 0, 0, 1, 2, 0],
        "price_ratio": [None, 3, 3, 10 / (70 / 3), 30 / (80 / 4), None],
        "hist_c2_id_1": [None, 5, 5, 5, 5, None],
        "hist_c2_id_2": [None, None, None, 5, 5, None],
        "hist_event_id_1": [None, "item_view", "item_view", "item_view", "item_view", None],
        "hist_price_1": [None, 10, 10, 30, 10, None],
    }
    for name, values in expected.items():
        assert found[name].to_list() == (pytest.approx(values) if name != "hist_event_id_1" else values), name


def test_context_of_a_sampled_item_reads_its_own_values():
    # In place of user 1's last view: item 9, never seen, of category 6 (once), brand 1 (twice), price 5 (mean 15).
    events = number(pl.DataFrame({
        "user_id": 1, "session_id": "a", "event_id": "item_view", "item_id": [1, 2, 3], "c2_id": [5, 6, 5],
        "brand_id": [1, 1, 2], "price": [10.0, 20.0, 99.0],
    }).with_columns(seconds([0, 10, 20])))  # fmt: skip
    row = events[2:].with_columns(
        at=2, item=pl.lit(9, pl.UInt32), c2_id=pl.lit(6, pl.Int64), brand_id=pl.lit(1, pl.Int64), price=5.0
    )
    names = ["seen_before", "same_c2_id_before", "same_brand_id_before", "price_ratio", "hist_c2_id_1"]
    assert add_context(row, names, History(events)).select(names).row(0) == (0, 1, 2, pytest.approx(1 / 3), 6)


def test_events_out_of_order_are_refused():
    events = number(random_log(50))
    with pytest.raises(ValueError, match="not sorted by user and time"):
        History(events.reverse())


def test_later_events_change_no_earlier_row(tmp_path):
    log = random_log(900, users=15, items=40)
    until = pl.lit(seconds([6 * DAY])[0])
    _, whole = made(tmp_path, log, "whole")
    _, cut = made(tmp_path, log.filter(pl.col("stime") < until), "cut")
    columns = ["user_id", "session_id", "item_id", "event_id", "stime", *CONTEXT]
    ordered = lambda rows: rows.filter(pl.col("stime") < until).select(columns).sort(columns[:5])
    assert ordered(whole).equals(ordered(cut))
    assert len(cut) < len(whole)
    varied = ordered(whole).select(pl.col(CONTEXT).n_unique()).row(0)
    assert min(varied) > 1, dict(
        zip(CONTEXT, varied, strict=True)
    )  # a feature that never varies would pass for nothing


def test_rows_are_first_events_and_history_is_the_users_own(tmp_path):
    log = random_log(600, users=9, items=25)
    _, rows = made(tmp_path, log)
    first = number(log).unique(["user", "session", "item", "event_id"], keep="first", maintain_order=True)
    assert sorted(rows.select("user_id", "stime", "item_id", "event_id").rows()) == sorted(
        first.select("user_id", "stime", "item_id", "event_id").rows()
    )
    past = {user: part.sort("stime") for (user,), part in log.group_by("user_id")}
    for row in rows.sample(100, seed=1).rows(named=True):
        earlier = past[row["user_id"]].filter(pl.col("stime") < row["stime"])
        last = earlier["c2_id"].to_list()[::-1]
        assert [row["hist_c2_id_1"], row["hist_c2_id_2"]] == (last + [None, None])[:2]
        assert row["seen_before"] == (earlier["item_id"] == row["item_id"]).sum()
        assert row["session_position"] == (earlier["session_id"] == row["session_id"]).sum()
    assert rows["hist_c2_id_1"].n_unique() > 5
    assert rows.filter(pl.col("user_events_before") == 0)["hist_c2_id_1"].null_count() > 0


def test_negatives(tmp_path):
    log = random_log(1500, items=120)
    manifest, rows = made(tmp_path, log, negatives=BOTH)
    real, sampled = (rows.filter(pl.col("sampled").is_null() == kind) for kind in (True, False))
    views = real.filter(pl.col("event_id") == "item_view")
    at = ["user_id", "session_id", "stime"]
    # as many as asked, in every split alike, and only the item differs from the view
    assert manifest["negatives"] == {
        "category": {"asked": len(views), "drawn": len(views)},
        "popularity": {"asked": 2 * len(views), "drawn": 2 * len(views)},
    }
    for split in ("train", "val", "test"):
        of = lambda frame: len(frame.filter(pl.col("split") == split))  # noqa: B023 (called at once)
        assert of(sampled) == 3 * of(views) == 3 * manifest["events"][split]["item_view"]
        assert manifest["rows"][split]["category"] == of(views)
    assert sampled["event_id"].null_count() == len(sampled)
    assert set(sampled.select(at).rows()) == set(views.select(at).rows())
    own = ["hour", "session_position", "user_events_before", "hist_c2_id_1", "hist_event_id_1"]
    assert set(sampled.select(*at, *own).rows()) == set(views.select(*at, *own).rows())
    # nothing of the session, nothing from the future, nothing twice
    touched = set(log.select("user_id", "session_id", "item_id").rows())
    assert not touched & set(sampled.select("user_id", "session_id", "item_id").rows())
    born = dict(log.group_by("item_id").agg(pl.col("stime").min().dt.date()).rows())
    assert all(born[item] <= time.date() for item, time in sampled.select("item_id", "stime").rows())
    # the items' own columns
    listed = dict(
        log.unique("item_id").select("item_id", pl.struct("price", "c1_id", "c2_id", "brand_id", "color")).rows()
    )
    for row in sampled.rows(named=True):
        assert listed[row["item_id"]] == {key: row[key] for key in ("price", "c1_id", "c2_id", "brand_id", "color")}


def test_category_negatives_are_of_the_views_category(tmp_path):
    _, rows = made(tmp_path, random_log(1500, items=120), negatives={"category": 1})
    # A view is followed by what was sampled beside it.
    rows = rows.with_columns(pl.col(name).shift(1).alias(f"view_{name}") for name in ("c1_id", "c2_id", "event_id"))
    sampled = rows.filter(pl.col("sampled") == "category")
    assert sampled["view_event_id"].unique().to_list() == ["item_view"]
    assert (sampled["c2_id"] == sampled["view_c2_id"]).mean() == 1
    assert sampled["c2_id"].n_unique() == 12


def test_own_columns_of_items_are_sampled_with_them_and_others_stay_the_views(tmp_path):
    log = random_log(1500, items=120).with_columns(
        pl.col("item_id").mod(7).alias("maker"),
        pl.col("user_id").mod(11).alias("country"),
        quantity=pl.int_range(pl.len()) % 5,
    )
    manifest, rows = made(tmp_path, log, negatives=BOTH, defaults={"categorical": ["maker", "country"]})
    assert manifest["item_columns"] == ["item_id", "price", "c1_id", "c2_id", "brand_id", "color", "maker", "item"]
    assert (rows["maker"] == rows["item_id"] % 7).all()
    assert (rows["country"] == rows["user_id"] % 11).all()


def test_scarce_categories_fall_back_to_coarser_ones(tmp_path):
    # Item 1 is alone in its c2, items 1 and 2 share a c1; item 3 appears only the next day.
    frame = pl.DataFrame({
        "user_id": [1, 2, 3, 3], "session_id": "s", "event_id": "item_view", "item_id": [1, 2, 3, 1],
        "c1_id": [1, 1, 1, 1], "c2_id": [1, 2, 1, 1], "split": ["train", "val", "test", "test"],
    }).with_columns(seconds([0, 60, DAY, DAY + 60]))  # fmt: skip
    defaults = {"categorical": ["item_id"]}
    manifest, rows = made(tmp_path, frame, negatives={"category": 1}, defaults=defaults)
    drawn = dict(
        zip(
            rows.filter(pl.col("sampled").is_not_null())["user_id"],
            rows.filter(pl.col("sampled").is_not_null())["item_id"],
            strict=True,
        )
    )
    assert drawn == {1: 2, 2: 1, 3: 2}  # user 3 touched items 1 and 3, so both views get the last one left
    assert manifest["negatives"]["category"] == {"asked": 4, "drawn": 4}


def test_popular_items_are_drawn_more_often_with_exponent_three_quarters():
    # On the views' day item 1 has 16 events and item 2 has one: 16^0.75 = 8 draws to 1. Item 3 was popular the day
    # before, item 4 comes the day after, item 5 was touched.
    first = MONDAY // DAY
    counts = pl.DataFrame({"item": [1, 2, 3, 4, 5], "day": [1, 1, 0, 2, 1], "events": [16, 1, 99, 99, 4]})
    counts = counts.with_columns(pl.col("day") + first)
    views = pl.DataFrame({"session": [7] * 4500, "item": [5] * 4500}).with_columns(seconds([DAY + 100] * 4500))
    sampler = Sampler(counts.select("item", "day"), Popularity(counts), {"popularity": 1})
    ((kind, drawn),) = sampler.draw(views, np.array([7 << 32 | 5], dtype=np.uint64), np.random.default_rng(0))
    assert kind == "popularity"
    assert set(drawn.tolist()) <= {1, 2, 3}  # 3 only after eight draws of the touched item in a row: (2.83 / 11.83)^8
    assert (drawn == 1).mean() == pytest.approx(8 / 9, abs=0.02)


def test_same_bytes_each_run_other_draws_with_another_seed(tmp_path):
    log = random_log(600)
    ingest = write_ingest(tmp_path / "ingest", log)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_features({"negatives": {"category": 1, "seed": seed}}, ingest, tmp_path / name, FEATURES, EVENTS)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_what_is_written_is_what_the_encoder_says(tmp_path):
    manifest, rows = made(tmp_path, random_log(900), negatives=BOTH, features={"min_count": 2})
    encoder = Encoder.from_json((tmp_path / "a/encoder.json").read_text())
    assert (manifest["categorical"], manifest["sizes"], manifest["numerical"]) == (
        encoder.categorical, encoder.sizes, encoder.numerical)  # fmt: skip
    for split in ("train", "val", "test"):
        part = pl.read_parquet(tmp_path / f"a/rows/{split}.parquet")
        assert part["row"].to_list() == list(range(len(part)))
        assert set(part["split"]) == {split}
        ids, values = (
            np.load(tmp_path / f"a/{kind}/{split}.npy", allow_pickle=False) for kind in ("categorical", "numerical")
        )
        expected = encoder.transform(part)
        np.testing.assert_array_equal(ids, expected[0])
        np.testing.assert_array_equal(values, expected[1])
        assert ids.dtype == np.int32
        assert (ids < np.array(manifest["sizes"])).all()
        assert 0 <= values.min() <= values.max() <= 1
        assert manifest["rows"][split]["all"] == len(part)
    assert json.loads((tmp_path / "a/manifest.json").read_text()) == manifest | {"event_names": list(EVENTS)}
    kinds = {name: str(dtype) for name, dtype in rows.schema.items() if name in manifest["added"]}
    assert kinds == manifest["added"]


def test_the_encoder_never_saw_val_or_test(tmp_path):
    log = random_log(900, items=200)
    manifest, _ = made(tmp_path, log)
    place = manifest["categorical"].index("item_id")
    train = pl.read_parquet(tmp_path / "a/rows/train.parquet")
    assert manifest["sizes"][place] == 2 + train["item_id"].n_unique()
    for split in ("val", "test"):
        part = pl.read_parquet(tmp_path / f"a/rows/{split}.parquet")
        ids = np.load(tmp_path / f"a/categorical/{split}.npy")[:, place]
        unseen = ~part["item_id"].is_in(train["item_id"].unique().to_list()).to_numpy()
        assert unseen.any()
        np.testing.assert_array_equal(ids == 0, unseen)
        np.testing.assert_array_equal(part["cold_item"].to_numpy(), unseen)
        assert manifest["rows"][split]["cold_item_share"] == pytest.approx(unseen.mean())
    assert not train["cold_item"].any()


def test_a_table_of_single_rows_is_a_log_too(tmp_path):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {"user_id": np.arange(90), "item_id": 0, "age": rng.integers(17, 90, 90), "job": rng.choice(["a", "b"], 90)}
    )
    frame = frame.with_columns(seconds(range(90)), session_id=pl.lit("0"), event_id=pl.lit("row"))
    defaults = {"categorical": ["job"], "numerical": ["age"]}
    manifest, rows = made(
        tmp_path, frame, negatives={"category": 1, "popularity": 1}, defaults=defaults, events=("row",)
    )
    assert len(rows) == 90
    assert rows["sampled"].null_count() == 90
    assert manifest["sizes"] == [4]
    assert manifest["events"]["train"] == {"row": 30}
    assert manifest["negatives"] == {kind: {"asked": 0, "drawn": 0} for kind in ("category", "popularity")}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"categorical": ["brnd_id"]}, r"no feature brnd_id \(closest: brand_id"),
        ({"numerical": ["user_item_lik_before"]}, r"no feature user_item_lik_before \(closest: user_item_like_before"),
        ({"numerical": ["seen_befor"]}, r"closest: seen_before"),
        ({"categorical": ["event_id"]}, "event_id cannot be a feature: it is what the labels"),
        ({"categorical": ["sampled", "split"]}, "sampled cannot be a feature.*split cannot be a feature"),
        ({"categorical": ["hist_split_1"]}, "hist_split_1 cannot be a feature: it tells the time"),
        ({"categorical": ["item"]}, "use item_id"),
        ({"numerical": ["sequence_length"]}, "sequence_length cannot be a feature: it counts later events too"),
        ({"history": {"brnd": 2}}, r"history: brnd: 2.*closest: brand_id"),
        ({"history": {"c2_id": 0}}, "history: c2_id: 0"),
        ({"history": ["c2_id"]}, "write {column: how many}"),
        ({"texts": {"titel": 2}}, "texts: titel: 2; it needs a column"),
        ({"texts": {"color": 0}}, "texts: color: 0"),
        ({"texts": ["color"]}, "features.texts is .*write {column: how many}"),
        ({"categorical": "item_id"}, "write a list of names"),
        ({"categorcal": ["item_id"]}, "unknown keys: categorcal"),
        ({"categorical": [], "numerical": [], "history": {}}, "no feature is declared"),
        ({"min_count": 0}, "min_count is 0"),
        ({"numerical": ["color"]}, "color is String; a numerical feature is integer, number or boolean"),
        ({"categorical": ["price_ratio"], "numerical": []}, "price_ratio is Float64; a categorical feature is"),
        ({"categorical": ["hist_c2_id_1"]}, "hist_c2_id_1 is declared twice"),
    ],
)
def test_features_that_are_refused(features, message):
    with pytest.raises(FeatureError, match=message):
        Declared.read(features, FEATURES, dict(number(random_log(30)).schema), EVENTS)


def test_an_own_key_replaces_the_datasets(tmp_path):
    manifest, _ = made(tmp_path, random_log(300), features={"numerical": ["price"], "history": {}, "log1p": []})
    assert manifest["numerical"] == ["price"]
    assert manifest["categorical"] == FEATURES["categorical"]
    assert manifest["log1p"] == []


def test_earlier_texts_are_written_to_the_rows_and_encoded_by_nobody_here(tmp_path):
    plain, _ = made(tmp_path, random_log(300))
    manifest, rows = made(tmp_path, random_log(300), name="b", features={"texts": {"color": 2}})
    assert {"hist_color_1", "hist_color_2"} <= set(rows.columns) and rows["hist_color_1"].null_count() < len(rows)
    same = ("categorical", "numerical", "sizes", "encoder")
    assert [manifest[key] for key in same] == [plain[key] for key in same]


def test_what_cannot_work_leaves_the_old_folder(tmp_path):
    ingest = write_ingest(tmp_path / "ingest", random_log(300).with_columns(split=pl.lit("train")))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("")
    for negatives in ({"categori": 1}, {"category": -1}, {"popularity": 0.5}, {"seed": "x"}):
        with pytest.raises(SettingsError, match="recommend.negatives"):
            make_features({"negatives": negatives}, ingest, tmp_path / "out", FEATURES, EVENTS)
    with pytest.raises(EmptySplit, match="no rows in val, test"):
        make_features({}, ingest, tmp_path / "out", FEATURES, EVENTS)
    with pytest.raises(FileNotFoundError, match="run its ingest stage"):
        make_features({}, tmp_path / "nothing", tmp_path / "out", FEATURES, EVENTS)
    log = random_log(300).with_columns(price=pl.when(pl.col("item_id") == 100).then(float("nan")).otherwise("price"))
    with pytest.raises(EncodingError, match="price is NaN or infinite in"):
        make_features({}, write_ingest(tmp_path / "nan", log), tmp_path / "out", FEATURES, EVENTS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
