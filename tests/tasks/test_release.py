"""A release system on a made-up cinema: windows, negatives, descriptions, probabilities, new releases."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import torch

from models.metrics import auc
from tasks.datasets import movies
from tasks.descriptions import DescriptionsMissing, Given, Words, describer
from tasks.files import digest, read_json
from tasks.release import Plan, main, predict, release
from tasks.settings import SettingsError
from tasks.validate import validate
from tasks.windows import Available, SplitEmpty, windows

THEMES = ("ghost castle haunted midnight scream", "spaceship planet alien galaxy laser",
          "wedding romance bride paris kiss", "detective murder clue police alibi")  # fmt: skip
SETTINGS = {"validation": "2012-01-01", "test": "2015-01-01", "words": 8, "epochs": 15, "batch": 32, "table_rate": 0.02,
            "learning_rate": 0.02, "model": {"width": 8, "hidden": 16, "negatives": 10}}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cinema(users: int = 60, items: int = 120, seed: int = 0) -> pl.DataFrame:
    """Customers like one theme of four, and buy mostly its movies, somewhere between its release and a year later."""
    draw = torch.Generator().manual_seed(seed)
    rows, pick = [], lambda n: int(torch.randint(n, (), generator=draw))
    for item in range(items):
        theme, words = item % 4, THEMES[item % 4].split()
        out = date(2005, 1, 1) + timedelta(days=item * 4745 // items)
        overview = " ".join(words[pick(5)] for _ in range(6)) + f" number{item}"
        for user in range(users):
            if float(torch.rand((), generator=draw)) < (0.5 if user % 4 == theme else 0.04):
                when = datetime(out.year, out.month, out.day, tzinfo=UTC) + timedelta(days=pick(365))
                rows.append((user, 1000 + item, when, f"movie {item}", overview, out))
    return pl.DataFrame(rows, ["user_id", "item_id", "stime", "name", "overview", "release_date"], orient="row")


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """One trained system for all tests that only read it."""
    import os

    folder, back = tmp_path_factory.mktemp("release"), Path.cwd()
    os.chdir(folder)
    metrics = release(SETTINGS, cinema(), folder / "out")
    os.chdir(back)
    return folder / "out", metrics


def test_windows_are_cut_by_release_day():
    events = cinema()
    cut = windows(events, date(2012, 1, 1), date(2015, 1, 1))
    days = {name: getattr(cut, name).items["release_date"] for name in ("train", "validation", "test")}
    assert days["train"].max() < date(2012, 1, 1) <= days["validation"].min()
    assert days["validation"].max() < date(2015, 1, 1) <= days["test"].min()
    ids = [set(getattr(cut, name).items["item_id"]) for name in days]
    assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]
    assert sum(len(getattr(cut, name).log) + getattr(cut, name).strangers for name in days) == len(events)
    train = cut.train
    pair = 5
    row = events.filter((pl.col("user_id") == cut.users[train.log.user[pair]]) &
                        (pl.col("item_id") == train.items["item_id"][int(train.log.item[pair])]))  # fmt: skip
    assert train.day[pair] == row["stime"].dt.epoch("d").item()


def test_a_stranger_is_left_out_and_counted():
    events = cinema()
    late = events.filter(pl.col("release_date") >= date(2015, 1, 1)).head(1).with_columns(user_id=pl.lit(999))
    cut = windows(pl.concat([events, late.cast(events.schema)]), date(2012, 1, 1), date(2015, 1, 1))
    assert cut.test.strangers == 1 and 999 not in cut.users


def test_an_empty_window_is_refused():
    with pytest.raises(SplitEmpty, match="test has no purchases"):
        windows(cinema(), date(2012, 1, 1), date(2030, 1, 1))
    with pytest.raises(SplitEmpty, match="ends before it begins"):
        windows(cinema(), date(2012, 1, 1), date(2012, 1, 1))


def test_negatives_were_out_and_not_bought():
    train = windows(cinema(), date(2012, 1, 1), date(2015, 1, 1)).train
    draws = Available(train)
    released = train.items["release_date"].cast(pl.Int32).to_torch().long()
    pair = draws.usable.repeat(100_000 // (len(draws.usable) * 4) + 1)
    item = draws.draw(pair, 4, torch.Generator().manual_seed(0))
    assert item.numel() >= 1e5
    user = train.log.user[pair, None].expand_as(item)
    assert not train.log.has(user, item).any()
    assert (released[item] <= train.day[pair, None]).all()
    same = draws.draw(pair, 4, torch.Generator().manual_seed(0))
    assert torch.equal(item, same)
    assert not torch.equal(item, draws.draw(pair, 4, torch.Generator().manual_seed(1)))


def test_negatives_are_uniform():
    train = windows(cinema(), date(2012, 1, 1), date(2015, 1, 1)).train
    draws = Available(train)
    pair = draws.usable[draws.left[draws.usable].argmax()]
    count = draws.draw(pair.expand(20_000), 1, torch.Generator().manual_seed(0)).flatten().bincount()
    found = count[count > 0].double()
    assert len(found) == draws.left[pair]
    expected = 20_000 / len(found)
    statistic = ((found - expected) ** 2 / expected).sum().item()
    assert statistic < len(found) + 5 * (2 * len(found)) ** 0.5  # chi-square: mean and five standard deviations


def test_words_by_hand():
    """Texts of one word each: two equal ones coincide, others are at right angles; a text of unknown words is 0."""
    reader = Words(3).fit(["ghost", "ghost", "planet", "bride"])
    vectors = reader(["ghost", "Ghost!", "planet", "bride", "unheard", ""])
    expected = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(vectors[:4] @ vectors[:4].T, expected, atol=1e-4, rtol=0)
    assert vectors[4:].norm() < 1e-5
    again = Words(3).load(reader.state())
    assert torch.equal(again(["planet"]), reader(["planet"]))
    with pytest.raises(DescriptionsMissing, match="after a fit"):
        Words(3)(["ghost"])


def test_vectors_can_be_given(folder):
    pl.DataFrame({"item_id": [7, 9], "vector": [[3.0, 4.0], [0.0, 2.0]]}).write_parquet(folder / "v.parquet")
    reader = describer(str(folder / "v.parquet"))
    assert isinstance(reader, Given)
    torch.testing.assert_close(reader(["", ""], [9, 7]), torch.tensor([[0.0, 1.0], [0.6, 0.8]]))
    with pytest.raises(DescriptionsMissing, match="lacks 1 of 2 items"):
        reader(["", ""], [7, 8])
    with pytest.raises(DescriptionsMissing, match="neither the word"):
        describer("nowhere")


def test_a_pretrained_model_reads_descriptions(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "ghost", "planet", "bride"]
    plain = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder / "lm")
    torch.manual_seed(0)
    shape = BertConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertModel(shape).eval()
    model.save_pretrained(folder / "lm")
    texts = ["ghost planet", "bride", "ghost ghost planet bride"]
    found = describer(str(folder / "lm"))(texts)
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([[4]])).last_hidden_state[0].mean(0)
    torch.testing.assert_close(found[1], alone / alone.norm(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))


def test_it_finds_the_buyers_of_unseen_releases(system):
    _, metrics = system
    assert metrics["metric"]["item_auc"] > 0.7
    assert metrics["customer"]["item_auc"] < 0.65
    low, _ = metrics["gain"]["item_auc_over_customer"][1:]
    assert low > 0.1
    assert set(metrics["gain"]) >= {"item_auc_over_content", "probability_item_auc_over_content"}
    assert metrics["metric"]["recall@10"] > 0.5  # 30 releases, of which a customer buys about 5
    assert metrics["metric"]["ece"] < 0.08
    assert 0.7 < metrics["metric"]["audience_ratio"] < 1.4


def test_permuted_descriptions_know_nothing():
    """The same purchases, each movie with another's description: what is unseen cannot be placed any more."""
    events = cinema()
    items = events.unique("item_id").sort("item_id")
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(3)).tolist()
    other = pl.DataFrame({"item_id": items["item_id"], "overview": items["overview"][order]})
    found = release(SETTINGS | {"epochs": 6}, events.drop("overview").join(other, on="item_id"), "out")
    assert abs(found["metric"]["item_auc"] - 0.5) < 0.1


