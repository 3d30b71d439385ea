"""Logs of users and items: recognised, split and numbered."""

import json
from pathlib import Path

import polars as pl
import pytest

from models import build
from models.recommend._ranking import rank
from models.recommend.retrieval._log import Log
from tasks.datasets import interactions as dataset
from tasks.fetch import fetch
from tasks.interactions import NoPairs, interactions, load, main
from tasks.settings import SettingsError
from tasks.validate import DataRejected


def rows(users: dict[str, int], **columns) -> pl.LazyFrame:
    """Users with so many different items each, in the order of their times."""
    made = [(user, 100 + 7 * place, place) for user, count in users.items() for place in range(count)]
    frame = pl.DataFrame(made, schema=["user_id", "item_id", "time"], orient="row")
    return frame.with_columns(split=pl.lit(None, pl.String)).with_columns(**columns).lazy()


def pairs(folder: Path, split: str) -> list[tuple]:
    return pl.read_parquet(folder / "rows" / f"{split}.parquet").select("user_id", "item_id").rows()


def raw(folder: Path, **tables) -> Path:
    folder.mkdir()
    for name, table in tables.items():
        pl.DataFrame(table).write_parquet(folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (9, (7, 1, 1)), (10, (8, 1, 1)), (19, (17, 1, 1))],
)
@pytest.mark.parametrize("how", ["random", "last"])
def test_a_user_s_pairs_are_cut_as_recbole_cuts_them(tmp_path, count, sizes, how):
    interactions(rows({"anne": count, "other": 5}), tmp_path / "out", how=how)
    found = [sum(user == "anne" for user, _ in pairs(tmp_path / "out", split)) for split in ("train", "val", "test")]
    assert tuple(found) == sizes


def test_the_last_pairs_are_the_test_and_random_ones_are_not(tmp_path):
    log = rows({f"u{n}": 20 for n in range(10)})
    for how, expected in (("last", 1.0), ("random", 0.1)):
        interactions(log, tmp_path / how, how=how)
        tested = [item for _, item in pairs(tmp_path / how, "test")]
        assert sum(item >= 100 + 7 * 18 for item in tested) / len(tested) == pytest.approx(expected, abs=0.2)


def test_a_split_by_time_has_no_later_training_pair(tmp_path):
    manifest = interactions(rows({"a": 30, "b": 30, "c": 40}), tmp_path / "out", how="time")
    times = {s: pl.read_parquet(tmp_path / "out" / "rows" / f"{s}.parquet")["time"] for s in ("train", "val", "test")}
    assert times["train"].max() < times["val"].min() <= times["val"].max() < times["test"].min()
    assert manifest["pairs"]["test"] >= 10


def test_ids_are_numbered_without_gaps_in_their_order(tmp_path):
    manifest = interactions(rows({"zoe": 12, "bob": 3}), tmp_path / "out")
    assert (manifest["users"], manifest["items"]) == (2, 12)
    assert pl.read_parquet(tmp_path / "out" / "users.parquet").rows() == [(0, "bob"), (1, "zoe")]
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items["item"].to_list() == list(range(12))
    assert items["item_id"].to_list() == [100 + 7 * place for place in range(12)]
    logs = load(tmp_path / "out")
    assert {(log.users, log.items) for log in logs.values()} == {(2, 12)}
    assert sum(len(log) for log in logs.values()) == 15


def test_the_same_rows_in_any_order_give_the_same_bytes(tmp_path):
    log = rows({f"u{n}": 2 + n for n in range(12)}).collect()
    one = interactions(log.lazy(), tmp_path / "one", seed=3)
    two = interactions(pl.concat([log, log]).sample(fraction=1, shuffle=True, seed=1).lazy(), tmp_path / "two", seed=3)
    other = interactions(log.lazy(), tmp_path / "other", seed=4)
    assert one["digest"] == two["digest"] != other["digest"]
    assert (one["repeats_removed"], two["repeats_removed"]) == (0, log.height)


def test_a_given_split_is_kept_and_validation_cut_only_when_asked_for(tmp_path):
    split = pl.when(pl.col("time") % 4 == 3).then(pl.lit("test")).otherwise(pl.lit("train"))
    log = rows({"a": 20, "b": 4}, split=split)
    assert interactions(log, tmp_path / "whole")["pairs"] == {"train": 18, "val": 0, "test": 6}
    cut = interactions(log, tmp_path / "cut", val=0.2)
    assert cut["pairs"] == {"train": 15, "val": 3, "test": 6}  # floor(.2 * 15) of user a, floor(.2 * 3) of user b
    assert pairs(tmp_path / "cut", "test") == pairs(tmp_path / "whole", "test")
    assert load(tmp_path / "whole")["val"] is None


