import shutil
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tasks.context import context_type
from tasks.datasets import merrec, sample
from tasks.datasets._schema import COLUMNS, SchemaError

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """20,000 rows of MerRec's kind, user by user."""
    folder = tmp_path_factory.mktemp("sample")
    sample.fetch(folder, Path("x"), rows=20_000, seed=5)
    return sample.read(folder).collect()


@pytest.fixture
def shards(tmp_path, log):
    """The log cut between users into two month folders of two shards each."""
    users = log["user_id"].unique(maintain_order=True)
    number = {user: 4 * place // len(users) for place, user in enumerate(users)}
    parts = log.with_columns(part=pl.col("user_id").replace_strict(number)).partition_by("part", include_key=False)
    for place, part in enumerate(parts):
        path = tmp_path / "shards" / ("20230501", "20230601")[place // 2] / f"{place % 2:012d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_parquet(path)
    return tmp_path / "shards"


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))


ALL = ["20230501/000000000000.parquet", "20230501/000000000001.parquet"]
ALL += [name.replace("0501", "0601") for name in ALL]


# ---------------------------------------------------------------- reading


def test_many_shards_read_as_one(tmp_path, shards, log):
    one = tmp_path / "one"
    one.mkdir()
    log.write_parquet(one / "000000000000.parquet")
    order = ["user_id", "stime", "event_id", "item_id"]
    many = merrec.read(shards).collect()
    assert_frame_equal(many.sort(order), merrec.read(one).collect().sort(order))
    assert_frame_equal(many, log)  # files are read in the order of their names


def test_floats_of_nullable_ids_and_integers_of_string_ids_are_understood(tmp_path, log):
    odd = log.with_columns(pl.col("brand_id", "size_id").cast(pl.Float64), pl.col("session_id").cast(pl.Int64))
    odd.with_columns(pl.col("stime").dt.replace_time_zone(None)).write_parquet(tmp_path / "0.parquet")
    assert_frame_equal(merrec.read(tmp_path).collect(), log)


def test_other_columns_are_named(tmp_path, log):
    log.rename({"stime": "time"}).with_columns(pl.col("price").cast(pl.String)).write_parquet(tmp_path / "0.parquet")
    with pytest.raises(SchemaError, match=r"(?s)stime: missing.*price: is String"):
        merrec.read(tmp_path)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(merrec.ShardError, match="no file that matches"):
        merrec.read(tmp_path)


# ---------------------------------------------------------------- expectations


def broken(log):
    """Names of the broken rules, counted as validation counts them."""
    names = set()
    for rule in merrec.expectations():
        if rule.groups is None:
            number = log.select(rule.measure).item()
        else:
            groups = log if rule.groups.null_keys else log.drop_nulls(list(rule.groups.keys))
            faults = groups.group_by(rule.groups.keys).agg(n=rule.groups.broken.cast(pl.Int64))["n"].sum()
            number = faults / len(log) if rule.groups.per_row else faults
        if (rule.low is not None and number < rule.low) or (rule.high is not None and number > rule.high):
            names.add(rule.name)
    return names


def at_first(column, value):
    """The column with another value in the first row."""
    return pl.when(pl.int_range(pl.len()) == 0).then(value).otherwise(pl.col(column)).alias(column)


SHARES = {f"event_id share of {event}" for event in merrec.EVENTS}


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ([], set()),
        ([at_first("price", 0.0)], {"price between 1 and 5000"}),
        ([at_first("price", float("nan"))], {"price between 1 and 5000", "price finite"}),
        ([at_first("event_id", pl.lit("item_click"))], {"event_id in set"}),
        ([at_first("event_id", None)], {"event_id not null"}),
        ([at_first("c1_id", None)], {"c2_id implies c1_id"}),
        ([at_first("c0_id", None)], {"c1_id implies c0_id"}),
        ([at_first("c0_name", pl.lit("Nobody"))], {"one c0_name per c0_id"}),
        ([at_first("sequence_length", 10**6)], {"whole sequences"}),
        (
            [at_first("stime", pl.lit("2024-01-01").str.to_datetime("%Y-%m-%d", time_zone="UTC"))],
            {"stime inside month"},
        ),
        ([pl.lit(None, pl.Int64).alias("size_id")], {"size_id null rate"}),
        ([pl.lit("item_view").alias("event_id")], SHARES),
    ],
)
def test_each_fault_breaks_its_rule_only(log, change, rules):
    # c2 of the first row must be there for the hierarchy to break.
    log = log.sort(pl.col("c2_id").is_null(), maintain_order=True)
    assert broken(log.with_columns(change)) == rules


def test_rows_twice_break_the_rule_of_duplicates(log):
    assert "duplicates" in next(iter(broken(pl.concat([log, log])) - {"whole sequences"}))


# ---------------------------------------------------------------- local shards


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ALL),
        ({"months": ["20230601"]}, ALL[2:]),
        ({"shards": 1}, ALL[::2]),
        ({"months": ["20230501"], "shards": 1}, ALL[:1]),
        ({"months": [20230501]}, ALL[:2]),  # YAML reads a month as a number
    ],
)
def test_copies_and_chooses(tmp_path, shards, settings, expected):
    out = tmp_path / "out"
    out.mkdir()
    merrec.fetch(out, shards, **settings)
    assert names(out) == expected
    assert all((out / name).read_bytes() == (shards / name).read_bytes() for name in expected)


def test_one_file_and_a_flat_folder(tmp_path, shards):
    for place, source in enumerate((shards / ALL[0], shards / "20230501")):
        out = tmp_path / str(place)
        out.mkdir()
        merrec.fetch(out, source)
        assert names(out) == [Path(name).name for name in ALL[: place + 1]]


