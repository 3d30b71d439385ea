"""Sequences: keyed by user and session, in time order, ids of training, targets that follow their histories."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from ingested import EVENTS, random_log, write_ingest

from tasks.contents import groups_of, words_of
from tasks.sequences import (
    SequenceError,
    Vocabulary,
    clicks,
    intents,
    read_log,
    sequences,
)

DAY = datetime(2023, 5, 1, tzinfo=UTC)
SPLIT = pl.Enum(["train", "val", "test"])


def log(*rows: tuple, **columns) -> pl.DataFrame:
    """Rows of (user, session, item, minute, split), maybe an event."""
    names = ["user", "session", "item", "minute", "split", "event_id"][: len(rows[0])]
    frame = pl.DataFrame(list(rows), schema=names, orient="row")
    frame = frame.with_columns(stime=pl.lit(DAY) + pl.duration(minutes="minute"), split=pl.col("split").cast(SPLIT))
    return frame.drop("minute").with_columns(**{name: pl.Series(values) for name, values in columns.items()})


SMALL = [
    (1, "a", 30, 0, "train"), (1, "a", 10, 1, "train"), (1, "a", 20, 2, "train"),
    (2, "a", 10, 0, "train"), (2, "a", 40, 3, "train"),
    (1, "b", 10, 60, "val"), (1, "b", 99, 61, "val"),
    (2, "b", 20, 90, "test"), (2, "b", 10, 91, "test"), (2, "b", 30, 92, "test"),
]  # fmt: skip


def test_sequences_by_hand():
    # Training items 10, 20, 30, 40 are 2, 3, 4, 5; item 99 of val is unknown, 1. Session a is two: one of each user.
    made = sequences(log(*SMALL), length=3)
    assert made.vocabulary.values.to_list() == [10, 20, 30, 40] and made.vocabulary.items == 5
    assert sorted(made.train.tolist()) == [[0, 0, 2, 5], [0, 4, 2, 3]]
    assert (
        made.val.items.tolist() == [[0, 0, 2]] and made.val.targets.tolist() == [[1]] and made.val.user.tolist() == [1]
    )
    assert (
        made.test.items.tolist() == [[0, 3, 2]]
        and made.test.targets.tolist() == [[4]]
        and made.test.user.tolist() == [2]
    )


def test_a_session_id_alone_is_no_key():
    with pytest.raises(SequenceError, match="sessions of different users share ids; add user"):
        sequences(log(*SMALL), key=["session"])


def test_rows_in_any_order_give_the_same():
    frame = log(*SMALL)
    one, two = sequences(frame, length=3), sequences(frame.sample(fraction=1, shuffle=True, seed=1), length=3)
    assert np.array_equal(one.train, two.train) and np.array_equal(one.test.items, two.test.items)


def test_history_of_a_user_crosses_splits_but_never_looks_ahead():
    made = sequences(log(*SMALL), key=["user"], length=9)
    assert made.val.items.tolist() == [[0, 0, 0, 0, 0, 4, 2, 3, 2]] and made.val.targets.tolist() == [[1]]
    assert made.test.items.tolist() == [[0, 0, 0, 0, 0, 2, 5, 3, 2]] and made.test.targets.tolist() == [[4]]
    assert sorted(made.train.tolist()) == [[0] * 8 + [2, 5], [0] * 7 + [4, 2, 3]]


def test_every_step_of_training_is_in_exactly_one_window():
    frame = random_log(1200, users=12)
    frame = frame.sort("stime").with_columns(
        user=pl.col("user_id"),
        item=pl.col("item_id"),
        split=pl.Series(["train"] * 1000 + ["val"] * 100 + ["test"] * 100),
    )
    frame = frame.with_columns(split=pl.col("split").cast(SPLIT))
    made = sequences(frame, key=["user"], length=7, collapse=False)
    found = sorted((a, b) for row in made.train for a, b in zip(row[:-1].tolist(), row[1:].tolist(), strict=True) if a)
    ids = dict(zip(made.vocabulary.values.to_list(), range(2, 10_000), strict=False))
    told = []
    for _, part in frame.filter(pl.col("split") == "train").sort("user", "stime", maintain_order=True).group_by("user"):
        row = [ids[item] for item in part["item"]]
        told += zip(row[:-1], row[1:], strict=True)
    assert found == sorted(told)
    assert made.train.shape[1] == 8 and len(np.unique(made.train)) > 50  # ids are not all equal


def test_an_item_twice_in_a_row_is_one_event():
    frame = log(*SMALL, (1, "b", 99, 62, "val"), (1, "b", 10, 63, "val"))
    assert sequences(frame, length=3).val.items.tolist() == [[0, 2, 1]]
    assert sequences(frame, length=3, collapse=False).val.items.tolist() == [[2, 1, 1]]


def test_the_same_item_in_the_next_session_stays():
    frame = log(*SMALL, (1, "c", 10, 200, "test"), (1, "c", 20, 201, "test"))
    rows = sequences(frame, length=3)
    assert [0, 0, 2] in rows.test.items.tolist()


def test_rare_items_share_the_unknown_id():
    made = sequences(log(*SMALL), length=3, min_count=2)
    assert made.vocabulary.values.to_list() == [10]
    assert sorted(made.train.tolist()) == [[0, 0, 2, 1], [0, 1, 2, 1]]


def long(count: int = 12) -> pl.DataFrame:
    """One session of training of `count` items, one of six in val, one in test."""
    rows = [(1, "a", 100 + i, i, "train") for i in range(count)]
    rows += [(1, "b", 200 + i, 100 + i, "val") for i in range(6)] + [
        (1, "c", 300 + i, 200 + i, "test") for i in range(6)
    ]
    return log(*rows)


def test_the_next_few_targets_follow_their_history():
    made = sequences(long(), length=5, least=5, steps=4, whole=True)
    # Items 100..111 are 2..13: targets 10..13 after 5..9, and 6..9 after 2..5.
    assert made.steps.items.tolist() == [[5, 6, 7, 8, 9], [0, 2, 3, 4, 5]]
    assert made.steps.targets.tolist() == [[10, 11, 12, 13], [6, 7, 8, 9]]
    assert made.val.items.tolist() == [[0, 0, 0, 14, 15]] and made.val.targets.tolist() == [[16, 17, 18, 19]]
    assert made.vocabulary.items == 1 + 24  # test's items have ids: their contents are known


def test_targets_of_a_split_are_events_of_that_split():
    rows = [(1, "a", 100 + i, i, "train") for i in range(8)] + [(1, "a", 200 + i, 50 + i, "val") for i in range(2)]
    rows += [(2, "b", 300 + i, 60 + i, "val") for i in range(6)] + [(2, "c", 400 + i, 90 + i, "test") for i in range(6)]
    made = sequences(log(*rows), length=5, least=5, steps=4, whole=True)
    assert made.val.user.tolist() == [2]  # session a has two events in val, not four


def test_groups_and_words():
    frame = log(*SMALL).with_columns(
        name=pl.col("item").replace_strict({10: "Red shoe", 20: "red HAT", 30: "apple", 40: "shoe", 99: "blue red"}),
        brand_name=pl.col("item").replace_strict(
            {10: "Apple", 20: None, 30: "apple", 40: None, 99: "Apple"}, return_dtype=pl.String
        ),
        c2_id=pl.col("item").replace_strict({10: 7, 20: 5, 30: 7, 40: None, 99: 9}, return_dtype=pl.Int64),
    )
    whole = sequences(frame, length=3, whole=True).vocabulary
    content, words = words_of(frame, whole, most=4)
    # In two or more training items: red, shoe, brand_name:apple (2, 3, 4 in some order by count and name).
    number = {"brand_name:apple": 2, "red": 3, "shoe": 4}
    assert words == 5
    assert content[2].tolist() == [number["red"], number["shoe"], number["brand_name:apple"], 0]
    assert content[4].tolist() == [1, number["brand_name:apple"], 0, 0]  # the fruit is seen once
    assert content[6].tolist() == [1, number["red"], number["brand_name:apple"], 0]  # an item of val has its words
    group, count = groups_of(frame, whole, "c2_id")
    assert count == 4 and group.tolist() == [0, 0, 2, 1, 2, 0, 3]
    with pytest.raises(SequenceError, match="none of name"):
        words_of(frame.drop("name"), whole, columns=["name"])


BOUGHT = [
    (1, "a", 10, 0, "train", "item_view"), (1, "a", 20, 1, "train", "item_like"), (1, "a", 20, 2, "train", "buy_start"),
    (1, "a", 30, 3, "train", "item_view"), (2, "b", 10, 0, "train", "item_view"), (2, "b", 20, 5, "train", "item_view"),
    (3, "c", 10, 9, "train", "buy_comp"), (3, "c", 10, 10, "train", "item_view"),
    (1, "d", 10, 100, "val", "item_view"), (1, "d", 10, 101, "val", "buy_comp"), (2, "e", 20, 100, "val", "item_view"),
    (1, "f", 10, 200, "test", "item_view"), (1, "f", 99, 201, "test", "buy_start"),
    (2, "g", 99, 200, "test", "item_view"),
    (9, "h", 10, 99, "train", "item_view"), (9, "h", 10, 100, "val", "item_view"),
]  # fmt: skip


def test_intents_end_before_the_purchase():
    seen = set()
    for seed in range(20):
        cases, vocabulary = intents(log(*BOUGHT), EVENTS, length=3, min_count=1, seed=seed)
        assert vocabulary.values.to_list() == [10, 20]
        train = cases["train"]
        assert train.user.tolist() == [1, 2] and train.label.tolist() == [1.0, 0.0]  # c has nothing before, h is in two
        assert set(train.events.ravel().tolist()) <= {0, 1, 2}  # no purchase is ever read
        seen.add(tuple(train.items[0].tolist()))
        assert cases["test"].items.tolist() == [[0, 0, 2], [0, 0, 1]] and cases["test"].label.tolist() == [1.0, 0.0]
        full = train.items[1].tolist() == [0, 2, 3]
        assert train.gaps[1].tolist() == ([0.0, 0.0, 300.0] if full else [0.0, 0.0, 0.0])
    assert seen == {(0, 0, 2), (0, 2, 3)}  # either moment before the purchase


def test_intents_need_both_kinds():
    with pytest.raises(SequenceError, match="of 2 sessions in val end in a purchase"):
        intents(log(*[row for row in BOUGHT if row[1] != "d"], (4, "i", 10, 100, "val", "item_view")), EVENTS)
    with pytest.raises(SequenceError, match="bought is no event"):
        intents(log(*BOUGHT), EVENTS, buys=["bought"])


def test_an_ingested_log_is_read(tmp_path):
    folder = write_ingest(tmp_path / "ingest", random_log())
    frame = read_log(folder, ["price", "no_such_column"])
    assert frame.columns == ["user", "session", "item", "stime", "event_id", "split", "price"]
    whole = sequences(frame, key=["user"])
    parts = sequences(read_log(write_ingest(tmp_path / "other", random_log(), buckets=5)), key=["user"])
    assert np.array_equal(whole.train, parts.train) and np.array_equal(whole.test.targets, parts.test.targets)
    distinct = frame.filter(pl.col("split") == "train")["item"].n_unique()
    assert whole.vocabulary.items == distinct + 1  # as many ids as training items, and the unknown one
    with pytest.raises(FileNotFoundError, match="run its ingest stage"):
        read_log(tmp_path)


def test_tables_of_clicks():
    train = pl.DataFrame({"s": [1, 1, 2, 2, 3, 3], "i": [5, 6, 5, 7, 6, 5], "t": [0.0, 1.0, 5.0, 6.0, 9.0, 9.5]})
    test = pl.DataFrame({"s": [4, 4], "i": [6, 8], "t": [20.0, 21.0]})
    made = clicks(train, test, {"session": "s", "item": "i", "stime": "t"}, val=0.34)
    assert made.filter(pl.col("split") == "val")["session"].unique().to_list() == [3]
    rows = sequences(made, key=["session"], length=2)
    assert sorted(rows.train.tolist()) == [[0, 2, 3], [0, 2, 4]]
    assert rows.val.targets.tolist() == [[2]] and rows.test.targets.tolist() == [[1]]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"unit": "sku"}, "no column sku; it has user"),
        ({"length": 0}, "length must be 1 or more"),
        ({"least": 1}, "least 2 or more"),
        ({"steps": 4, "least": 4}, "least 4, steps 4"),
        ({"least": 50}, "no sequence of 50 events or more lies in train"),
        ({"steps": 3, "least": 4}, "no sequence of 4 events or more lies in train"),
    ],
)
def test_what_cannot_be_made_is_refused(how, told):
    with pytest.raises(SequenceError, match=told):
        sequences(log(*SMALL), **how)


def test_a_split_without_cases_is_named():
    with pytest.raises(SequenceError, match="ends in test; widen the split"):
        sequences(log(*[row for row in SMALL if row[4] != "test"]))


def test_unknown_values_and_nulls_share_a_row():
    vocabulary = Vocabulary.of(pl.Series("v", ["b", "a", "b", None]))
    assert vocabulary.encode(pl.Series(["a", "b", "z", None])).tolist() == [2, 3, 1, 1]
    assert Vocabulary.of(pl.Series("v", ["a"]), least=2).encode(pl.Series(["a"])).tolist() == [1]
