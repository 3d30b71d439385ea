import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tasks.datasets import merrec, sample
from tasks.datasets._schema import COLUMNS

ROOT = Path(sample.__file__).parents[2]
KEYS = ["user_id", "session_id", "item_id"]
VIEW = pl.col("event_id") == "item_view"


def made(folder, **settings):
    folder.mkdir(exist_ok=True)
    sample.fetch(folder, Path("sample.py"), **settings)
    return folder


def digests(folder):
    return {p.relative_to(folder): hashlib.md5(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.parquet"))}


def measured(rule, log):
    """The number of a rule, as validation counts it."""
    if rule.groups is None:
        return log.select(rule.measure).item()
    groups = log if rule.groups.null_keys else log.drop_nulls(list(rule.groups.keys))
    total = groups.group_by(rule.groups.keys).agg(broken=rule.groups.broken.cast(pl.Int64))["broken"].sum()
    return total / len(log) if rule.groups.per_row else total


def broken(rules, log):
    numbers = {rule.name: (measured(rule, log), rule.low, rule.high) for rule in rules if not rule.warning}
    outside = lambda number, low, high: (low is not None and number < low) or (high is not None and number > high)
    return {name: number for name, (number, low, high) in numbers.items() if outside(number, low, high)}


def auc(score, label):
    rank = pl.Series(score).rank("average").to_numpy()
    label = np.asarray(label, dtype=bool)
    positives = label.sum()
    return (rank[label].sum() - positives * (positives + 1) / 2) / (positives * (~label).sum())


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return made(tmp_path_factory.mktemp("sample"), rows=300_000, seed=7)


@pytest.fixture(scope="module")
def log(raw):
    return sample.read(raw).collect()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return made(tmp_path_factory.mktemp("small"), rows=30_000, seed=1)


# ---------------------------------------------------------------- statistics (figures of May 2023)


def test_rows_columns_and_types(log):
    assert len(log) == 300_000
    assert dict(log.schema) == {name: pl.Series(dtype=dtype).dtype for name, dtype in COLUMNS.items()}
    assert [name for name in log.columns if log[name].null_count()] == [
        *("c2_id", "c2_name", "brand_id", "brand_name", "size_id", "size_name", "color")
    ]


@pytest.mark.parametrize("size", ["log", "small"])
def test_its_own_expectations_hold(size, log, small):
    assert broken(sample.expectations(), log if size == "log" else sample.read(small).collect()) == {}


def test_quantiles_of_users_sessions_and_prices(log):
    user = log.group_by("user_id").len()["len"]
    assert user.median() == 12
    assert user.mean() == pytest.approx(63.23, rel=0.1)
    assert user.quantile(0.95) == pytest.approx(275, rel=0.15)
    assert user.quantile(0.99) == pytest.approx(791, rel=0.15)
    assert (user == 1).mean() == pytest.approx(0.1331, abs=0.02)
    assert (user < 5).mean() == pytest.approx(0.3136, abs=0.02)
    time = pl.col("stime")
    session = log.group_by("user_id", "session_id").agg(
        rows=pl.len(), lasts=(time.max() - time.min()).dt.total_seconds()
    )
    assert session["rows"].median() == 2
    assert session["rows"].mean() == pytest.approx(5.02, rel=0.05)
    assert session["rows"].quantile(0.95) == pytest.approx(18, abs=1)
    assert session["rows"].quantile(0.99) == pytest.approx(39, abs=4)
    assert len(session) / len(user) == pytest.approx(12.6, rel=0.1)
    assert session["lasts"].median() == pytest.approx(37, rel=0.15)
    assert session["lasts"].quantile(0.95) == pytest.approx(890, rel=0.15)
    assert log["price"].median() == pytest.approx(25, rel=0.1)
    assert log["price"].mean() == pytest.approx(62.69, rel=0.1)
    assert log["price"].quantile(0.95) == pytest.approx(225, rel=0.15)
    assert log["price"].quantile(0.99) == pytest.approx(636, rel=0.15)
    assert (log["price"] % 5 == 0).mean() > 0.5


def test_items(log):
    item = log.group_by("item_id").len()["len"]
    assert item.median() == 2
    assert item.mean() == pytest.approx(5.82, rel=0.25)  # smaller samples reach further back for unseen items
    assert (item == 1).mean() == pytest.approx(0.388, abs=0.04)
    assert (item < 5).mean() == pytest.approx(0.7117, abs=0.04)
    assert (item < 10).mean() == pytest.approx(0.8559, abs=0.04)
    repeats = 1 - log.select("user_id", "item_id").n_unique() / len(log)
    assert repeats == pytest.approx(0.2553, abs=0.01)
    # An item is one listing: nothing about it changes, and its title is made of its brand, product and condition.
    about = ["product_id", "name", "price", "c2_name", "brand_name", "size_id", "color", "shipper_id"]
    assert log.select("item_id", *about).n_unique() == len(item)
    title = log.filter(pl.col("c2_name").is_not_null() & pl.col("brand_name").is_not_null()).select(
        brand=pl.col("name").str.starts_with(pl.col("brand_name")),
        product=pl.col("name").str.contains(pl.col("c2_name").str.to_lowercase(), literal=True),
    )
    assert title["brand"].all()
    assert title["product"].all()


def test_categories(log):
    share = dict(log["c0_name"].value_counts(normalize=True).iter_rows())
    assert share["Women"] == pytest.approx(0.3383, abs=0.03)
    assert share["Toys & Collectibles"] == pytest.approx(0.1881, abs=0.03)
    assert share["Men"] == pytest.approx(0.0896, abs=0.02)
    tree = log.select("c0_id", "c1_id", "c2_id").unique()
    assert tree.drop_nulls().group_by("c2_id").agg(pl.col("c1_id").n_unique())["c1_id"].max() == 1
    assert tree.group_by("c1_id").agg(pl.col("c0_id").n_unique())["c0_id"].max() == 1
    assert tree.select("c0_id").n_unique() < tree.select("c1_id").n_unique() < tree.select("c2_id").n_unique()
    views = log.filter(VIEW).sort("user_id", "stime")
    before = views.select("c2_id", leaf=pl.col("c2_id").shift().over("user_id", "session_id")).drop_nulls()
    assert (before["leaf"] == before["c2_id"]).mean() == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize(("size", "slack"), [("log", 0.15), ("small", 0.6)])
def test_days_are_even_and_a_third_of_the_last_rows_is_cold(size, slack, log, small):
    frame = (log if size == "log" else sample.read(small).collect()).with_columns(day=pl.col("stime").dt.day())
    days = frame["day"].value_counts()["count"]
    assert len(days) == 31
    assert days.min() > (1 - slack) * days.mean()
    assert days.max() < (1 + slack) * days.mean()
    train, test = frame.filter(pl.col("day") <= 25), frame.filter(pl.col("day") >= 29)
    assert 1 - test["item_id"].is_in(train["item_id"].implode()).mean() == pytest.approx(0.3275, abs=0.06)
    assert 1 - test["user_id"].is_in(train["user_id"].implode()).mean() == pytest.approx(0.0635, abs=0.03)


def test_session_ids_repeat_across_users(log):
    pairs = log.select("user_id", "session_id").n_unique()
    assert log["session_id"].n_unique() < 0.2 * pairs
    assert log["sequence_id"].n_unique() < 0.2 * log.select("user_id", "sequence_id").n_unique()


def test_exact_duplicates_are_rare_but_there(log):
    assert 1 - log.n_unique() / len(log) == pytest.approx(0.00084, abs=0.0003)


def test_steps_follow_a_view_of_the_same_session(log):
    first = log.filter(VIEW).group_by(KEYS).agg(viewed=pl.col("stime").min())
    steps = log.filter(~VIEW).join(first, on=KEYS, how="left")
    assert (steps["stime"] > steps["viewed"]).all()  # False or null would both fail
    assert steps["viewed"].null_count() == 0
    bought = log.filter(pl.col("event_id") == "buy_comp").select(KEYS).unique()
    started = log.filter(pl.col("event_id") == "buy_start").select(KEYS).unique()
    assert len(bought.join(started, on=KEYS, how="anti")) == 0


# ---------------------------------------------------------------- determinism


def test_same_settings_same_bytes_in_another_process_with_other_threads(tmp_path):
    here = digests(made(tmp_path / "here", rows=20_000, seed=3))
    there = tmp_path / "there"
    there.mkdir()
    code = "import sys; from pathlib import Path; from tasks.datasets.sample import fetch; "
    code += "fetch(Path(sys.argv[1]), Path('x'), rows=20_000, seed=3)"
    subprocess.run([sys.executable, "-c", code, there], check=True, cwd=ROOT, env={"POLARS_MAX_THREADS": "1"})
    assert digests(there) == here
    assert digests(made(tmp_path / "again", rows=20_000, seed=3)) == here


def test_a_shard_does_not_depend_on_the_shards_before_it(raw):
    market = sample._Market(300_000, 7, "2023-05-01", 31)
    size = pl.scan_parquet(raw / "events-00000.parquet").select(pl.len()).collect().item()
    blocks = sample._blocks(market)
    next(blocks)
    second, truth = sample._frames(market, next(blocks), 300_000 - size)
    assert_frame_equal(second, pl.read_parquet(raw / "events-00001.parquet"))
    assert_frame_equal(truth, pl.read_parquet(raw / "truth" / "views-00001.parquet"))


def test_views_do_not_depend_on_how_users_are_cut():
    market = sample._Market(1_000_000, 5, "2023-05-01", 31)
    whole = sample._views(market, np.arange(600))
    parts = [sample._views(market, np.arange(0, 200)), sample._views(market, np.arange(200, 600))]
    for name in ("time", "position", "ordinal"):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts]))