def test_files_tell_what_was_measured(system):
    out, metrics = system
    assert read_json(out / "metrics.json")["metric"] == pytest.approx(metrics["metric"])
    audience = pl.read_parquet(out / "audience.parquet")
    assert audience["true"].sum() == metrics["purchases"]["test"]
    ratio = audience["metric"].sum() / audience["true"].sum()
    assert ratio == pytest.approx(metrics["metric"]["audience_ratio"])
    assert (out / "reliability.png").read_bytes()[:4] == b"\x89PNG"


def test_the_calibration_is_exact_in_the_mean_on_its_window(system):
    """Mean predicted = mean observed where it was fitted, for the same customers: read back from the files."""
    out, metrics = system
    cut = windows(cinema(), date(2012, 1, 1), date(2015, 1, 1))
    told = predict(out, cut.validation.items.select("item_id", "overview"))
    assert told["audience"].sum() == pytest.approx(len(cut.validation.log), rel=1e-4)


def test_new_releases_are_scored(system):
    out, _ = system
    cut = windows(cinema(), date(2012, 1, 1), date(2015, 1, 1))
    told = predict(out, cut.test.items.select("item_id", "overview"))
    written = pl.read_parquet(out / "audience.parquet")
    assert told["audience"].to_list() == pytest.approx(written["metric"].to_list(), rel=1e-4)
    new = pl.DataFrame(
        {"item_id": [1, 2, 3], "overview": ["alien galaxy laser", "alien galaxy laser", "bride paris kiss"]}
    )
    found = predict(out, new)
    assert found["audience"][0] == found["audience"][1]  # equal descriptions, equal audiences
    assert ((found["share"] > 0) & (found["share"] < 1)).all()
    theme = {f"movie {item}": item % 4 for item in range(120)}
    assert {theme[name] for name in found["alike"][0]} == {1}
    assert {theme[name] for name in found["alike"][2]} == {2}


