"""What the judge refuses, what it says, and what it leaves behind."""

import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from tasks.datasets._rules import at_most_per_user, between, distinct_key, finite, in_set, not_null, one_name_per_id
from tasks.validate import DataRejected, Unreadable, validate

EVENTS = ["item_view", "item_like"]
RULES = [not_null("event_id"), in_set("event_id", EVENTS), between("price", 1, 5000), finite("price")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def log(rows: int = 100, likes: int = 20, **columns) -> pl.DataFrame:
    start = datetime(2023, 5, 1, tzinfo=UTC)
    return pl.DataFrame(
        {
            "user_id": [i % 10 for i in range(rows)],
            "item_id": list(range(rows)),
            "event_id": ["item_like" if i < likes else "item_view" for i in range(rows)],
            "stime": [start + timedelta(minutes=i) for i in range(rows)],
            "price": [10.0 + i for i in range(rows)],
        }
    ).with_columns(**columns)


def where(row: int, column: str, value) -> pl.Expr:
    return pl.when(pl.col("item_id") == row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)


def test_good_log_gives_its_profile():
    profile = validate(log().lazy(), RULES)
    assert profile["rows"] == 100
    assert profile["events"] == {"item_like": 0.2, "item_view": 0.8}
    assert profile["nulls"] == dict.fromkeys(log().columns, 0.0)
    assert profile["rules"]["price between 1 and 5000"] == 0
    assert not profile["warnings"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (where(42, "price", float("nan")), ["price", "1 broken", "item_id=42", "price=nan"]),
        (where(42, "price", float("inf")), ["price", "1 broken", "item_id=42", "price=inf"]),
        (where(42, "price", 0.5), ["price lies between 1 and 5000: 1 broken", "price=0.5"]),
        (where(42, "event_id", "share"), ["event_id is one of item_view, item_like: 1 broken", "event_id=share"]),
        (where(42, "event_id", None), ["event_id is never null: 1 broken", "item_id=42"]),
    ],
)
def test_one_bad_row_refuses_the_log(change, words):
    with pytest.raises(DataRejected) as refused:
        validate(log().with_columns(change).lazy(), RULES, name="shop")
    for word in ["shop", "100 rows", "nothing was written", "tasks/datasets/shop.py", *words]:
        assert word in str(refused.value)


def test_all_faults_in_one_message_with_few_examples():
    broken = log(price=pl.lit(-1.0), event_id=pl.lit("share"))
    with pytest.raises(DataRejected, match="2 of 5 rules broken on 100 rows") as refused:
        validate(broken.lazy(), RULES)
    assert str(refused.value).count("100 broken") == 2
    assert str(refused.value).count("item_id=") == 6  # three rows for each


@pytest.mark.parametrize("frame", [log().clear(), log().filter(False)])
def test_empty_log_is_refused(frame):
    with pytest.raises(DataRejected, match="the log has rows: found 0"):
        validate(frame.lazy(), RULES)


def test_wrong_type_is_refused_not_raised():
    with pytest.raises(Unreadable, match="is_finite|price|str"):
        validate(log(price=pl.lit("cheap")).lazy(), RULES)


def test_absent_column_is_listed_never_passed_silently(folder):
    profile = validate(log().drop("price").lazy(), RULES, folder / "report")
    assert profile["not_applicable"] == ["price between 1 and 5000", "price finite"]
    assert "price finite" not in profile["rules"]
    found = {f["name"]: f["applies"] for f in json.loads((folder / "report/report.json").read_text())["findings"]}
    assert found["price finite"] is False
    assert found["event_id in set"] is True


def test_warning_is_named_and_refuses_nothing():
    profile = validate(log(user_id=pl.lit(4)).lazy(), [at_most_per_user(50), between("price", 1, 50).as_warning()])
    assert "user_id=4 rows=100" in profile["warnings"][0]
    assert "59 broken" in profile["warnings"][1]


def test_group_rules_show_their_groups():
    broken = log(item_id=pl.lit(3), name=pl.col("event_id"), stime=pl.lit(None, pl.Datetime("us", "UTC")))
    with pytest.raises(DataRejected) as refused:
        validate(broken.lazy(), [one_name_per_id("item_id", "name"), distinct_key(["item_id", "event_id"])])
    assert "each item_id has one name; the number is how many ids have several: 1 broken, e.g. item_id=3" in str(
        refused.value
    )
    assert "found 0.98, allowed ..0.002, e.g. item_id=3 event_id=item_view rows=80" in str(refused.value)


def test_drift_is_measured_against_the_reference():
    accepted = validate(log(likes=20).lazy(), RULES)
    assert validate(log(likes=24).lazy(), RULES, reference=accepted, drift=0.25)["rows"] == 100
    with pytest.raises(DataRejected) as refused:
        validate(log(likes=26).lazy(), RULES, reference=accepted, drift=0.25)
    assert "the share of item_like" in str(refused.value)
    assert "0.2: found 0.26, allowed 0.15..0.25" in str(refused.value)
    assert "item_view" not in str(refused.value)  # 0.74 of 0.8 is near enough
    assert "drift" in str(refused.value)
    assert validate(log(likes=26).lazy(), RULES, reference=accepted, drift=0.4)["rows"] == 100


def test_event_that_vanishes_or_appears_is_drift():
    only, both = validate(log(likes=0).lazy(), RULES), validate(log(likes=20).lazy(), RULES)
    with pytest.raises(DataRejected, match="share of item_like .* found 0.2, allowed 0..0.005"):
        validate(log(likes=20).lazy(), RULES, reference=only)
    with pytest.raises(DataRejected, match="share of item_like .* found 0, allowed 0.15..0.25"):
        validate(log(likes=0).lazy(), RULES, reference=both)


def test_report_is_the_same_bytes_and_kept_for_a_refusal(folder):
    texts = []
    for _ in range(2):
        with pytest.raises(DataRejected, match="report.json"):
            validate(log(price=pl.lit(float("nan"))).lazy(), RULES, folder / "report", "shop")
        texts.append((folder / "report/report.json").read_text())
    assert texts[0] == texts[1]
    report = json.loads(texts[0])
    assert report["accepted"] is False
    assert "one row" in report["seen"]
    finite_found = next(f for f in report["findings"] if f["name"] == "price finite")
    assert finite_found["value"] == 100
    assert finite_found["examples"][0]["price"] == "nan"


def test_data_docs_show_the_rules_and_say_what_was_judged(folder):
    validate(log().lazy(), RULES, folder / "report", "shop")
    (suite,) = (folder / "report/docs/expectations").glob("*.html")
    assert "one row with the numbers that Polars counted" in suite.read_text()
    (page,) = (folder / "report/docs/validations").rglob("*.html")
    assert "profiled by Polars" in page.read_text()
    assert "price lies between 1 and 5000" in page.read_text()
    assert (folder / "report/docs/index.html").exists()


def test_two_rules_of_one_name_are_a_mistake():
    with pytest.raises(ValueError, match="'price finite'"):
        validate(log().lazy(), [finite("price"), finite("price")])