def test_a_pair_that_is_tested_again_stays_in_training(tmp_path):
    log = rows({"a": 6}, split=pl.lit("train"))
    again = log.with_columns(split=pl.lit("test")).filter(pl.col("time") > 2)
    new = rows({"b": 1}, split=pl.lit("test"))
    manifest = interactions(pl.concat([again, log, new]), tmp_path / "out")
    assert manifest["pairs"] == {"train": 6, "val": 0, "test": 1}
    assert manifest["users_without_training"] == 1
    assert manifest["items_without_training"] == 0


def test_rare_users_and_items_leave_until_none_is_left(tmp_path):
    log = pl.concat([rows({"a": 4, "b": 4, "c": 4}), rows({"d": 1}).with_columns(item_id=pl.lit(999, pl.Int64))])
    manifest = interactions(log, tmp_path / "out", least=2)
    assert (manifest["users"], manifest["items"], manifest["rare_removed"]) == (3, 4, 1)


@pytest.mark.parametrize(
    ("log", "settings", "said"),
    [
        (rows({}), {}, "no row"),
        (rows({"a": 1, "b": 1}), {}, "train and test need pairs"),
        (rows({"a": 5}, time=pl.lit(None, pl.Int64)), {"how": "last"}, "5 of 5 rows have no time"),
        (rows({"a": 5}, split=pl.lit("train")), {}, "train and test need pairs"),
        (rows({"a": 5}), {"how": "given"}, "5 of 5 rows have no split"),
        (rows({"a": 5}), {"least": 9}, "train and test need pairs"),
    ],
)
def test_a_log_that_cannot_be_split_leaves_nothing(tmp_path, log, settings, said):
    with pytest.raises(NoPairs, match=said):
        interactions(log, tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"how": "any"}, {"val": 1.0}, {"least": 0}])
def test_wrong_settings_are_refused(tmp_path, settings):
    with pytest.raises(SettingsError):
        interactions(rows({"a": 5}), tmp_path / "out", **settings)


def test_files_named_train_and_test_are_the_split_and_other_tables_are_left_out(tmp_path):
    folder = raw(
        tmp_path / "raw",
        train={"user": [0, 0, 7], "item": [3, 9, 3]},
        test={"user": [0, 7], "item": [4, 9]},
        trust={"user": [0], "friend": [7]},
    )
    frame = dataset.read(folder).collect()
    assert frame["split"].to_list() == ["test", "test", "train", "train", "train"]
    assert frame.schema["user_id"] == pl.Int64
    assert dataset.left_out(folder) == {"files without users and items": 1}


def test_a_train_file_alone_is_no_split(tmp_path):
    frame = dataset.read(raw(tmp_path / "raw", train={"user_id": ["x"], "item_id": [1], "time": [5]})).collect()
    assert frame.rows() == [("x", 1, 5, None, None)]


def test_lists_become_rows_in_their_order(tmp_path):
    frame = dataset.read(raw(tmp_path / "raw", sequences={"user": [1, 2], "items": [[5, 3], [9]]})).collect()
    assert frame.select("user_id", "item_id", "time").rows() == [(1, 5, 0), (1, 3, 1), (2, 9, 0)]


def test_lines_of_a_user_and_items(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "train.txt").write_text("0 5 3\n1 9 \n2\n")
    (tmp_path / "raw" / "test.txt").write_text("0 9\n")
    frame = dataset.read(tmp_path / "raw").collect().sort("split", "user_id", "time")
    assert frame.select("user_id", "item_id", "split").rows() == [
        ("0", "9", "test"), ("0", "5", "train"), ("0", "3", "train"), ("1", "9", "train"),
    ]  # fmt: skip


def test_a_csv_with_times_and_behaviours(tmp_path):
    source = tmp_path / "log.csv"
    source.write_text("who,what,when,did\na,1,30,view\na,2,10,buy\nb,1,20,buy\n")
    settings = {"source": str(source), "user": "who", "item": "what", "time": "when", "behaviour": "did",
                "behaviours": ["buy"]}  # fmt: skip
    profile = fetch("interactions", settings, tmp_path / "landing", tmp_path / "report")
    assert profile["rows"] == 2
    frame = dataset.read(tmp_path / "landing").collect()
    assert frame.rows() == [("a", 2, 10, "buy", None), ("b", 1, 20, "buy", None)]


