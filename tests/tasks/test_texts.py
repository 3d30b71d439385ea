import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from _reader import write_reader
from transformers import AutoModel, AutoTokenizer

from tasks.texts import ListingText, Projection, TextEncoder, UnreadableEncoder, numbers_of, save_projection, text_of

TITLES = ["red chair", "blue chair old", "lamp", "new new shirt red blue", "old lamps", "chair"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_reader(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def encode(folder):
    return TextEncoder(folder)


def test_a_vector_is_the_mean_of_the_last_hidden_states(folder, encode):
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for title, vector in zip(TITLES, encode(TITLES), strict=True):
        with torch.inference_mode():
            hidden = model(**tokenizer(title, return_tensors="pt")).last_hidden_state
        np.testing.assert_allclose(vector, hidden[0].mean(0).numpy(), atol=1e-5)


def test_padding_and_the_company_of_other_texts_change_nothing(encode):
    together = encode(TITLES)
    assert together.shape == (6, 16) and together.dtype == np.float32
    np.testing.assert_allclose(np.concatenate([encode([title]) for title in TITLES]), together, atol=1e-5)
    np.testing.assert_allclose(encode(TITLES[::-1]), together[::-1], atol=1e-5)
    assert encode([]).shape == (0, 16)


def test_many_texts_are_cut_into_batches_and_come_back_in_order(encode, monkeypatch):
    whole = encode(TITLES * 3)
    monkeypatch.setattr("tasks.texts.TOKENS", 8)
    np.testing.assert_allclose(encode(TITLES * 3), whole, atol=1e-5)


def test_a_long_text_is_read_to_the_last_place_there_is(encode):
    assert encode.longest == 16
    words = ["red", "blue"] * 40
    np.testing.assert_array_equal(encode([" ".join(words)]), encode([" ".join(words[:60])]))


def test_the_body_of_a_classifier_is_the_encoder(tmp_path):
    encode = TextEncoder(write_reader(tmp_path, classes=True))
    assert encode(["red lamp"]).shape == (1, 16)


def test_what_is_no_encoder_is_refused(tmp_path, folder):
    with pytest.raises(UnreadableEncoder, match="no config.json and no tokenizer_config.json"):
        TextEncoder(tmp_path)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UnreadableEncoder, match="cannot be loaded"):
        TextEncoder(tmp_path)


def test_the_projection_by_hand():
    # On the line (1, 1)/sqrt 2 through (2, 2): distances -1, 1 and 0, of mean square 2/3. The other axis is flat.
    step = 1 / math.sqrt(2)
    points = np.array([[2 - step, 2 - step], [2 + step, 2 + step], [2, 2]], np.float32)
    found = Projection.fit([points[:1], points[1:]], width=2)
    np.testing.assert_allclose(found.mean, [2, 2], atol=1e-6)
    np.testing.assert_allclose(found.axes, [[step, step], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(found.scale, [math.sqrt(2 / 3), 1], atol=1e-6)
    np.testing.assert_allclose(found(points), [[-math.sqrt(1.5) / 4, 0], [math.sqrt(1.5) / 4, 0], [0, 0]], atol=1e-5)
    assert found(np.float32([[90, 90]]))[0, 0] == 1  # four deviations away and no further


def test_training_texts_are_standardised_in_whatever_portions():
    vectors = np.random.default_rng(1).normal(3, 1, (500, 6)).astype(np.float32) @ np.diag([5, 3, 2, 1, 1, 1])
    vectors = vectors.astype(np.float32)
    whole, parts = Projection.fit([vectors], 4), Projection.fit(np.array_split(vectors, 7), 4)
    numbers = 4 * whole(vectors)
    np.testing.assert_allclose(numbers.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(numbers.std(0), 1, atol=0.02)
    np.testing.assert_allclose(np.corrcoef(numbers.T), np.eye(4), atol=0.02)
    np.testing.assert_allclose(parts(vectors), whole(vectors), atol=1e-4)
    assert len(Projection.fit([vectors], 99).scale) == 6


def test_no_vectors_and_broken_ones_are_refused():
    with pytest.raises(ValueError, match="finite vectors of training texts; there are 0"):
        Projection.fit([], 2)
    with pytest.raises(ValueError, match="there are 1"):
        Projection.fit([np.float32([[1, np.nan]])], 2)


def test_likeness_by_hand():
    # s z = (3, 4) against (4, 3): cosine 24/25; against itself 1; against no words 0.
    table, scale = np.float32([[0, 0], [3, 2], [4, 1.5]]), np.float32([1, 2])
    found = numbers_of(table, np.array([[1, 2, 1, 0], [0, 1, 0, 2]]), scale)
    np.testing.assert_allclose(found, [[3, 2, 24 / 25, 1, 0], [0, 0, 0, 0, 0]], atol=1e-6)
    np.testing.assert_array_equal(numbers_of(table, np.array([[2], [0]]), scale), table[[2, 0]])


def test_a_text_is_what_its_columns_know():
    frame = pl.DataFrame({"name": [" red chair", None, None, " "], "brand": ["Oak", "Oak", None, None]})
    assert frame.select(text_of(["name", "brand"])).to_series().to_list() == ["red chair Oak", "Oak", None, None]


def test_rows_are_read_by_their_words_only_once(folder, tmp_path, encode):
    projection = Projection.fit([encode(TITLES)], 3)
    (tmp_path / "model").symlink_to(folder)
    save_projection(projection, tmp_path / "projection.safetensors")
    (tmp_path / "text.json").write_text(json.dumps({"columns": ["name"], "history": 1}))
    text = ListingText(tmp_path)
    assert text.columns == ["name", "hist_name_1"] and text.width == 4
    rows = pl.DataFrame({"name": ["lamp", None, "lamp", "red chair"], "hist_name_1": ["lamp", "lamp", "chair", None]})
    found = text(rows)
    z = dict(zip(TITLES, projection(encode(TITLES)), strict=True))
    np.testing.assert_allclose(found[:, :3], [z["lamp"], [0] * 3, z["lamp"], z["red chair"]], atol=1e-4)
    np.testing.assert_allclose(found[[0, 1, 3], 3], [1, 0, 0], atol=1e-5)
    assert text(rows.head(0)).shape == (0, 4)
    seen = []
    text.encode = lambda texts: seen.append(list(texts)) or encode(texts)
    text(rows)
    assert seen == [["lamp", "red chair", "chair"]]
    text.known = {"lamp": np.float32([7, 7, 7])}
    assert (text(rows)[0, :3] == 7).all() and seen[1] == ["red chair", "chair"]