def test_another_seed_means_other_users_of_the_same_kind(small, tmp_path):
    one, two = sample.read(small).collect(), sample.read(made(tmp_path / "two", rows=30_000, seed=2)).collect()
    assert one.schema == two.schema
    assert len(one) == len(two)
    assert not set(one["user_id"]) & set(two["user_id"])
    assert broken(sample.expectations(), two) == {}


def test_no_table_entry_is_near_a_rounding_edge():
    """So that a mathematical library with another last bit rounds every entry alike."""
    normal = [sample.SD * sample.NormalDist().inv_cdf((place + 0.5) / 65536) for place in range(32768, 65536)]
    logistic = [sample.UNIT / (1 + math.exp(12 - place / sample.LOGIT)) for place in range(20 * sample.LOGIT)]
    exponential = [-65536 * math.log1p(-(place + 0.5) / 65536) for place in range(65536)]
    scales = [(*sample.VIEWS_OF_USER, 1), (*sample.VIEWS_OF_SESSION, 1), (*sample.SECONDS, 1000), (*sample.DOLLARS, 1)]
    powers = [
        scale * math.exp(mu + sigma * (place / sample.SD - 5))
        for mu, sigma, scale in scales
        for place in range(10 * sample.SD)
    ]
    for values in (normal, logistic, exponential, powers):
        value = np.array([v for v in values if v < 1 << 33])
        margin = np.abs(value % 1 - 0.5)
        assert (margin > 8 * np.spacing(value)).all()