def test_moments_are_microseconds(tmp_path):
    times = pl.Series(["2024-01-01T00:00:01"]).str.to_datetime()
    frame = dataset.read(raw(tmp_path / "raw", log={"user": [1], "item": [2], "ts": times})).collect()
    assert frame["time"].to_list() == [1704067201000000]


def test_a_missing_id_is_refused_before_it_is_written(tmp_path):
    source = raw(tmp_path / "raw", log={"user": [1, None, 2], "item": [2, 3, 4]})
    with pytest.raises(DataRejected, match="user_id"):
        fetch("interactions", {"source": str(source)}, tmp_path / "landing", tmp_path / "report")
    assert not (tmp_path / "landing").exists()


@pytest.mark.parametrize(
    ("tables", "told", "said"),
    [
        ({"log": {"person": [1], "thing": [2]}}, {}, "person, thing"),
        ({"log": {"user": [1.5], "item": [2]}}, {}, "user is Float64"),
        ({"a": {"user": [1], "item": [2]}, "b": {"user": ["x"], "item": [2]}}, {}, "integer in some files"),
        (
            {name: {"user": [1], "item": [2]} for name in ("train", "test", "more")},
            {},
            "more.parquet is of no split",
        ),
    ],
)
def test_what_is_no_log_is_said(tmp_path, tables, told, said):
    folder = raw(tmp_path / "raw", **tables)
    (folder / dataset.SETTINGS).write_text(json.dumps(told))
    with pytest.raises(dataset.NoInteractions, match=said):
        dataset.read(folder)


def test_settings_that_name_absent_files_are_refused(tmp_path):
    source = raw(tmp_path / "raw", log={"user": [1], "item": [2]})
    for told, said in (({"files": ["x.parquet"]}, "x.parquet"), ({"splits": {"dev": "log.parquet"}}, "dev")):
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(dataset.NoInteractions, match=said):
            dataset.fetch(tmp_path / "out", source, **told)


def test_the_command_reads_its_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    raw(tmp_path / "raw", log={"user": [1] * 9 + [2] * 4, "item": [*range(9), *range(4)]})
    (tmp_path / "params.yaml").write_text("datasets: {interactions: {split: {seed: 5}}}\n")
    main("params.yaml:datasets.interactions", "raw", "out")
    assert capsys.readouterr().out == "out: 2 users, 9 items, 13 pairs (train 9, val 2, test 2)\n"
    assert json.loads(Path("out/manifest.json").read_text())["settings"]["seed"] == 5
    (tmp_path / "params.yaml").write_text("datasets: {interactions: {split: {ratio: 5}}}\n")
    with pytest.raises(SettingsError, match="split"):
        main("params.yaml:datasets.interactions", "raw", "out")


def test_popularity_on_real_data_is_what_others_measure(tmp_path, shared_data):
    """Gowalla as NGCF and LightGCN split it, Recall@20 .0416 and NDCG@20 .0317: split, mask and metrics are theirs."""
    if shared_data is None:
        folder = raw(tmp_path / "raw", train={"user": [0, 1, 1], "item": [0, 0, 1]}, test={"user": [0], "item": [1]})
        expected = (3, 1, 1.0, 1.0)
    else:
        folder, expected = shared_data / "graph" / "gowalla", (810_128, 217_242, 0.0416, 0.0317)
    frame = dataset.read(folder).collect()
    parts = {split: frame.filter(pl.col("split") == split) for split in ("train", "test")}
    counts = frame["user_id"].max() + 1, frame["item_id"].max() + 1
    logs = {s: Log.of(part["user_id"].to_torch(), part["item_id"].to_torch(), *counts) for s, part in parts.items()}
    model = build("recommend.retrieval", "popularity", logs["train"])
    found = rank(model.vectors(), None, logs["train"], logs["test"], at=[20]).metrics
    assert (len(logs["train"]), len(logs["test"])) == expected[:2]
    assert found["recall@20"].mean().item() == pytest.approx(expected[2], abs=5e-5)
    assert found["ndcg@20"].mean().item() == pytest.approx(expected[3], abs=5e-5)
