import shutil

import polars as pl
import pytest
import torch
from _likers import entries, write_log

from models.recommend._ranking import rank
from tasks.bundled import UnsafeArtifact
from tasks.files import read_json
from tasks.judge_lists import judge_lists, popular
from tasks.recommender import kind_of, load, train_recommender
from tasks.recommenders import retrieval, session
from tasks.settings import SettingsError

SASREC = {"method": "session/sasrec", "data": "log", "settings": {"width": 16, "length": 8},
          "training": {"epochs": 6, "batch": 32, "lr": 1e-2}}  # fmt: skip
LIGHTGCN = {"method": "retrieval/lightgcn", "data": "log", "settings": {"width": 8},
            "training": {"epochs": 4, "batch": 64, "lr": 1e-2}}  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def made(log, tmp_path_factory):
    """name -> the folder of a trained recommender; read only."""
    root = tmp_path_factory.mktemp("made")
    told = entries(next=SASREC, graph=LIGHTGCN)
    for name in told:
        train_recommender(told, name, log, root / name, root / "checkpoints" / name)
    return root


@pytest.mark.parametrize("name", ["similar", "next", "graph"])
def test_what_is_served_beats_popularity_and_is_as_reported(made, name):
    metrics, about = read_json(made / name / "metrics.json"), read_json(made / name / "run.json")
    assert metrics["test"]["recall@10"] > metrics["popularity"]["recall@10"] + 0.1
    rows = pl.read_parquet(made / name / "requests.parquet")
    assert rows["recall@10"].mean() == pytest.approx(metrics["test"]["recall@10"])
    assert rows["popularity recall@10"].mean() == pytest.approx(metrics["popularity"]["recall@10"])
    assert len(rows) == about["requests"]
    assert not (made / "checkpoints" / name).exists()
    assert (made / name / "extra/recall.png").read_bytes()[:4] == b"\x89PNG"
    steps = pl.read_csv(made / name / "curve.csv")
    assert steps.is_empty() == (name == "similar") == (not (made / name / "extra/curve.png").is_file())  # ALS is fitted


def test_served_lists_are_the_models_own_ranking(log, made):
    family = retrieval.Family("graph", "lightgcn", LIGHTGCN, log)
    served = load(made / "graph/packed")
    users = torch.arange(len(family.users))
    expected = rank(served.model.model.vectors(), users, family.train_log, None, at=(7,))
    found = served.lists(pl.DataFrame({"user": family.users}), 7)
    assert set(found["known"]) == {"user"}
    assert found["items"].to_list() == [family.items.gather(row).to_list() for row in expected.items]
    assert torch.allclose(torch.tensor(found["scores"].to_list()), expected.scores, atol=1e-6)


def test_a_new_user_is_known_by_the_history_and_a_stranger_gets_what_is_popular(made):
    served = load(made / "similar/packed")
    items = served.items["item"]
    own = items.filter(items % 6 == items[0] % 6).head(3).to_list()  # of one group
    found = served.lists(pl.DataFrame({"user": [None, None, 10**9], "history": [own, [10**9], None]}), 5)
    assert found["known"].to_list() == ["history", "nothing", "nothing"]
    assert all(item % 6 == own[0] % 6 and item not in own for item in found["items"][0][:3])
    best = served.items.sort("count", descending=True, maintain_order=True)["item"].head(5).to_list()
    assert found["items"][1].to_list() == found["items"][2].to_list() == best


def test_a_session_is_answered_by_what_follows(made):
    served = load(made / "next/packed")
    found = served.lists(pl.DataFrame({"history": [[100, 106], [102]]}), 12)  # of 45 items
    assert 112 in found["items"][0].to_list()
    assert 108 in found["items"][1].to_list()
    # What came long ago, or is not known, changes nothing that the model can see.
    longer = served.lists(pl.DataFrame({"history": [[104] * 90 + [100, 106] * 4]}), 3)
    assert longer["items"].to_list() == served.lists(pl.DataFrame({"history": [[100, 106] * 4]}), 3)["items"].to_list()


