import numpy as np
import polars as pl
import pytest

from tasks.labels import OneClass, Task, TaskError, check_names, find_leaks, label, read_tasks, require_two_classes
from tests.tasks.ingested import EVENTS, MONDAY, SPLIT, random_log, seconds, write_ingest

HOUR, DAY = 3600, 86_400
# user, session, item, event, seconds, split
LOG = [
    (1, 1, 1, "item_view", 0, "train"),
    (1, 1, 1, "item_like", 60, "train"),
    (1, 1, 2, "item_view", 90, "train"),
    (1, 2, 2, "item_like", DAY, "train"),
    (1, 2, 1, "item_view", DAY + 60, "train"),
    (2, 3, 1, "item_like", 10, "train"),
    (2, 3, 1, "item_view", 20, "train"),
    (2, 3, 1, "item_like", 20, "train"),
    (3, 4, 3, "item_view", 30, "train"),
    (3, 5, 3, "item_like", 9 * DAY, "val"),
    (3, 5, 3, "item_view", 9 * DAY, "val"),
]


def log() -> pl.DataFrame:
    columns = list(zip(*LOG, strict=True))
    frame = pl.DataFrame(
        dict(zip(("user", "session", "item", "event_id", "split"), columns[:4] + columns[5:], strict=True))
    )
    return frame.with_columns(seconds(columns[4]), pl.col("split").cast(SPLIT), price=pl.lit(2.0))


def rows() -> pl.DataFrame:
    """The views, and one sampled row."""
    views = log().filter(pl.col("event_id") == "item_view").with_columns(sampled=pl.lit(None, pl.String))
    other = views[:1].with_columns(
        event_id=pl.lit(None, pl.String), sampled=pl.lit("category"), item=pl.lit(9, pl.Int64)
    )
    return pl.concat([views, other])


SCHEMA = dict(rows().schema)


def task(given="event_id = 'item_view'", positive="event_id = 'item_like'", within="session", **more) -> Task:
    arguments = {"schema": SCHEMA, "features": ["price"], "events": EVENTS, "log": dict(log().schema)} | more
    return Task.read("liked", {"given": given, "positive": positive, "within": within}, **arguments)


@pytest.mark.parametrize(
    ("within", "expected"),
    [
        # the views of LOG in their order, then the sampled row
        ("session", [1, 0, 0, 1, 0, 1, -1]),  # the like at the view's own second counts
        ("user", [1, 1, 0, 1, 0, 1, -1]),  # item 2 a day later; user 3's like lies in val, the view in train
        ("23h", [1, 0, 0, 1, 0, 1, -1]),
        ("1d", [1, 1, 0, 1, 0, 1, -1]),
        ("59s", [0, 0, 0, 1, 0, 1, -1]),
        ("60s", [1, 0, 0, 1, 0, 1, -1]),  # the end of the window counts
    ],
)
def test_labels_by_hand(within, expected):
    found = label(task(within=within), rows(), log().lazy())
    assert found.dtype == np.int8
    assert found.tolist() == expected


def test_label_of_the_row_itself():
    seen = task("event_id = 'item_view' or sampled is not null", "event_id = 'item_view'", "row")
    assert label(seen, rows(), log().lazy()).tolist() == [1, 1, 1, 1, 1, 1, 0]  # null = 'item_view' is not true


