"""Raw files come in whole and good, or the last good version stays."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from _bars import seen

from tasks.datasets import retailrocket
from tasks.fetch import copy_files, dataset, fetch, main
from tasks.files import digest, read_json
from tasks.ingest_text import STREAMS
from tasks.settings import SettingsError
from tasks.validate import DataRejected

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def log(first: int = 0, rows: int = 60, behaviours=("view", "view", "cart", "buy")) -> pl.DataFrame:
    numbers = range(first, first + rows)
    return pl.DataFrame(
        {
            "user": pl.Series([i % 7 for i in numbers], dtype=pl.Int32),
            "item": pl.Series(list(numbers), dtype=pl.Int32),
            "behaviour": [behaviours[i % len(behaviours)] for i in numbers],
            "ts": [1430600000 + i for i in numbers],
        }
    )


@pytest.fixture
def source(folder):
    path = folder / "shop"
    path.mkdir()
    for shard in range(3):
        log(first=shard * 60).write_parquet(path / f"events-{shard}.parquet")
    return path


def bring(source, **settings):
    return fetch("retailrocket", {"source": str(source), **settings}, "landing/retailrocket", "report")


def test_good_source_arrives_with_the_same_bytes(source, folder):
    before = digest(source)
    assert bring(source)["rows"] == 180
    assert digest(folder / "landing/retailrocket") == before
    assert bring(source)["rows"] == 180
    assert digest(folder / "landing/retailrocket") == before
    assert read_json("report/accepted.json")["events"]["buy_comp"] == 0.25
    assert sorted(p.name for p in Path("landing").iterdir()) == ["retailrocket"]  # no staging folder left


def test_one_file_as_source(folder):
    log().write_parquet("events.parquet")
    assert bring("events.parquet", split={"val": 0.1, "test": 0.1})["rows"] == 60
    assert [p.name for p in Path("landing/retailrocket").iterdir()] == ["events.parquet"]


def damaged_end(path):
    path.write_bytes(path.read_bytes()[:-100])


def no_parquet(path):
    path.write_bytes(b"<html>sign in first</html>")


def no_bytes(path):
    path.write_bytes(b"")


def damaged_page(path):
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)


def wrong_type(path):
    log().with_columns(pl.col("ts").cast(pl.String)).write_parquet(path)


def lost_column(path):
    log().drop("item").write_parquet(path)


def bad_rows(path):
    log(behaviours=("view", "shares")).write_parquet(path)


@pytest.mark.parametrize("damage", [damaged_end, no_parquet, no_bytes, damaged_page, wrong_type, lost_column, bad_rows])
def test_one_broken_shard_of_many_leaves_the_last_good_version(source, damage):
    bring(source)
    before, accepted = digest("landing"), Path("report/accepted.json").read_text()
    damage(source / "events-1.parquet")
    with pytest.raises(DataRejected) as refused:
        bring(source)
    assert digest("landing") == before
    assert Path("report/accepted.json").read_text() == accepted
    assert [p.name for p in Path("landing").iterdir()] == ["retailrocket"]
    assert "nothing was written" in str(refused.value).lower()
    if damage is bad_rows:
        assert "30 broken, e.g. event_id=shares" in str(refused.value)
    else:
        assert "events-1.parquet" in str(refused.value)
        assert "events-0.parquet" not in str(refused.value)


def test_all_broken_shards_are_named(source):
    damaged_end(source / "events-0.parquet")
    no_parquet(source / "events-2.parquet")
    with pytest.raises(DataRejected, match=r"2 of 3 files(.|\n)*events-0.*truncated(.|\n)*events-2.*not a Parquet"):
        bring(source)
    assert not Path("landing/retailrocket").exists()


def test_wrong_type_in_all_shards_is_a_schema_error(folder):
    log().with_columns(pl.col("item").cast(pl.Float64)).write_parquet("events.parquet")
    with pytest.raises(ValueError, match="item_id: is Float64"):
        bring("events.parquet")


def test_no_rows_no_files_no_source(folder):
    log().clear().write_parquet("events.parquet")
    with pytest.raises(DataRejected, match="found 0"):
        bring("events.parquet")
    (folder / "empty").mkdir()
    (folder / "empty/model.pkl").write_bytes(b"x")
    with pytest.raises(DataRejected, match="1 files"):
        bring("empty")
    (folder / "empty/events.csv").write_text("")
    with pytest.raises(DataRejected, match="empty"):
        bring("empty")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        bring("nowhere")
    log().write_parquet("rows.parquet")
    with pytest.raises(DataRejected, match=r"retailrocket.py cannot read these files.*events\*"):
        bring("rows.parquet")


def test_drift_needs_a_decision(source):
    bring(source)
    for shard in range(3):
        log(first=shard * 60, behaviours=("view", "view", "view", "view", "cart", "buy")).write_parquet(
            source / f"events-{shard}.parquet"
        )
    with pytest.raises(DataRejected, match=r"item_view .*0.5: found 0.666667, allowed 0.375..0.625"):
        bring(source)
    assert bring(source, drift=0.5)["rows"] == 180


def test_settings_are_checked_by_name(source):
    with pytest.raises(SettingsError, match="rows, sead; it accepts: source, drift, split"):
        bring(source, rows=3, sead=1)
    with pytest.raises(SettingsError, match="needs `source`"):
        fetch("retailrocket", {}, "landing/retailrocket", "report")
    for wrong in ("much", -1, 0, True, float("nan")):
        with pytest.raises(SettingsError, match="drift"):
            bring(source, drift=wrong)
    with pytest.raises(LookupError, match="retailrocket"):
        fetch("retailrockt", {"source": "x"}, "landing/x", "report")


def test_module_with_its_own_fetch_gets_its_own_settings(monkeypatch):
    def own(out: Path, source: Path, rows: int, seed: int = 7) -> None:
        log(first=seed, rows=rows).write_parquet(out / "events.parquet")

    module = SimpleNamespace(read=retailrocket.read, expectations=retailrocket.expectations, fetch=own)
    monkeypatch.setattr("tasks.fetch.dataset", lambda name: module)
    settings = {"source": "here", "split": {"val": 0.1}, "rows": 12}
    assert fetch("made", settings, "landing/made", "report")["rows"] == 12
    with pytest.raises(SettingsError, match="lacks the settings: rows"):
        fetch("made", {"source": "here"}, "landing/made", "report")
    with pytest.raises(
        SettingsError, match="sead; it accepts: source, drift, split, .* until, heldout, filters, rows, seed"
    ):
        fetch("made", {**settings, "sead": 8}, "landing/made", "report")


def test_only_tables_are_copied_and_the_rest_is_named(source, folder, capsys, monkeypatch):
    bars = seen(monkeypatch)
    (source / "weights.pkl").write_bytes(b"x")
    (source / ".hidden.parquet").write_bytes(b"x")
    (source / "may").mkdir()
    (source / "may/more.csv").write_text("a\n1\n")
    out = folder / "out"
    out.mkdir()
    copy_files(out, source)
    assert "left out 2 files" in (said := capsys.readouterr().out)
    assert "weights.pkl" in said
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert names == ["events-0.parquet", "events-1.parquet", "events-2.parquet", "may/more.csv"]
    assert [(bar.desc, bar.total, bar.n) for bar in bars] == [("fetch", 4, 4)]


def test_command_says_what_it_did_and_warns(source, capsys):
    Path("params.yaml").write_text(f"datasets:\n  retailrocket: {{source: {source}}}\n")
    log(rows=1100).with_columns(user=pl.lit(4, pl.Int32)).write_parquet(source / "events-9.parquet")
    for shard in range(3):
        (source / f"events-{shard}.parquet").unlink()
    main("params.yaml:datasets.retailrocket", "landing/retailrocket", "report")
    said = capsys.readouterr()
    assert "user_id=4 rows=1100" in said.err
    assert "1,100 rows" in said.out


def test_unknown_dataset_ends_as_one_clear_line(folder):
    Path("params.yaml").write_text("datasets: {rees64_oct2019: {source: x}}\n")
    words = [sys.executable, "-m", "tasks.fetch", "params.yaml:datasets.rees64_oct2019", "landing/x", "report"]
    ended = subprocess.run(words, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: tasks/datasets has no 'rees64_oct2019'; closest: rees46_oct2019")


def test_every_dataset_is_a_module_with_its_names():
    with pytest.raises(LookupError, match="_rules"):
        dataset("_rules")
    for file in (ROOT / "tasks/datasets").glob("[a-z]*.py"):
        module = dataset(file.stem)
        assert module.expectations()
        assert callable(module.read)
        if hasattr(module, "KIND"):  # no log of events
            assert module.KIND in (*STREAMS, "interactions")
        else:
            assert module.EVENTS
            assert set(module.FEATURES) == {"categorical", "numerical", "history"}