def test_only_allowed_items_are_shown_and_lists_may_be_short(made):
    served = load(made / "similar/packed")
    found = served.lists(pl.DataFrame({"user": [7]}), 10, allowed=pl.Series([100, 102, 104, 106]))
    assert set(found["items"][0]) <= {100, 102, 104, 106}
    assert found["items"].list.len().to_list() == found["scores"].list.len().to_list()
    assert served.lists(pl.DataFrame({"user": pl.Series([], dtype=pl.Int64)})).is_empty()


def test_requests_of_a_wrong_kind_are_refused(made):
    served = load(made / "similar/packed")
    with pytest.raises(ValueError, match="neither `user` nor `history`, only id"):
        served.lists(pl.DataFrame({"id": [1]}))
    with pytest.raises(ValueError, match="`user` must be Int64.* got String"):
        served.lists(pl.DataFrame({"user": ["7"]}))
    with pytest.raises(ValueError, match="k = 0"):
        served.lists(pl.DataFrame({"user": [7]}), 0)


def test_a_changed_file_is_not_loaded(made, tmp_path):
    shutil.copytree(made / "similar/packed", tmp_path / "packed")
    (tmp_path / "packed/bundle/items.parquet").write_bytes(b"other")
    with pytest.raises(UnsafeArtifact, match=r"items.parquet changed since it was registered; nothing was loaded"):
        load(tmp_path / "packed")


def test_an_interrupted_run_ends_as_an_unbroken_one(log, made, tmp_path, monkeypatch):
    steps = 0

    class Stop(Exception):
        pass

    from tasks import training

    def stopping(*given):
        for terms in fit(*given):
            nonlocal steps
            steps += 1
            if steps == 15:
                raise Stop
            yield terms

    fit = training.fit
    entry = entries(graph=LIGHTGCN | {"training": LIGHTGCN["training"] | {"checkpoint_steps": 4}})
    monkeypatch.setattr(training, "fit", stopping)
    with pytest.raises(Stop):
        train_recommender(entry, "graph", log, tmp_path / "graph", tmp_path / "checkpoints")
    assert not (tmp_path / "graph").exists()
    monkeypatch.setattr(training, "fit", fit)
    train_recommender(entry, "graph", log, tmp_path / "graph", tmp_path / "checkpoints")
    for file in ("model.safetensors", "items.parquet"):
        same = (made / "graph/packed/bundle" / file).read_bytes() == (
            tmp_path / "graph/packed/bundle" / file
        ).read_bytes()
        assert same, file


def test_requests_of_retrieval_hold_only_what_is_new(log):
    family = retrieval.Family("similar", "als", entries()["similar"], log)
    rows = family.rows("test")
    for user, history, truth in rows.iter_rows():
        assert not set(history) & set(truth) and truth, user
    likes = pl.read_parquet(log / "events" / "**" / "*.parquet", hive_partitioning=False)
    likes = likes.filter(pl.col("event_id") == "item_like", pl.col("split") == "test")
    assert set(rows["truth"].explode()) <= set(likes["item_id"])


def test_requests_of_sessions_are_the_last_event_after_the_others(log):
    rows = session.Family("next", "sasrec", SASREC, log).rows("test")
    assert rows["truth"].list.len().unique().to_list() == [1]
    # Within a session items follow each other in the group's order.
    assert all((history[-1] - 100 + 6) % 90 == truth[0] - 100 for _, history, truth in rows.iter_rows())


def test_judging_by_hand():
    lists = pl.DataFrame({"items": [["a", "b", "c"], ["z"], []]}, schema={"items": pl.List(pl.String)})
    requests = pl.DataFrame({"user": [1, 2, 3], "history": [["x"], [], []], "truth": [["c", "q"], ["z"], ["a"]]})
    train = pl.DataFrame({"user": [1, 2, 2], "item": ["a", "a", "z"]})
    rows, found = judge_lists(lists, requests, train, (2, 3))
    assert rows["recall@3"].to_list() == [0.5, 1, 0]
    assert rows["recall@2"].to_list() == [0, 1, 0]
    assert rows["mrr@3"].to_list() == pytest.approx([1 / 3, 1, 0])
    # One of two found, in place 3: .5 against 1 + .63093.
    assert rows["ndcg@3"].to_list() == pytest.approx([0.5 / 1.63093, 1, 0], abs=1e-5)
    assert found["recall@3"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="2 lists for 3 requests"):
        judge_lists(lists[:2], requests, train, (2,))


