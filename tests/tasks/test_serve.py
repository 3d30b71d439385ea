import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tasks import bundle
from tasks.batches import load_split
from tasks.evaluate import predict
from tasks.files import read_json
from tasks.train import load_backbone

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packed(shop, tmp_path_factory):
    """The packed head of offer_make."""
    out = tmp_path_factory.mktemp("packed")
    bundle.pack(shop / "backbone", shop / "prompt/offer_make", out)
    return out


@pytest.fixture(scope="module")
def model(packed):
    return bundle.load(packed)


@pytest.fixture(scope="module")
def rows(shop):
    return pl.read_parquet(shop / "features/rows/test.parquet")


@pytest.fixture
def copy(packed, tmp_path):
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_a_head_answers_as_in_its_own_test(model, rows, shop):
    tested = pl.read_parquet(shop / "prompt/offer_make/test.parquet")
    served = model.predict(None, rows.to_pandas())
    assert list(served.columns) == ["probability"]
    np.testing.assert_allclose(served["probability"].to_numpy()[tested["row"]], tested["probability"], atol=1e-6)


def test_a_backbone_answers_with_one_column_per_task(shop, rows, tmp_path):
    bundle.pack(shop / "backbone", None, tmp_path / "out")
    served = bundle.load(tmp_path / "out").predict(None, rows.to_pandas())
    trained, about = load_backbone(shop / "backbone")
    assert list(served.columns) == about["tasks"] == ["view", "item_like"]
    np.testing.assert_allclose(served.to_numpy(), predict(trained, *load_split(shop / "features", "test")), atol=1e-6)


def test_one_row_is_answered_as_in_a_batch(model, rows):
    frame = rows.head(9).to_pandas()
    together = model.predict(None, frame)["probability"]
    alone = [model.predict(None, frame.iloc[i : i + 1])["probability"].item() for i in range(9)]
    np.testing.assert_allclose(alone, together, atol=1e-6)
    assert len(model.predict(None, frame.head(0))) == 0


def test_the_offset_moves_the_log_odds(model, rows):
    frame = model.frame(rows.head(5).to_pandas())
    odds = lambda: np.log((p := model.score(frame)["probability"].to_numpy()) / (1 - p))
    before, model.offset = odds(), model.offset - 0.5
    try:
        np.testing.assert_allclose(before - odds(), 0.5, atol=1e-4)
    finally:
        model.offset += 0.5


def test_nulls_and_unknown_values_get_a_probability(model, rows):
    frame = (
        rows.head(3)
        .to_pandas()
        .assign(brand_id=[np.nan, 99.0, 3.0], c0_name=[None, "new", "c1"], price=[np.nan, 1e9, 0.0])
    )
    assert model.predict(None, frame)["probability"].between(0, 1).all()
    floats = model.predict(None, frame.assign(brand_id=[3.0, 3.0, 3.0]))
    whole = model.predict(None, frame.assign(brand_id=[3, 3, 3]))
    pd.testing.assert_frame_equal(floats, whole)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_a_row_without_any_value_gets_a_probability(model, missing):
    assert (
        model.predict(None, pd.DataFrame({name: [missing] for name in model.columns}))["probability"]
        .between(0, 1)
        .all()
    )


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("brand_id", 5.5, "brand_id must be Int64"), ("brand_id", "x", "got String such as 'x'"),
     ("c0_name", 7, "c0_name must be String"), ("price", "cheap", "price must be Float64")],
)  # fmt: skip
def test_wrong_types_are_refused(model, rows, column, value, said):
    frame = rows.head(3).to_pandas()
    with pytest.raises(ValueError, match=said):
        model.predict(None, frame.assign(**{column: [value] * 3}))


def test_all_missing_columns_are_named(model, rows):
    with pytest.raises(ValueError, match="lack 2 columns: user_id, price"):
        model.predict(None, rows.head(2).drop("user_id", "price").to_pandas())


@pytest.mark.parametrize(
    "file", ["backbone/model.safetensors", "head/head.safetensors", "backbone/encoder.json", "head/head.json"]
)
def test_changed_bytes_are_refused(copy, file):
    path = copy / "bundle" / file
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} changed since it was registered"):
        bundle.load(copy)


def test_added_and_missing_files_are_refused(copy):
    (copy / "bundle/backbone/extra.json").write_text("{}")
    (copy / "bundle/head/head.json").unlink()
    with pytest.raises(ValueError, match="extra.json is not in the manifest; head/head.json is missing"):
        bundle.load(copy)
    (copy / "bundle/manifest.json").unlink()
    with pytest.raises(ValueError, match="manifest.json cannot be read"):
        bundle.load(copy)


class Poison:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["model.pkl", "weights.bin", "weights.PT"])
def test_a_poisoned_pickle_is_refused_and_never_runs(copy, tmp_path, name):
    marker = tmp_path / "poisoned"
    (copy / "bundle/backbone" / name).write_bytes(pickle.dumps(Poison(marker)))
    with pytest.raises(ValueError, match=f"can run code when read: backbone/{name}"):
        bundle.load(copy)
    assert not marker.exists()


def test_the_same_artefacts_are_the_same_content_whatever_they_cost(shop, tmp_path):
    head = Path(shutil.copytree(shop / "prompt/offer_make", tmp_path / "head"))
    before = bundle.content(shop / "backbone", head)
    about = json.loads((head / "head.json").read_text())
    (head / "head.json").write_text(json.dumps(about | {"best_epoch": about["best_epoch"] + 1}))
    assert bundle.content(shop / "backbone", head) == before
    (head / "head.json").write_text(json.dumps(about | {"offset": about["offset"] + 1}))
    assert bundle.content(shop / "backbone", head) != before
    assert bundle.content(shop / "backbone") != before


def test_only_the_code_that_is_needed_travels(packed):
    code = {path.relative_to(packed / "code").as_posix() for path in (packed / "code").rglob("*.py")}
    assert {
        "serve.py",
        "encoder.py",
        "models/__init__.py",
        "models/recommend/mpt_rec.py",
        "models/recommend/_inputs.py",
    } <= code
    assert not {"models/recommend/ple.py", "models/fit.py", "models/metrics.py"} & code
    assert set(read_json(packed / "bundle/manifest.json")["code"]) == code


def test_serving_imports_neither_tasks_nor_flows(packed):
    text = "".join(path.read_text() for path in (packed / "code").rglob("*.py"))
    assert "from tasks" not in text
    assert "import tasks" not in text
    assert "flows" not in text
    for file in ("serve.py", "encoder.py"):
        assert (packed / "code" / file).read_text() == (ROOT / "tasks" / file).read_text()


def test_the_context_is_the_one_that_mlflow_gives(packed):
    context = SimpleNamespace(artifacts={"bundle": str(packed / "bundle")})
    model = bundle.load(packed)
    model.load_context(context)
    assert model.outputs == ["probability"]
