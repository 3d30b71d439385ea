"""A shop whose listings have titles: what training reads of them is what serving computes."""

import shutil
from pathlib import Path

import _shop
import mlflow
import numpy as np
import polars as pl
import pytest
import torch
from _reader import write_reader
from safetensors.torch import load_file

from tasks import bundle, track
from tasks.batches import load_split
from tasks.evaluate import predict
from tasks.features import make_features
from tasks.files import read_json
from tasks.gate import gate
from tasks.listing_encoder import listing_encoder
from tasks.promote import promote
from tasks.train import load_backbone, train_backbone
from tasks.tune_prompt import tune
from tasks.vectors import make_vectors

RECOMMEND = _shop.RECOMMEND | {"features": {"texts": {"name": 2}}}
OPEN = {"default": {"floors": {"auc": 0.1}, "ceilings": {"latency_ms": 5000}}}


def add_vectors(root: Path, name: str, seed: int = 0) -> Path:
    listing_encoder({"encoder": str(write_reader(root / f"model-{name}", seed)), "width": 6}, root / f"encoder-{name}")
    make_vectors(root / "features", root / f"encoder-{name}", root / f"vectors-{name}", root / "vector-memo")
    return root / f"vectors-{name}"


@pytest.fixture(scope="module")
def titled(tmp_path_factory):
    """ingest/, features/, vectors-own/, backbone/, prompt/offer_make/."""
    root = tmp_path_factory.mktemp("titled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.slots.FOLDER", root / "slots")
        _shop.write_events(root / "ingest")
        path = root / "ingest/events/bucket=0/part.parquet"
        words = pl.concat_str(
            pl.when(pl.col("price") < 30).then(pl.lit("old ")).otherwise(pl.lit("new ")),
            pl.when(pl.col("c0_name") == "c0").then(pl.lit("chair ")).otherwise(pl.lit("lamp ")),
            pl.when(pl.col("item") % 3 == 0).then(pl.lit("red")).otherwise(pl.lit("blue")),
        )
        frame = pl.read_parquet(path).with_columns(name=pl.when(pl.col("item") != 9).then(words))
        frame.write_parquet(path)
        make_features(RECOMMEND, root / "ingest", root / "features", _shop.FEATURES, _shop.EVENTS)
        vectors = add_vectors(root, "own")
        train_backbone(
            RECOMMEND["backbone"], root / "ingest", root / "features", root / "backbone", root / "checkpoints", vectors
        )
        tune(RECOMMEND, "offer_make", root / "ingest", root / "features", root / "backbone", root / "prompt/offer_make",
             root / "memo", vectors)  # fmt: skip
    return root