def test_popularity_leaves_out_the_history_unless_it_may_repeat():
    log = pl.DataFrame({"user": [1, 2, 3, 1, 2, 3], "item": [5, 5, 5, 6, 6, 7]})
    requests = pl.DataFrame({"user": [1, 9], "history": [[5], []]})
    assert popular(requests, log, 2, repeats=False)["items"].to_list() == [[6, 7], [5, 6]]
    assert popular(requests, log, 2, repeats=True)["items"].to_list() == [[5, 6], [5, 6]]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"method": "als", "data": "log"}, "method is 'als'; write <kind>/<method>.*the kinds are retrieval, session"),
        ({"method": "retrieval/asl", "data": "log"}, "models/recommend.retrieval has no 'asl'; closest: als"),
        ({"method": "retrieval/als"}, "lacks data"),
        ({"method": "retrieval/als", "data": "log", "epochs": 3}, "no setting 'epochs'; it has: method, data, pairs"),
        ({"method": "retrieval/als", "data": "log", "settings": {"widht": 3}}, "widht.*it accepts: width"),
        ({"method": "retrieval/als", "data": "log", "pairs": {"events": ["buy"]}}, "no event is buy; the log has"),
        ({"method": "retrieval/als", "data": "log", "pairs": {"item": "sku"}}, "no column 'sku'; it has"),
        ({"method": "retrieval/bpr", "data": "log", "training": {"epoch": 3}}, "training has no setting epoch"),
        ({"method": "session/mercatran", "data": "log"}, "mercatran needs more than ids of items"),
    ],
)  # fmt: skip
def test_bad_entries_are_refused_before_any_training(log, tmp_path, entry, words):
    with pytest.raises((SettingsError, LookupError, TypeError, ValueError), match=words):
        train_recommender({"x": entry}, "x", log, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_an_entry_that_is_not_there():
    with pytest.raises(SettingsError, match="recommenders.models has no 'y'; it has: similar"):
        train_recommender(entries(), "y", None, None, None)
    assert kind_of("retrieval/als", "x") == ("retrieval", "als")


def test_pairs_of_an_interactions_data_set(tmp_path):
    from tasks.interactions import interactions

    draw = torch.Generator().manual_seed(1)
    user = torch.arange(40).repeat_interleave(10)
    item = torch.cat([torch.randperm(15, generator=draw)[:10] * 2 + u % 2 for u in range(40)])
    rows = pl.DataFrame(
        {"user_id": [f"u{u}" for u in user.tolist()], "item_id": item.numpy(), "time": None, "split": None}
    )
    rows = rows.cast({"time": pl.Int64, "split": pl.String})
    interactions(rows.lazy(), tmp_path / "ingest")
    entry = {"method": "retrieval/item_knn", "data": "pairs", "settings": {"neighbours": 10}}
    found = train_recommender({"knn": entry}, "knn", tmp_path / "ingest", tmp_path / "knn", None)
    assert found["test"]["recall@10"] > found["popularity"]["recall@10"]
    served = load(tmp_path / "knn/packed").lists(pl.DataFrame({"user": ["u0", None], "history": [None, [1, 3]]}), 3)
    assert served["known"].to_list() == ["user", "history"]
    assert [item % 2 for item in served["items"].explode()] == [0, 0, 0, 1, 1, 1]
    with pytest.raises(SettingsError, match="holds pairs already"):
        train_recommender({"knn": entry | {"pairs": {"item": "x"}}}, "knn", tmp_path / "ingest", tmp_path / "no", None)