def test_null_is_neither_given_nor_positive():
    frame = rows().with_columns(price=pl.Series([None, 1.0, 5.0, None, 5.0, 1.0, 5.0]))
    assert label(task(given="price > 2", features=[]), frame, log().lazy()).tolist() == [-1, -1, 0, -1, 0, -1, 0]
    dear = task("true", "not price <= 2", "row", features=[])
    assert label(dear, frame, log().lazy()).tolist() == [0, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("within", ["session", "user", "2d", "row"])
def test_order_of_rows_and_events_changes_no_label(within):
    order = np.random.default_rng(0).permutation(len(rows()))
    one, shuffled = task(within=within), log().sample(fraction=1, shuffle=True, seed=3).lazy()
    np.testing.assert_array_equal(label(one, rows()[order], shuffled), label(one, rows(), log().lazy())[order])


def test_random_log_against_a_plain_loop():
    events = random_log(400, users=8, items=15).with_columns(split=pl.lit("train", SPLIT))
    events = events.rename({"user_id": "user", "item_id": "item", "session_id": "session"})
    frame = events.filter(pl.col("event_id") == "item_view")
    time = lambda row: row["stime"].timestamp() - MONDAY
    for within, same, limit in (("session", ("user", "session", "item"), 1e9), ("36h", ("user", "item"), 36 * HOUR)):
        found = label(task(within=within), frame.with_columns(sampled=pl.lit(None, pl.String)), events.lazy())
        likes = [row for row in events.rows(named=True) if row["event_id"] == "item_like"]
        expected = [
            any(all(like[k] == row[k] for k in same) and 0 <= time(like) - time(row) <= limit for like in likes)
            for row in frame.rows(named=True)
        ]
        assert found.tolist() == expected
        assert 0 < sum(expected) < len(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"given": "event_id ="}, "given `event_id =`: .*unable to parse"),
        ({"given": "event_id = 'item_view"}, "cannot be read from"),
        ({"given": " "}, "is empty"),
        ({"given": "evnt_id = 'item_view'"}, r"no column evnt_id \(closest: event_id"),
        ({"positive": "event_id = 'item_liek'"}, r"no event 'item_liek' \(closest: item_like"),
        ({"positive": "event_id not in ('item_like', 'share')"}, "no event 'share'"),
        ({"positive": "'click' = event_id"}, "no event 'click'"),
        ({"positive": 'event_id = "item_like"'}, 'no column "item_like"; texts stand in single quotes'),
        ({"positive": "sampled is null"}, "no column sampled"),  # the events do not know it
        ({"given": "price"}, "gives Float64, not true or false"),
        ({"given": "price > 'a'"}, "cannot compare string with numeric"),
        ({"within": "week"}, "within is 'week'; it is row, session, user, or a duration such as 7d"),
        ({"within": "0d"}, "within is '0d'"),
        ({"within": "-1d"}, "within is '-1d'"),
        ({"given": "price > 1 -- and more"}, "cannot be read from"),
        ({"given": "price > 1; drop table rows"}, "cannot be read from"),
        ({"given": "price in (select price from self)"}, "no column select"),
        ({"given": "exists (select 1)"}, r"exists\(\) is not allowed"),
        ({"given": "(select count(*) from read_csv('/etc/passwd')) > 1"}, r"read_csv\(\) is not allowed"),
        ({"given": "sum(price) > 1"}, r"sum\(\) is not allowed"),
        ({"given": "row_number() over (order by price) = 1"}, r"row_number\(\) is not allowed"),
        ({"given": "columns('.*')"}, r"columns\(\) is not allowed"),
        ({"given": "*"}, "unable to parse"),
        ({"given": 7}, "given is 7, not a text"),
    ],
)
def test_declarations_that_are_refused(change, message):
    with pytest.raises(TaskError, match=message):
        task(**change)


def test_all_faults_are_told_at_once():
    with pytest.raises(TaskError, match="task liked: within is 'x'.*given.*nope.*positive.*nada"):
        task("nope = 1", "nada = 1", "x")
    for declaration, message in (
        (
            {"given": "true", "positiv": "true"},
            r"unknown key 'positiv' \(closest: positive.*positive is missing; within is missing",
        ),
        (None, "is not a declaration"),
    ):
        with pytest.raises(TaskError, match=message):
            Task.read("liked", declaration, SCHEMA, [], EVENTS)


@pytest.mark.parametrize(
    "expression",
    [
        "coalesce(price, 0) between 1 and 2",
        "lower(event_id) like 'item_%'",
        "case when price > 1 then true else false end",
        "cast(price as int) = 2",
        'event_id is not null and not ("user" = 1 or item in (2, 3))',
    ],
)
def test_what_expressions_may_say(expression):
    label(task(given=expression), rows(), log().lazy())


def test_a_cast_that_fails_on_a_value_names_the_task():
    with pytest.raises(TaskError, match="task liked: .*conversion"):
        label(task(given="cast(event_id as int) = 1"), rows(), log().lazy())