@pytest.fixture(scope="module")
def packed(titled, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed-titles")
    bundle.pack(titled / "backbone", titled / "prompt/offer_make", out)
    return out


@pytest.fixture
def model(packed):
    return bundle.load(packed)


@pytest.fixture(scope="module")
def rows(titled):
    return pl.read_parquet(titled / "features/rows/test.parquet")


def test_the_rows_carry_earlier_titles_that_are_no_features_themselves(titled, rows):
    manifest = read_json(titled / "features/manifest.json")
    assert not {"name", "hist_name_1"} & {*manifest["categorical"], *manifest["numerical"]}
    first = rows.filter(pl.col("sampled").is_null()).sort("user", "stime").row(1, named=True)
    earlier = pl.read_parquet(titled / "ingest/events/bucket=0/part.parquet")
    earlier = earlier.filter((pl.col("user") == first["user"]) & (pl.col("stime") < first["stime"])).sort("stime")
    assert first["hist_name_1"] == earlier["name"][-1] and first["hist_name_2"] == earlier["name"][-2]


def test_the_backbone_reads_the_texts_beside_its_numbers(titled):
    manifest, (_, numbers) = read_json(titled / "features/manifest.json"), _split(titled)
    about = read_json(titled / "backbone/backbone.json")
    assert about["dense"] == numbers.shape[1] == len(manifest["numerical"]) + 6 + 2
    assert read_json(titled / "backbone/text/text.json")["columns"] == ["name"]
    assert not np.allclose(numbers[:][:, 2:8].std(0), 0)


def _split(titled):
    return load_split(titled / "features", "test", titled / "vectors-own")


def test_served_numbers_are_those_of_training(titled, model, rows):
    ids, numbers = model.inputs(model.frame(rows.to_pandas()))
    then = _split(titled)
    np.testing.assert_array_equal(ids, then[0])
    np.testing.assert_allclose(numbers, then[1][:], atol=1e-4)
    one = model.frame(rows[[5]].to_pandas())
    np.testing.assert_allclose(model.inputs(one)[1], numbers[[5]], atol=1e-4)


def test_a_head_answers_as_in_its_own_test(titled, model, rows):
    tested = pl.read_parquet(titled / "prompt/offer_make/test.parquet")
    served = model.predict(None, rows.to_pandas())["probability"].to_numpy()
    np.testing.assert_allclose(served[tested["row"]], tested["probability"], atol=1e-4)
    trained, _ = load_backbone(titled / "backbone")
    assert predict(trained, *_split(titled)).shape == (len(rows), 2)


def test_a_title_never_seen_is_read_and_none_at_all_is_average(model, rows):
    frame = rows.head(4).to_pandas()
    asked = lambda **words: model.predict(None, frame.assign(**words))["probability"].to_numpy()
    assert np.abs(asked(name="shirt shirt old") - asked(name="new lamp")).max() > 1e-6
    nothing = asked(name=None, hist_name_1=None, hist_name_2="  ")
    numbers = model.inputs(model.frame(frame.assign(name=None, hist_name_1=None, hist_name_2="  ")))[1]
    assert np.isfinite(nothing).all() and (numbers[:, 2:] == 0).all()
    with pytest.raises(ValueError, match="lack 2 columns: name, hist_name_2"):
        model.predict(None, frame.drop(columns=["name", "hist_name_2"]))


def test_the_reader_travels_and_nothing_else_does(packed, titled, shop, tmp_path):
    files = read_json(packed / "bundle/manifest.json")
    assert {"texts.py", "serve.py", "encoder.py"} < set(files["code"])
    assert "backbone/text/model/model.safetensors" in files["files"]
    bundle.pack(shop / "backbone", None, tmp_path / "plain")
    plain = read_json(tmp_path / "plain/bundle/manifest.json")
    assert "texts.py" not in plain["code"] and not any("text" in name for name in plain["files"])
    changed = bytearray((packed / "bundle/backbone/text/projection.safetensors").read_bytes())
    changed[-1] ^= 1
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    (copy / "bundle/backbone/text/projection.safetensors").write_bytes(changed)
    with pytest.raises(ValueError, match="projection.safetensors changed since it was registered"):
        bundle.load(copy)


def test_a_head_is_tuned_on_the_vectors_of_its_backbone_only(titled, tmp_path):
    other = add_vectors(Path(shutil.copytree(titled, tmp_path / "copy")), "other", seed=8)
    arguments = ["offer_make", titled / "ingest", titled / "features", titled / "backbone", tmp_path / "out", tmp_path]
    for vectors in (None, other):
        with pytest.raises(ValueError, match="run `dvc repro backbone`"):
            tune(RECOMMEND, *arguments, vectors)
    assert not (tmp_path / "out").exists()


def test_the_head_left_the_backbone_as_it_was(titled):
    proof = read_json(titled / "prompt/offer_make/proof.json")
    assert proof["backbone_unchanged"] and proof["old_predictions_equal"] and not proof["backbone_gradients"]
    probe = load_file(titled / "backbone/probe.safetensors")
    assert probe["numerical"].shape[1] == 2 + 6 + 2 and torch.isfinite(probe["prediction"]).all()


def test_the_gate_holds_served_texts_against_those_of_training(titled, registry, tmp_path):
    judged = lambda vectors, out: gate(
        OPEN, "offer_make", titled / "ingest", titled / "features", titled / "backbone", tmp_path / out,
        titled / "prompt/offer_make", vectors,
    )  # fmt: skip
    verdict = judged(titled / "vectors-own", "good")
    facts = {check["name"]: check for check in verdict["checks"]}
    assert verdict["passed"], [check for check in verdict["checks"] if check["passed"] is False]
    assert facts["texts served as trained"]["passed"] and facts["served as trained"]["passed"]
    assert facts["metrics are as training reported them"]["passed"]
    broken = Path(shutil.copytree(titled / "vectors-own", tmp_path / "broken"))
    table = np.lib.format.open_memmap(broken / "table.npy", "r+")
    table[3] += 0.1
    table.flush()
    verdict = judged(broken, "bad")
    assert not verdict["passed"]
    assert any(check["name"] == "texts served as trained" and check["passed"] is False for check in verdict["checks"])


def test_a_registered_head_reads_titles_from_the_registry_alone(titled, registry, tmp_path, monkeypatch, rows):
    monkeypatch.setattr("tasks.fresh.score", _shop.answer)
    run = track.log_run("test", params={}, metrics={})
    content = read_json(titled / "backbone/text/text.json")["content"]
    track.register_folder(run, track.LISTINGS, titled / "model-own", {}, {"content_sha256": content})
    for name, head in (("backbone", None), ("offer_make", titled / "prompt/offer_make")):
        gate(OPEN, name, titled / "ingest", titled / "features", titled / "backbone", tmp_path / name, head,
             titled / "vectors-own")  # fmt: skip
        done = promote(name, tmp_path / name, titled / "features", titled / "backbone", tmp_path / f"{name}.json", head)
        assert done["status"] == "promoted"
    version = track.by_alias("recommend-offer_make", "champion")
    assert version.tags["text_encoder"] == "models:/listing-encoder/1" and version.tags["text_sha256"] == content
    loaded = mlflow.pyfunc.load_model(version.uri)
    columns = [column.name for column in loaded.metadata.signature.inputs]
    assert columns[-3:] == ["name", "hist_name_1", "hist_name_2"]
    served = loaded.predict(rows.head(6).select(columns).to_pandas())["probability"]
    mine = bundle.load(_packed(titled, tmp_path)).predict(None, rows.head(6).to_pandas())["probability"]
    np.testing.assert_allclose(served, mine, atol=1e-6)


def _packed(titled, tmp_path):
    bundle.pack(titled / "backbone", titled / "prompt/offer_make", tmp_path / "packed")
    return tmp_path / "packed"