def test_hash_by_hand():
    # The first output of splitmix64 from seed 0 is 0xE220A8397B1DCDAF; its state is then the golden-ratio constant.
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    key = np.uint64((golden - sample.zlib.crc32(b"any") * golden) & mask)
    assert sample._draw("any", key)[0] == 0xE220A8397B1DCDAF


# ---------------------------------------------------------------- hidden truth


def test_truth_has_every_first_view_once(raw, log):
    truth = sample.best_scores(raw).collect()
    views = log.filter(VIEW).select(KEYS).unique()
    assert len(truth) == len(views) == len(truth.join(views, on=KEYS, how="semi"))


@pytest.mark.parametrize(
    ("step", "low", "high"),
    [
        ("item_like", 0.75, 0.80),
        ("item_add_to_cart_tap", 0.78, 0.86),
        ("offer_make", 0.82, 0.92),
        ("buy_start", 0.82, 0.92),
        ("buy_comp", 0.84, 0.95),
    ],
)
def test_truth_is_calibrated_and_ranks(raw, log, step, low, high):
    happened = log.filter(pl.col("event_id") == step).select(KEYS).unique().with_columns(label=True)
    truth = sample.best_scores(raw).collect().join(happened, on=KEYS, how="left")
    score, label = truth[f"p_{step}"].cast(pl.Float64).to_numpy(), truth["label"].fill_null(False).to_numpy()
    for part in np.array_split(np.argsort(score), 5):
        expected, spread = score[part].sum(), math.sqrt((score[part] * (1 - score[part])).sum())
        assert abs(label[part].sum() - expected) < 4 * spread + 1
    assert low < auc(score, label) < high


def test_view_scores_tell_views_from_sampled_items(raw, log):
    rng = np.random.default_rng(0)
    views = log.filter(VIEW & (pl.col("stime").dt.day() >= 29)).unique(KEYS, maintain_order=True).sample(5000, seed=1)
    views = views.filter(pl.col("c2_id").is_not_null()).select("user_id", "session_id", "item_id", "stime", "c2_id")
    pool = log.filter(VIEW).select("item_id", "c2_id")
    leaf = {key: group["item_id"].to_numpy() for (key,), group in pool.group_by("c2_id")}
    near = views.with_columns(item_id=pl.Series([rng.choice(leaf[c2]) for c2 in views["c2_id"]]))
    far = views.with_columns(item_id=pl.Series(rng.choice(pool["item_id"].to_numpy(), len(views))))
    real, near, far = (sample.view_scores(raw, frame).to_numpy() for frame in (views, near, far))
    label = np.repeat([True, False], len(views))
    assert auc(np.concatenate([real, near]), label) > 0.65
    assert auc(np.concatenate([real, far]), label) > 0.85
    # The score is a ratio of densities: over negatives as often sampled as assumed it averages to about one.
    assert np.concatenate([near, far]).mean() == pytest.approx(1, abs=0.35)


