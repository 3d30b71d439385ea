"""Each rule on a log whose violations can be counted by eye."""

from datetime import UTC, datetime

import polars as pl
import pytest

from tasks.datasets import _rules as rules
from tasks.validate import _count, _judged

MAY, JUNE = datetime(2023, 5, 3, 12, tzinfo=UTC), datetime(2023, 6, 1, tzinfo=UTC)
LOG = pl.LazyFrame(
    {
        "user_id": [1, 1, 1, 2],
        "item_id": [7, 7, 8, 8],
        "event_id": ["item_view", "item_view", "share", None],
        "price": [1.0, float("nan"), float("inf"), None],
        "c0_id": [5, 5, 5, None],
        "c0_name": ["Women", "Men", None, "Kids"],
        "c1_id": [50, None, None, 51],
        "stime": [MAY, MAY, MAY, JUNE],
        "sequence_id": ["a", "a", "b", "a"],
        "sequence_length": [2, 2, 3, 1],
    }
)


@pytest.mark.parametrize(
    ("rule", "number", "holds"),
    [
        (rules.in_set("event_id", ["item_view"]), 1, False),  # "share"; the null is for not_null to find
        (rules.in_set("event_id", ["item_view", "share"]), 0, True),
        (rules.between("price", 1, 5000), 2, False),  # NaN and infinity
        (rules.between("price", 1, 5000).as_warning(), 2, False),
        (rules.finite("price"), 2, False),
        (rules.not_null("event_id"), 1, False),
        (rules.not_null("user_id"), 0, True),
        (rules.implies("c1_id", "c0_id"), 1, False),  # the last row
        (rules.implies("c0_id", "item_id"), 0, True),
        (rules.present("user_id", "size_id", "color"), 2, False),
        (rules.present("user_id", "item_id"), 0, True),
        (rules.null_rate("price", 0.25, 0.02), 0.25, True),  # NaN is a value
        (rules.null_rate("c1_id", 0.4, 0.02), 0.5, False),
        (rules.share("event_id", "item_view", 0.48, 0.05), 0.5, True),  # 0.456 to 0.504
        (rules.share("event_id", "item_view", 0.40, 0.05), 0.5, False),
        (rules.at_least_rows(4), 4, True),
        (rules.at_least_rows(5), 4, False),
        (rules.inside_month("stime"), 1, False),  # May and one month more
        (rules.inside_month("stime", "2023-05"), 1, False),  # one row outside
        (rules.inside_month("stime", "2023-05", "2023-06"), 0, True),
        (rules.one_name_per_id("c0_id", "c0_name"), 1, False),  # 5 is Women and Men
        (rules.one_name_per_id("item_id", "user_id"), 1, False),  # 8, not 7
        (rules.one_name_per_id("user_id", "c0_id"), 0, True),  # user 2 has none
        (rules.distinct_key(["user_id", "item_id"]), 0.25, False),
        (rules.distinct_key(["user_id", "item_id"], most=0.25), 0.25, True),
        (rules.distinct_key(["event_id", "c1_id"], most=0), 0.0, True),  # null is a key like another
        (rules.whole_sequences(), 1, False),  # (1, b) says 3 and has 1; (1, a) and (2, a) are two sequences
        (rules.at_most_per_user(2), 1, False),
        (rules.at_most_per_user(3), 0, True),
        (rules.never("x", "no 8 for 2", pl.col("item_id") == pl.col("user_id") * 4, "item_id", "user_id"), 1, False),
    ],
    ids=lambda value: value.name if isinstance(value, rules.Rule) else None,
)
def test_number_and_judgement_by_hand(rule, number, holds):
    _, _, (finding,) = _count(LOG, [rule])
    assert finding.value == pytest.approx(number)
    assert finding.applies
    assert (rule.name not in _judged("log", [finding], None)) == holds


def test_null_keys_are_equal():
    log = pl.LazyFrame({"user_id": [1, 1, 1], "session_id": [None, None, "a"]})
    _, _, (finding,) = _count(log, [rules.distinct_key(["user_id", "session_id"])])
    assert finding.value == pytest.approx(1 / 3)


@pytest.mark.parametrize("buckets", [1, 2, 7])
def test_buckets_change_nothing(monkeypatch, buckets):
    log = pl.LazyFrame({"user_id": [u for u in range(40) for _ in range(u)], "name": [f"n{i % 6}" for i in range(780)]})
    monkeypatch.setattr("tasks.validate.GROUPS_AT_ONCE", 39 // buckets)
    _, _, (heavy, named) = _count(log, [rules.at_most_per_user(20), rules.one_name_per_id("user_id", "name")])
    assert heavy.value == 19  # users 21 to 39
    assert [group["user_id"] for group in heavy.examples] == [39, 38, 37]
    assert named.value == 38  # all but the user of one row


def test_bots_warn_unless_told_to_refuse():
    assert rules.at_most_per_user(10).warning
    assert not rules.at_most_per_user(10, refuse=True).warning


def test_message_does_not_list_a_whole_vocabulary():
    text = rules.in_set("event_id", map(str, range(5000))).text
    assert len(text) < 100
    assert "4990 more" in text


def test_rate_of_a_very_long_log_is_estimated_and_says_so(monkeypatch):
    log = pl.LazyFrame({"user_id": [*range(4500), *range(500)]})  # 500 of 5000 rows repeat
    monkeypatch.setattr("tasks.validate.GROUPS_AT_ONCE", 100)
    _, _, (rate, heavy) = _count(log, [rules.distinct_key(["user_id"]), rules.at_most_per_user(1)])
    assert rate.value == pytest.approx(0.1, abs=0.03)
    assert rate.seen == pytest.approx(8 / 45, abs=0.02)
    assert "of the groups" in rate.line()
    assert (heavy.value, heavy.seen) == (500, 1.0)  # a count is never estimated