@pytest.mark.parametrize(
    ("positive", "within", "features", "leaked"),
    [
        ("price > 5", "row", ["item", "price"], "price"),
        ('"price" > 5', "row", ["price"], "price"),
        ("event_id = 'item_view'", "row", ["event_id"], "event_id"),
        ("event_id = 'item_like'", "session", ["price", "sampled", "event_id"], "event_id, sampled"),
    ],
)
def test_a_label_that_the_model_reads_is_refused(positive, within, features, leaked):
    with pytest.raises(TaskError, match=f"leaks, because the model reads {leaked};"):
        task(positive=positive, within=within, features=features)


def test_a_column_of_a_later_event_is_no_leak():
    assert task(positive="event_id = 'item_like' and price < 9", features=["price"]).within == "session"


def test_names():
    check_names(["view", "item_like"], ["offer_make"])
    with pytest.raises(TaskError, match="already tasks of the backbone: view; give"):
        check_names(["view", "item_like"], ["offer_make", "view"])
    for name in ("Offer", "2buy", "a@b", "", "a-b", "a\n", None):
        with pytest.raises(TaskError, match="is no task name"):
            check_names(["view"], [name])


def test_one_class_is_told_with_its_counts():
    seen = {"val": {"item_view": 7, "item_like": 2}}
    one = task(seen=seen)
    both = np.array([1, 0, -1], dtype=np.int8)
    assert require_two_classes(one, "val", both) is both
    with pytest.raises(
        OneClass,
        match="task liked has one class in val: 0 positive and 2 negative rows, 1 not asked.*item_view 7, item_like 2",
    ):
        require_two_classes(one, "val", np.array([0, 0, -1], dtype=np.int8))


def test_tasks_are_read_against_ingest_and_features(tmp_path):
    ingest = write_ingest(tmp_path / "ingest", random_log(100))
    manifest = {
        "categorical": ["c2_id"],
        "numerical": ["price"],
        "added": {"row": "UInt32", "sampled": "String", "hour": "Int64"},
        "event_names": EVENTS,
        "events": {"train": {"item_view": 5}},
    }
    like = {"given": "sampled is null and hour < 12", "positive": "event_id = 'item_like'", "within": "session"}
    (found,) = read_tasks({"like": like}, ingest, manifest)
    assert (found.name, found.within, found.seen["train"]) == ("like", "session", {"item_view": 5})
    bad = like | {"positive": "price > 3", "within": "row"}
    with pytest.raises(TaskError, match=r"task dear: .*leaks(.|\n)*task odd: given"):
        read_tasks({"like": like, "dear": bad, "odd": like | {"given": "x = 1"}}, ingest, manifest)
    for nothing in ({}, None):
        with pytest.raises(TaskError, match="no task is declared"):
            read_tasks(nothing, ingest, manifest)


def side(seed: int, n: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Categories: a copy of the label, a fair one, one id per row. Numbers: the label negated, noise."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.2).astype(np.int8)
    categorical = np.stack([y + 2, rng.integers(2, 9, n), np.arange(n)], axis=1).astype(np.int32)
    return categorical, np.stack([1.0 - y, rng.random(n)], axis=1).astype(np.float32), y


def test_features_that_tell_the_label_are_found():
    names = ["copy", "fair", "id", "negated", "noise"]
    assert find_leaks(side(1), side(2), names) == [("copy", 1.0), ("negated", 1.0)]
    masked = side(1)[2].copy()
    masked[:] = -1
    assert find_leaks((*side(1)[:2], masked), side(2), names) == []


def test_leak_auc_by_hand():
    # Scores 1 2 2 3 with labels 0 0 1 1: of four pairs three are right and one is tied, 3.5 / 4.
    number = np.repeat(np.array([[1.0], [2.0], [2.0], [3.0]], dtype=np.float32), 5, axis=0)
    y = np.repeat(np.array([0, 0, 1, 1], dtype=np.int8), 5)
    nothing = np.zeros((20, 0), dtype=np.int32)
    assert find_leaks((nothing, number, y), (nothing, number, y), ["x"], threshold=0.5) == [("x", 0.875)]
    assert find_leaks((nothing, -number, y), (nothing, number, y), ["x"], threshold=0.5) == [("x", 0.875)]