def test_nothing_is_viewed_before_it_is_listed(raw, log):
    views = log.filter(VIEW).sample(20_000, seed=0)
    assert (sample.view_scores(raw, views) > 0).all()
    before = views.with_columns(pl.col("stime") - pl.duration(days=60))
    assert (sample.view_scores(raw, before) == 0).mean() > 0.5  # most were listed in the last two months


def test_ids_can_be_turned_back():
    market = sample._Market(1_000_000, 11, "2023-05-01", 31)
    number = np.array([0, 1, 4095, 10**7])
    leaf, place = np.array([0, 3, 50, 100]), np.array([-5000, 0, 1, 10**6])
    np.testing.assert_array_equal(market.user_number(market.user_id(number)), number)
    for back, there in zip(market.item_place(market.item_id(leaf, place)), (leaf, place), strict=True):
        np.testing.assert_array_equal(back, there)
    assert len(set(market.user_id(np.arange(10_000)).tolist())) == 10_000


# ---------------------------------------------------------------- small parts, by hand


def test_systematic_sampling_by_hand():
    half = np.full(4, sample.UNIT // 2)
    # Starting at 0 the line passes 1/2, 1, 3/2, 2: it crosses a whole number at the second and at the fourth element.
    assert sample._fire(half, np.arange(4), 0).tolist() == [False, True, False, True]
    assert sample._fire(half, np.array([3, 2, 1, 0]), 0).tolist() == [True, False, True, False]
    assert sample._fire(half, np.arange(4), sample.UNIT // 2).tolist() == [True, False, True, False]


def test_base_rate_by_hand():
    # Four views with log-odds 0 that shall give one event: p = 1/4, log-odds -ln 3 = -281.2 of 256 units.
    base = sample._base(np.zeros(4, dtype=np.int64), np.ones(4, dtype=bool), sample.UNIT)
    assert base == -281


def test_sessions_are_pushed_apart_by_hand():
    # One owner, sessions of 10 at 0, 5 and 90, until 100: the second waits for the first. Then the last ends too late.
    start = sample._apart(np.array([0, 5, 95]), np.array([10, 10, 10]), np.zeros(3, dtype=np.int64), 100)
    assert start.tolist() == [0, 10, 90]
    start = sample._apart(np.array([50, 95, 97]), np.full(3, 10), np.array([0, 0, 1]), 100)
    assert start.tolist() == [50, 90, 90]


def test_chain_probability_by_hand(monkeypatch):
    # Two steps of even odds, the second surely after the first and never without it: both are seen with 1/2.
    market = sample._Market(30_000, 7, "2023-05-01", 31)
    views = sample._views(market, np.arange(100))
    far = 7 * sample.LOGIT
    monkeypatch.setattr(sample, "_logits", lambda market, views, at: np.zeros((5, len(at)), dtype=np.int64))
    monkeypatch.setattr(sample, "_base", lambda logit, possible, target: 0)
    monkeypatch.setattr(sample, "BONUS", ((0, 0, 0, 0), (-far, far, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)))
    chain = sample._chain(market, views)
    like, cart, _, start, bought = chain.probability[:, views.first]
    assert np.allclose(like, 0.5)
    assert np.allclose(cart, 0.5 / (1 + math.exp(7)) + 0.5 / (1 + math.exp(-7)))
    assert np.allclose(bought, start / 2)
    agree = chain.happens[0, views.first] == chain.happens[1, views.first]
    assert agree.mean() > 0.99
    assert not chain.happens[:, ~views.first].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 10}, "rows must be an integer in 1000"),
        ({"rows": 1e5}, "rows must be an integer"),
        ({"seed": -1}, "seed must be an integer"),
        ({"start": "May"}, "start must be a day such as 2023-05-01; got 'May'"),
        ({"start": "2023-05-20"}, "must end in that month"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, message):
    with pytest.raises(sample.SampleError, match=message):
        sample.fetch(tmp_path, Path("x"), **settings)
    assert not list(tmp_path.iterdir())


def test_other_days(tmp_path):
    log = sample.read(made(tmp_path / "june", rows=20_000, start="2023-06-01", days=10)).collect()
    assert len(log) == 20_000
    assert log["stime"].dt.date().n_unique() == 10
    assert broken([rule for rule in sample.expectations() if "null rate" not in rule.name], log) == {}


def test_a_market_of_another_seed_has_other_items():
    market = sample._Market(100_000, 1, "2023-05-01", 31)
    leaf, place = np.zeros(1000, dtype=np.int64), np.arange(1000)
    prices = [sample._look(m, leaf, place).price for m in (market, replace(market, seed=2))]
    assert np.corrcoef(*prices)[0, 1] < 0.5  # leaf and brand prices are the world's; the rest is the item's own
    assert sample.FEATURES is merrec.FEATURES