def test_broken_shards_are_all_named(tmp_path, shards):
    whole = (shards / ALL[0]).read_bytes()
    (shards / ALL[0]).write_bytes(whole[: len(whole) // 2])
    (shards / ALL[1]).write_text("<html>Too many requests</html>")
    (shards / ALL[2]).write_bytes(whole[:4] + b"\0" * 50 + whole[-4:])
    with pytest.raises(merrec.ShardError) as error:
        merrec.fetch(tmp_path, shards)
    message = str(error.value)
    assert message.startswith("3 of 4 shards are broken")
    assert f"{ALL[0]}: is cut short" in message
    assert f"{ALL[1]}: is not Parquet" in message
    assert f"{ALL[2]}: has an unreadable footer" in message
    assert names(tmp_path / "shards") == ALL  # somebody else's files are left alone


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"months": ["20230701"]}, "no shards of the months 20230701"),
        ({"months": ["May"]}, "months must be some of 20230501"),
        ({"months": []}, "months must be some of"),
        ({"shards": 0}, "shards must be a number of files"),
    ],
)
def test_settings_that_fit_nothing(tmp_path, shards, settings, message):
    with pytest.raises(merrec.ShardError, match=message):
        merrec.fetch(tmp_path, shards, **settings)


def test_a_missing_source_says_what_to_give(tmp_path):
    with pytest.raises(merrec.ShardError, match="does not exist; give a folder"):
        merrec.fetch(tmp_path, tmp_path / "nowhere")


# ---------------------------------------------------------------- the hub


class Hub:
    """Stands in for the hub's client: gives the files it was asked for, `lines` files a call, then the line drops."""

    def __init__(self, files, lines=99):
        self.files, self.lines, self.calls, self.sent = files, lines, [], []

    def snapshot_download(self, repo, *, repo_type, revision, allow_patterns, local_dir):
        self.calls.append((repo, repo_type, revision))
        left = self.lines
        for name in names(self.files):
            target = Path(local_dir) / name
            if any(Path(name).match(pattern) for pattern in allow_patterns) and not target.exists():
                if not left:
                    raise ConnectionError("the line dropped")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.files / name, target)
                self.sent.append(name)
                left -= 1


@pytest.fixture
def hub(shards, monkeypatch):
    hub = Hub(shards)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    return hub


def fresh(tmp_path, place):
    out = tmp_path / "landing" / f".new-merrec-{place}"
    out.mkdir(parents=True)
    return out


def test_a_broken_download_goes_on_where_it_stopped(tmp_path, hub):
    hub.lines = 1
    settings = {"revision": SHA, "months": ["20230501"]}
    with pytest.raises(merrec.HubError, match=r"(?s)ConnectionError.*1 finished shard.*give their folder as `source`"):
        merrec.fetch(fresh(tmp_path, 1), Path("hub"), **settings)
    merrec.fetch(out := fresh(tmp_path, 2), Path("hub"), **settings)
    assert hub.sent == ALL[:2]  # each shard came over the line once
    assert names(out) == ALL[:2]
    assert set(hub.calls) == {("mercari-us/merrec", "dataset", SHA)}


def test_months_and_shards_are_what_is_downloaded(tmp_path, hub):
    merrec.fetch(out := fresh(tmp_path, 1), Path("hub"), revision=SHA, months=["20230601"], shards=1)
    assert hub.sent == names(out) == ALL[2:3]
    # What an earlier call staged of other months does not slip in.
    merrec.fetch(out := fresh(tmp_path, 2), Path("hub"), revision=SHA, months=["20230501"])
    assert names(out) == ALL[:2]


def test_a_shard_that_arrived_broken_is_fetched_again(tmp_path, hub, shards):
    whole = (shards / ALL[0]).read_bytes()
    (shards / ALL[0]).write_bytes(whole[:1000])
    settings = {"revision": SHA, "months": ["20230501"]}
    with pytest.raises(merrec.ShardError, match=r"(?s)cut short.*run this again"):
        merrec.fetch(fresh(tmp_path, 1), Path("hub"), **settings)
    (shards / ALL[0]).write_bytes(whole)
    merrec.fetch(out := fresh(tmp_path, 2), Path("hub"), **settings)
    assert (out / ALL[0]).read_bytes() == whole
    assert hub.sent == [*ALL[:2], ALL[0]]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"months": ["20230501"]}, merrec.ShardError, "full commit hash"),
        ({"months": ["20230501"], "revision": "main"}, merrec.ShardError, "got 'main'"),
        ({"revision": SHA}, merrec.ShardError, "needs `months`"),
        (
            {"revision": SHA, "months": ["20230501"], "shards": 3},
            merrec.HubError,
            "has no 20230501/000000000002.parquet",
        ),
    ],
)
def test_the_hub_needs_a_revision_and_months(tmp_path, hub, settings, error, message):
    with pytest.raises(error, match=message):
        merrec.fetch(fresh(tmp_path, 1), Path("hub"), **settings)


def test_features_are_columns_or_context():
    schema = {name: pl.String if name.endswith("_name") else pl.Float64 for name in COLUMNS}
    for name in [*merrec.FEATURES["categorical"], *merrec.FEATURES["numerical"], *merrec.FEATURES["history"]]:
        assert name in COLUMNS or context_type(name, schema, merrec.EVENTS), name
    used = merrec.FEATURES["categorical"]
    assert "item_id" not in used  # every item sells once: an id seen in training says little about later ones
