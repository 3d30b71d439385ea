import ast
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import tasks.encoder
from tasks.encoder import Encoder, EncodingError

TRAIN = pl.DataFrame({
    "brand": [30, None, 10, 30, 20],
    "color": ["red", "blue", None, "red", "é"],
    "fresh": [True, False, None, True, True],
    "price": [1.0, 3.0, None, 7.0, 5.0],
})  # fmt: skip


def fitted(**settings) -> Encoder:
    return Encoder.fit(TRAIN, ["brand", "color", "fresh"], ["price"], **({"log1p": []} | settings))


def test_ids_by_hand():
    # 0 unknown, 1 missing, then ascending: brand 10, 20, 30; color blue, red, é; fresh false, true.
    encoder = fitted()
    ids, values = encoder.transform(TRAIN)
    assert ids.dtype == np.int32
    assert values.dtype == np.float32
    assert ids.tolist() == [[4, 3, 3], [1, 2, 2], [2, 1, 1], [4, 3, 3], [3, 4, 3]]
    assert encoder.sizes == [5, 5, 4]
    assert values[:, 0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1, 2 / 3])  # low 1, high 7, lower median 3


def test_unknown_is_row_0_of_its_own_field_and_values_are_clipped():
    new = pl.DataFrame({"brand": [99, 10], "color": ["red", "green"], "fresh": [None, None], "price": [-5.0, 1e9]})
    ids, values = fitted().transform(new)
    assert ids.tolist() == [[0, 3, 1], [2, 0, 1]]
    assert values[:, 0].tolist() == [0, 1]


def test_log1p_by_hand():
    # log1p: low ln 2, high ln 8; 3 -> (ln 4 - ln 2) / (ln 8 - ln 2) = ln 2 / ln 4 = 1/2.
    _, values = fitted(log1p=["price"]).transform(TRAIN)
    assert values[:, 0].tolist() == pytest.approx([0, 0.5, 0.5, 1, math.log(3) / math.log(4)])


def test_skewed_columns_get_a_logarithm_by_themselves():
    rng = np.random.default_rng(0)
    columns = {"price": rng.lognormal(3, 1.4, 2000), "hour": rng.integers(0, 24, 2000), "signed": rng.normal(size=2000)}
    encoder = Encoder.fit(pl.DataFrame(columns), [], list(columns))
    assert {scale.name: scale.log1p for scale in encoder.scales} == {"price": True, "hour": False, "signed": False}


def test_rare_values_teach_the_unknown_row():
    ids, _ = fitted(min_count=2).transform(TRAIN)
    assert ids[:, 0].tolist() == [2, 1, 0, 2, 0]  # only 30 occurs twice


def test_long_and_short_frames_encode_alike():
    rng = np.random.default_rng(1)
    n = 3 * tasks.encoder.SMALL
    raw = {
        "brand": rng.integers(0, 60, n),
        "color": rng.choice(["red", "blue", "é", "?"], n),
        "fresh": rng.random(n) < 0.5,
    }
    frame = pl.DataFrame(raw | {"price": rng.random(n) * 9}).with_columns(
        pl.when(pl.int_range(pl.len()) % 7 > 0).then(pl.all())  # a seventh is null
    )
    encoder = Encoder.fit(frame.filter(pl.col("color") != "?"), ["brand", "color", "fresh"], ["price"], min_count=3)
    whole = encoder.transform(frame)
    single = [encoder.transform(frame[i : i + 1]) for i in range(n)]
    for place in (0, 1):
        np.testing.assert_array_equal(whole[place], np.concatenate([one[place] for one in single]))
    assert set(whole[0][:, 1].tolist()) == {0, 1, 2, 3, 4}  # "?" was not in training


def test_order_of_rows_and_a_round_trip_change_no_byte():
    encoder = fitted()
    shuffled = Encoder.fit(TRAIN.reverse().lazy(), ["brand", "color", "fresh"], ["price"], log1p=[])
    assert shuffled.to_json() == encoder.to_json() == Encoder.from_json(encoder.to_json()).to_json()
    again = Encoder.from_json(encoder.to_json()).transform(TRAIN)
    for before, after in zip(encoder.transform(TRAIN), again, strict=True):
        np.testing.assert_array_equal(before, after)


def test_no_two_training_values_share_an_id():
    frame = pl.DataFrame({"product_id": [f"p{i % 700}" for i in range(2000)]})
    ids, _ = Encoder.fit(frame, ["product_id"], []).transform(frame)
    assert len(np.unique(ids)) == frame["product_id"].n_unique() == 700


def test_columns_without_values_or_spread():
    frame = pl.DataFrame({"empty": [None, None], "void": pl.Series([None, None], dtype=pl.Float64), "same": [4, 4]})
    encoder = Encoder.fit(frame, ["empty"], ["void", "same"])
    ids, values = encoder.transform(frame)
    assert encoder.sizes == [2]
    assert ids.tolist() == [[1], [1]]
    assert values.tolist() == [[0, 0], [0, 0]]
    assert encoder.transform(pl.DataFrame({"empty": ["x"] * 400, "void": 1.0, "same": 5}))[0].max() == 0


def test_absent_columns():
    encoder = fitted()
    ids, values = encoder.transform(pl.DataFrame({"color": ["red"]}), strict=False)
    assert ids.tolist() == [[1, 3, 1]]
    assert values.tolist() == [[pytest.approx(1 / 3)]]
    with pytest.raises(EncodingError, match="brand is absent; fresh is absent; price is absent"):
        encoder.transform(pl.DataFrame({"color": ["red"]}))


def test_what_cannot_be_encoded_is_named():
    wrong = pl.DataFrame({"brand": ["30"], "color": [1], "fresh": [True], "price": ["cheap"]})
    with pytest.raises(EncodingError, match=r"brand is String.*integer; color is Int64.*string; price is String"):
        fitted().transform(wrong)
    for bad in (math.nan, math.inf):
        with pytest.raises(EncodingError, match="price is NaN or infinite in 1 of 5 rows"):
            fitted().transform(TRAIN.with_columns(price=pl.Series([1.0, bad, None, 2.0, 3.0])))
        with pytest.raises(EncodingError, match="price is NaN or infinite in 1 of"):
            Encoder.fit(TRAIN.with_columns(price=pl.Series([1.0, bad, None, 2.0, 3.0])), [], ["price"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TRAIN, ["brnd"], []), "brnd is not a column"),
        ((TRAIN, ["price"], ["color"]), "price is Float64.*color is String"),
        ((TRAIN, ["brand", "brand"], []), "brand is declared twice"),
        ((TRAIN.clear(), ["brand"], []), "training rows are empty"),
        ((TRAIN, ["brand"], ["price"], 1, ["brand"]), "log1p of brand"),
        ((TRAIN.with_columns(-pl.col("price")), [], ["price"], 1, ["price"]), "log1p of price, which goes down to -7"),
    ],
)
def test_what_cannot_be_fitted_is_named(arguments, message):
    with pytest.raises(EncodingError, match=message):
        Encoder.fit(*arguments)


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"format": 9}', '{"format": 1, "categorical": [{}], "numerical": []}']
)
def test_json_that_is_no_encoder(text):
    with pytest.raises(EncodingError):
        Encoder.from_json(text)


def test_the_file_can_travel_alone():
    tree = ast.parse(Path(tasks.encoder.__file__).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"json", "collections.abc", "dataclasses", "functools", "numpy", "polars"}
