from zlib import crc32

import numpy as np
import polars as pl
import pytest
import torch
from _described import ENTRY, write_described
from safetensors.torch import load_file

from tasks.files import read_json
from tasks.recommender import load, train_recommender
from tasks.recommenders import retrieval, towers
from tasks.recommenders._impressions import impressions
from tasks.recommenders._item_fields import ItemFields, hashed
from tasks.settings import SettingsError
from tasks.training import Training

SIZES = {"embedding": 8, "widths": [16], "width": 8}
DMTL = ENTRY | {
    "method": "towers/dmtl",
    "settings": SIZES | {"expert_widths": [16], "tower_widths": [8]},
    "training": {"epochs": 2, "batch": 128, "lr": 5e-3},
}
PROTOTYPES = ENTRY | {"method": "towers/prototypes", "settings": SIZES | {"prototypes": 6, "negatives": 16}}
ALS = {"method": "retrieval/als", "data": "log", "pairs": {"events": ["item_like"]}, "settings": {"width": 8}}
ENTRIES = {"pair": ENTRY, "read": DMTL, "many": PROTOTYPES, "ids": ALS}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_described(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def made(log, tmp_path_factory):
    """name -> the folder of a trained recommender; read only."""
    root = tmp_path_factory.mktemp("made")
    for name in ENTRIES:
        train_recommender(ENTRIES, name, log, root / name, root / "checkpoints" / name)
    return root


def test_items_that_training_never_saw_are_found_by_their_fields(made):
    found = {name: read_json(made / name / "metrics.json")["test"] for name in ENTRIES}
    same = {read_json(made / name / "run.json")["requests_sha256"] for name in ENTRIES}
    assert len(same) == 1  # the methods are measured on equal requests
    assert found["ids"]["recall_cold@20"] == 0
    for name in ("pair", "read", "many"):
        assert found[name]["recall_cold@20"] > 0.25, (name, found[name]["recall_cold@20"])
        assert found[name]["recall@20"] > read_json(made / name / "metrics.json")["popularity"]["recall@20"]


def test_the_catalogue_holds_every_item_of_the_log(log, made):
    items = pl.read_parquet(made / "pair/packed/bundle/items.parquet")
    events = pl.read_parquet(log / "events/**/*.parquet", hive_partitioning=False)
    assert items["item"].to_list() == sorted(events["item_id"].unique())
    later = events.filter(pl.col("split") != "train")["item_id"]
    liked = events.filter(pl.col("split") == "train", pl.col("event_id") == "item_like")["item_id"].unique()
    cold = set(later) - set(liked)
    assert cold and items.filter(pl.col("item").is_in(list(cold)))["count"].sum() == 0


def test_what_is_served_has_neither_teacher_nor_queue(made):
    for name in ("pair", "read", "many"):
        held = set(load_file(made / name / "packed/bundle/model.safetensors"))
        assert held and not any(key.split(".")[0] in ("teacher", "queue", "frequency", "towers") for key in held)
    assert read_json(made / "read/packed/bundle/recommender.json")["labels"]["read_share"] > 0


def test_a_user_is_known_by_fields_and_history(log, made):
    served = load(made / "pair/packed")
    family = towers.Family("pair", "two_tower", ENTRY, log)
    user = family.users[0]
    likes = family.log().filter(pl.col("user") == user)["item"].to_list()
    asked = pl.DataFrame({"user": [user, None, None, 12345], "history": [None, likes, [], None]},
                         schema={"user": pl.Int64, "history": pl.List(pl.Int64)})  # fmt: skip
    lists = served.lists(asked, 10)
    assert lists["known"].to_list() == ["user", "history", "nothing", "nothing"]
    assert not set(lists["items"][0]) & set(likes) and not set(lists["items"][1]) & set(likes)
    group = (likes[0] - 100) // 2 % 3
    assert np.mean([(item - 100) // 2 % 3 == group for item in lists["items"][1]]) > 0.5
    # What is popular, in the order of the counts.
    counts = dict(pl.read_parquet(made / "pair/packed/bundle/items.parquet").iter_rows())
    shown = [counts[item] for item in lists["items"][2]]
    assert shown == sorted(shown, reverse=True) and shown[0] == max(counts.values())


def test_a_stored_history_answers_as_the_same_history_given(log, made):
    served = load(made / "pair/packed")
    family = towers.Family("pair", "two_tower", ENTRY, log)
    history = family._trained.filter(pl.col("user") == 3)["item"].to_numpy()
    given = family.items["item"].gather(history).to_list()
    user = family.users[3]
    asked = pl.DataFrame({"user": [user, user], "history": [None, given]},
                         schema={"user": pl.Int64, "history": pl.List(pl.Int64)})  # fmt: skip
    lists = served.lists(asked, 10)
    assert lists["items"][0].to_list() == lists["items"][1].to_list()
    row, item = served.model.seen(pl.Series([user, 5], dtype=pl.Int64))
    assert set(row.tolist()) == {0} and item.tolist() == history.tolist()


def test_validation_is_as_served(log, made):
    served = load(made / "pair/packed")
    family = towers.Family("pair", "two_tower", ENTRY, log)
    rows = family.rows("val")
    lists = served.lists(rows, 20)
    hits = [
        len(set(items) & set(truth)) / len(truth) for items, truth in zip(lists["items"], rows["truth"], strict=True)
    ]
    assert family._ranked(served.model.model, rows, "cpu")["recall@20"] == pytest.approx(np.mean(hits), abs=1e-6)


def test_an_example_knows_only_what_came_before(log):
    family = towers.Family("pair", "two_tower", ENTRY, log)
    rows, settings = family._bought(Training()), Training(batch=7)
    examples = towers.Examples(family, rows, settings, 3)
    pairs = family._trained
    for row in (0, 5, 40):
        found = examples._user(np.array([row]))
        before = pairs.head(row).filter(pl.col("user") == pairs["user"][row])["item"].tail(family.length).to_list()
        kept = found["history"][0][found["kept"][0]]
        assert torch.equal(kept, family.item[torch.tensor(before, dtype=torch.int64)])
    # Random items are of the training split.
    drawn = next(iter(examples))["negative_id"]
    trained = family.items["trained"].to_numpy()
    assert trained[examples.drawn[drawn]].all() and len(examples.drawn) == trained.sum() < len(trained)


def test_the_same_step_draws_the_same_after_a_resume(log):
    family = towers.Family("pair", "two_tower", ENTRY, log)
    make = lambda: towers.Examples(family, family._bought(Training()), Training(batch=16), 4)
    whole = make()
    third = [batch for _, batch in zip(range(3), whole, strict=False)][2]
    part = make()
    next(iter(part))
    next(iter(part))
    again = make()
    again.load_state_dict(part.state_dict())
    for name, value in next(iter(again)).items():
        assert torch.equal(value, third[name]), name


def test_impressions_by_hand(tmp_path):
    # Views at 0, 10 (then liked at 30) and 90 seconds; the last event of a session has no dwell.
    folder = tmp_path / "events/bucket=0"
    folder.mkdir(parents=True)
    rows = [("item_view", 1, 0), ("item_view", 2, 10), ("item_like", 2, 30), ("item_view", 3, 90)]
    frame = pl.DataFrame(rows, schema=["event_id", "item_id", "at"], orient="row")
    frame = frame.with_columns(user_id=1, session=pl.lit(1), split=pl.lit("train"),
                               stime=pl.from_epoch("at", time_unit="s"))  # fmt: skip
    frame.write_parquet(folder / "part.parquet")
    rows, told = impressions(tmp_path, "item_id", ["item_like"], "event", "here")
    assert rows["item"].to_list() == [1, 2, 3] and rows["reading"].to_list() == [0, 1, 0]
    rows, told = impressions(tmp_path, "item_id", ["item_like"], "dwell", "here")
    # Dwells 10, 20 and 60; the 99th percentile is 59.2, and the mean with it (10 + 20 + 59.2) / 3.
    assert told["cap_seconds"] == pytest.approx(59.2) and told["theta_seconds"] == pytest.approx(89.2 / 3)
    assert rows["item"].to_list() == [1, 2] and rows["reading"].to_list() == [0, 1]
    with pytest.raises(SettingsError, match="0 of 3 training impressions were read"):
        impressions(tmp_path, "item_id", ["offer_make"], "event", "here")


def test_item_fields_by_hand():
    events = pl.DataFrame({"c0_id": [1, 1, 2], "price": [0.0, 7.0, 7.0], "name": ["Red shoe", "red", None]})
    fields = ItemFields.fit(events.lazy(), {"min_count": 2}, "here")
    assert fields.fields.sizes == (3, 3) and fields.fields.dense == 1  # unknown, missing, and what was seen twice
    ids, numbers = fields.encode(events)
    assert ids[:, 0].tolist() == [2, 2, 0]
    assert ids[:, 1].tolist() == [0, 2, 2]  # log2(8) * 2 = 6 twice, 0 once
    assert numbers[:, 0].tolist() == [0, 1, 1]
    assert (ids[2, 2:] == 0).all() and (ids[0, 2:4] > 0).all() and ids[0, 2] == ids[1, 2]
    again = ItemFields.from_json(fields.to_json())
    assert all(np.array_equal(a, b) for a, b in zip(again.encode(events), (ids, numbers), strict=True))
    assert again.to_json() == fields.to_json()


def test_words_are_hashed_alike_everywhere():
    found = hashed(pl.Series(["Blue, blue  SHOE!", "", None, "a b c"]), 2, 100)
    assert found[0].tolist() == [1 + crc32(b"blue") % 99] * 2
    assert found[1].tolist() == found[2].tolist() == [0, 0] and (found[3] > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": {"item": ["nothing"]}}, "the log has no column nothing"),
        ({"fields": {"words": None, "item": [], "numbers": []}}, "items have none"),
        ({"fields": {"user": ["age"]}}, "no column age"),
        ({"fields": {"history": 0}}, "1 or more; got 0"),
        ({"fields": {"colour": 1}}, "no setting 'colour'"),
        ({"reading": "event"}, "is for towers/dmtl"),
    ],
)
def test_refusals(log, change, message):
    with pytest.raises(SettingsError, match=message):
        towers.Family("pair", "two_tower", ENTRY | change, log).train({}, None, "cpu")


def test_a_log_of_ids_is_refused(log, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/train.parquet").write_bytes(b"")
    with pytest.raises(SettingsError, match="take a method of retrieval/"):
        towers.Family("pair", "two_tower", ENTRY, tmp_path)
    with pytest.raises(SettingsError, match="event or dwell"):
        _ = towers.Family("read", "dmtl", DMTL | {"reading": "eyes"}, log)._read


def test_requests_are_those_of_retrieval(log):
    mine = towers.Family("pair", "two_tower", ENTRY, log).rows("test")
    theirs = retrieval.Family("ids", "als", ALS, log).rows("test")
    assert mine.equals(theirs)
