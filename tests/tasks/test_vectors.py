import json
import shutil

import numpy as np
import polars as pl
import pytest
from _reader import write_reader

from tasks.batches import load_split, text_names
from tasks.files import digest
from tasks.listing_encoder import listing_encoder
from tasks.texts import ListingText, TextEncoder
from tasks.vectors import NoText, make_vectors

NAMES = {
    "train": ["red chair", "lamp", "red chair", None, "blue shirt"],
    "val": ["lamp", "old lamp"],
    "test": ["new chair", "", "blue shirt"],
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoder")
    listing_encoder({"encoder": str(write_reader(root / "model")), "width": 3}, root / "out")
    return root / "out"


def write_features(folder, names=NAMES, extra=None):
    for part in ("rows", "categorical", "numerical"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for split, texts in names.items():
        frame = pl.DataFrame({"name": pl.Series(texts, dtype=pl.String), **(extra or {}).get(split, {})})
        frame.write_parquet(folder / f"rows/{split}.parquet")
        np.save(folder / f"categorical/{split}.npy", np.zeros((len(texts), 1), np.int32))
        np.save(folder / f"numerical/{split}.npy", np.full((len(texts), 2), 0.5, np.float32))
    (folder / "manifest.json").write_text(json.dumps({"numerical": ["a", "b"], "of": str(names)}))
    return folder


def test_each_row_gets_the_numbers_of_its_title(tmp_path, encoder):
    features = write_features(tmp_path / "features")
    manifest = make_vectors(features, encoder, tmp_path / "out", tmp_path / "memo")
    assert manifest["names"] == text_names(tmp_path / "out") == ["text_0", "text_1", "text_2"]
    assert (manifest["texts"], manifest["texts_in_train"], manifest["width"]) == (5, 3, 16)
    assert manifest["missing"] == pytest.approx({"train": 0.2, "val": 0, "test": 1 / 3})
    served = ListingText(tmp_path / "out/text")
    for split, names in NAMES.items():
        ids, numbers = load_split(features, split, tmp_path / "out")
        assert len(ids) == len(numbers) == numbers.shape[0] and numbers.shape[1] == 5
        np.testing.assert_array_equal(numbers[:][:, :2], 0.5)
        rows = pl.DataFrame({"name": pl.Series(names, dtype=pl.String)})
        np.testing.assert_allclose(numbers[:][:, 2:], served(rows), atol=1e-4)
    _, train = load_split(features, "train", tmp_path / "out")
    np.testing.assert_array_equal(train[[3]][0, 2:], 0)
    np.testing.assert_array_equal(train[np.array([True, False, True, False, False])][0], train[2:3][0])
    distinct = train[[0, 1, 4]][:, 2:]  # the axes are of these three titles, one count each
    np.testing.assert_allclose(distinct.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(distinct.std(0)[:2], 1 / 4, atol=1e-3)  # three points have two axes
    np.testing.assert_allclose(distinct[:, 2], 0, atol=1e-4)


def test_earlier_listings_are_compared_where_the_rows_have_them(tmp_path, encoder):
    none = lambda names: pl.Series([None] * len(names), dtype=pl.String)
    past = {split: {"hist_name_1": ["lamp"] * len(names), "hist_name_2": none(names)} for split, names in NAMES.items()}
    features = write_features(tmp_path / "features", extra=past)
    manifest = make_vectors(features, encoder, tmp_path / "out", tmp_path / "memo")
    assert manifest["names"][3:] == ["alike_1", "alike_2"]
    _, numbers = load_split(features, "train", tmp_path / "out")
    assert numbers.shape == (5, 7)
    np.testing.assert_allclose(numbers[[1]][0, 5:], [1, 0], atol=1e-6)
    assert (np.abs(numbers[:][:, 5]) <= 1 + 1e-6).all() and numbers[[0]][0, 5] < 0.999
    rows = pl.read_parquet(features / "rows/train.parquet")
    np.testing.assert_allclose(numbers[:][:, 2:], ListingText(tmp_path / "out/text")(rows), atol=1e-4)


def test_only_new_texts_are_encoded(tmp_path, encoder, monkeypatch):
    encoded, plain = [], TextEncoder.__call__
    monkeypatch.setattr(TextEncoder, "__call__", lambda self, texts: encoded.extend(texts) or plain(self, texts))
    monkeypatch.setattr("tasks.vectors.SHARD", 2)
    first = make_vectors(write_features(tmp_path / "a"), encoder, tmp_path / "out", tmp_path / "memo")
    assert sorted(encoded) == ["blue shirt", "lamp", "new chair", "old lamp", "red chair"]
    before, table = len(encoded), (tmp_path / "out/table.npy").read_bytes()
    assert make_vectors(tmp_path / "a", encoder, tmp_path / "out", tmp_path / "memo") == first
    assert len(encoded) == before and (tmp_path / "out/table.npy").read_bytes() == table
    more = NAMES | {"test": ["new chair", "red shirt"]}
    make_vectors(write_features(tmp_path / "b", more), encoder, tmp_path / "out", tmp_path / "memo")
    assert encoded[before:] == ["red shirt"]
    shard = min((tmp_path / "memo").glob("*/*.parquet"))
    shard.unlink()  # as a kill between the two files of a shard leaves it
    again = make_vectors(tmp_path / "a", encoder, tmp_path / "out", tmp_path / "memo")
    assert len(encoded) == before + 3 and again["texts"] == 5
    shutil.rmtree(tmp_path / "memo")
    assert make_vectors(tmp_path / "a", encoder, tmp_path / "fresh", tmp_path / "memo") == first
    assert digest(tmp_path / "fresh") != "" and (tmp_path / "fresh/table.npy").read_bytes() == table


def test_another_encoder_shares_no_vector(tmp_path, encoder):
    features = write_features(tmp_path / "features")
    one = make_vectors(features, encoder, tmp_path / "one", tmp_path / "memo")
    other = tmp_path / "encoder"
    listing_encoder({"encoder": str(write_reader(tmp_path / "model", seed=9)), "width": 3}, other)
    two = make_vectors(features, other, tmp_path / "two", tmp_path / "memo")
    assert one["content"] != two["content"] and one["table"] != two["table"]
    third = tmp_path / "third"
    listing_encoder({"encoder": str(write_reader(tmp_path / "model3", seed=10)), "width": 3}, third)
    make_vectors(features, third, tmp_path / "three", tmp_path / "memo")
    assert len(list((tmp_path / "memo").iterdir())) == 2  # of three encoders, the two used last


def test_without_an_encoder_rows_are_as_they_were(tmp_path):
    features = write_features(tmp_path / "features")
    listing_encoder(None, tmp_path / "none")
    assert make_vectors(features, tmp_path / "none", tmp_path / "out", tmp_path / "memo")["content"] is None
    _, numbers = load_split(features, "train", tmp_path / "out")
    assert numbers.shape == (5, 2) and text_names(tmp_path / "out") == text_names(None) == []
    assert not (tmp_path / "memo").exists()


def test_rows_without_words_are_refused(tmp_path, encoder):
    features = write_features(tmp_path / "features", NAMES | {"train": [None, " "]})
    with pytest.raises(NoText, match="no training row of .* has words in name"):
        make_vectors(features, encoder, tmp_path / "out", tmp_path / "memo")
    pl.DataFrame({"title": ["x"]}).write_parquet(features / "rows/train.parquet")
    with pytest.raises(NoText, match="have no name; name other columns below `columns`"):
        make_vectors(features, encoder, tmp_path / "out", tmp_path / "memo")
    assert not (tmp_path / "out").exists()


def test_what_the_labels_are_made_of_is_no_text(tmp_path, encoder):
    told = {split: {"event_id": ["item_view"] * len(names)} for split, names in NAMES.items()}
    features = write_features(tmp_path / "features", extra=told)
    listing_encoder({"encoder": str(encoder / "model"), "columns": ["name", "event_id"]}, tmp_path / "encoder")
    with pytest.raises(NoText, match="event_id: it is what the labels are made of"):
        make_vectors(features, tmp_path / "encoder", tmp_path / "out", tmp_path / "memo")


def test_vectors_of_other_rows_are_refused(tmp_path, encoder):
    features = write_features(tmp_path / "features")
    make_vectors(features, encoder, tmp_path / "out", tmp_path / "memo")
    write_features(features, NAMES | {"train": ["lamp"] * 5})
    with pytest.raises(ValueError, match="made of other rows"):
        load_split(features, "train", tmp_path / "out")