def test_equal_runs_are_equal(folder):
    events = cinema(30, 60)
    for name in ("a", "b"):
        release(SETTINGS | {"epochs": 2}, events.sample(fraction=1, shuffle=True, seed=len(name)), folder / name)
    assert digest(folder / "a/model.safetensors") == digest(folder / "b/model.safetensors")


def test_settings_are_checked():
    with pytest.raises(SettingsError, match="unknown settings .'epoch'.*missing .'test'"):
        Plan.of({"validation": "2012-01-01", "epoch": 3})


def raw(folder: Path) -> Path:
    at = folder / "raw"
    at.mkdir()
    pl.DataFrame(
        {
            "movieId": [1, 2, 3],
            "title": ["Toy Story (1995)", "Old (1900)", "Gone (2001)"],
            "genres": ["Comedy", "Drama", "Drama"],
            "overview": ["Led by Woody", None, " "],
            "release_date": [date(1995, 10, 30), date(1900, 1, 1), date(2001, 1, 1)],
        }
    ).write_parquet(at / "movies.parquet")
    pl.DataFrame(
        {"userId": [1, 1, 2, 2], "movieId": [1, 2, 1, 3], "rating": [4.0, 5.0, 0.5, 3.0],
         "timestamp": [964982703, 964982704, 1500000000, 1500000001]},
        schema_overrides={"userId": pl.Int32, "movieId": pl.Int32, "rating": pl.Float32},
    ).write_parquet(at / "ratings.parquet")  # fmt: skip
    return at


def test_the_reader_by_hand(folder):
    at = raw(folder)
    frame = movies.read(at).collect().sort("user_id")
    assert frame["user_id"].to_list() == [1, 2] and frame["item_id"].to_list() == [1, 1]
    assert frame["event_id"].unique().to_list() == ["buy_comp"]
    assert frame["stime"][0] == datetime(2000, 7, 30, 18, 45, 3, tzinfo=UTC)
    assert frame["overview"][0] == "Led by Woody" and frame["rating"].to_list() == [4.0, 0.5]
    assert list(movies.left_out(at).values()) == [2]
    validate(movies.read(at), movies.expectations(), folder / "report", "movies")


def test_the_published_counts(shared_data):
    if shared_data is None:
        return
    at = shared_data / "movies/ml_latest_small"
    frame = movies.read(at).collect()
    assert len(frame) + sum(movies.left_out(at).values()) == 100_836
    assert frame["user_id"].n_unique() == 610
    assert frame["release_date"].max() < date(2019, 1, 1)


def test_auc_of_an_item_by_hand():
    """Buyers 0 and 2 of three customers: one of the two pairs is in the right order."""
    assert auc(torch.tensor([0.9, 0.5, 0.1]), torch.tensor([1, 0, 1])).item() == 0.5


def test_as_a_command(tmp_path, capsys):
    entry = SETTINGS | {"data": "cinema", "epochs": 2}
    (tmp_path / "params.yaml").write_text(json.dumps({"recommenders": {"releases": {"cinema": entry}}}))
    (tmp_path / "log/events/bucket=0").mkdir(parents=True)
    events = cinema(30, 60)
    events.write_parquet(tmp_path / "log/events/bucket=0/part.parquet")
    main("params.yaml:recommenders.releases", "cinema", str(tmp_path / "log"), str(tmp_path / "out"))
    assert capsys.readouterr().out.startswith("cinema: item AUC 0.")
    curve, metrics = pl.read_csv(tmp_path / "out/curve.csv"), read_json(tmp_path / "out/metrics.json")
    assert curve["step"].to_list() == [1, 2] and curve["validation_recall"].is_finite().all()
    assert "curve" not in metrics and read_json(tmp_path / "out/system.json")["settings"]["epochs"] == 2
    events.drop("overview").write_parquet(tmp_path / "log/events/bucket=0/part.parquet")
    with pytest.raises(SettingsError, match="has no column overview: releases need items with a description"):
        main("params.yaml:recommenders.releases", "cinema", str(tmp_path / "log"), str(tmp_path / "no"))
