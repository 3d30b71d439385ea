import os
import shutil

import pytest
from _reader import write_reader

from tasks import flavor, track
from tasks.files import read_json
from tasks.listing_encoder import Asked, listing_encoder
from tasks.poison import PoisonedFolder
from tasks.settings import SettingsError


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return write_reader(tmp_path_factory.mktemp("reader") / "model")


def register(folder, name=track.LISTINGS):
    run = track.log_run("test", params={}, metrics={})
    return track.register_folder(run, name, folder, {}, {"content_sha256": flavor.content(folder)})


def test_what_can_be_asked():
    assert Asked.read(None) is None
    assert Asked.read("models:/listing-encoder@champion") == Asked("models:/listing-encoder@champion", ("name",), 32)
    told = {"encoder": "folder", "columns": ["name", "brand_name"], "width": 8}
    assert Asked.read(told) == Asked("folder", ("name", "brand_name"), 8)


@pytest.mark.parametrize(("told", "said"), [
    (7, "is 7; write null"), ({"encodr": "x"}, "no 'encodr'.*encoder is None"), ({"encoder": ""}, "encoder is ''"),
    ({"encoder": "x", "columns": "name"}, "columns is 'name'"), ({"encoder": "x", "width": 0}, "width is 0"),
])  # fmt: skip
def test_what_cannot_be_asked_is_named(told, said):
    with pytest.raises(SettingsError, match=said):
        Asked.read(told)


def test_none_is_an_answer(tmp_path):
    assert listing_encoder(None, tmp_path / "out") == {"content": None}
    assert read_json(tmp_path / "out/encoder.json") == {"content": None}
    before = os.stat(tmp_path / "out/encoder.json").st_mtime_ns
    listing_encoder(None, tmp_path / "out")
    assert os.stat(tmp_path / "out/encoder.json").st_mtime_ns == before


def test_a_folder_is_copied_once_and_followed(tmp_path, reader):
    mine = shutil.copytree(reader, tmp_path / "mine")
    about = listing_encoder(str(mine), tmp_path / "out")
    assert about == {"content": flavor.content(mine), "columns": ["name"], "width": 32}
    assert flavor.content(tmp_path / "out/model") == about["content"]
    written = os.stat(tmp_path / "out/model/model.safetensors").st_mtime_ns
    assert listing_encoder(str(mine), tmp_path / "out") == about
    assert os.stat(tmp_path / "out/model/model.safetensors").st_mtime_ns == written
    write_reader(mine, seed=3)
    assert listing_encoder(str(mine), tmp_path / "out")["content"] == flavor.content(mine) != about["content"]
    shutil.rmtree(tmp_path / "out/model")  # a person tidied up
    listing_encoder(str(mine), tmp_path / "out")
    assert flavor.content(tmp_path / "out/model") == flavor.content(mine)
    assert listing_encoder(None, tmp_path / "out") == {"content": None}
    assert not (tmp_path / "out/model").exists()


def test_a_folder_that_is_gone_is_a_warning_where_it_was_fetched_before(tmp_path, reader, capsys):
    with pytest.raises(SettingsError, match="no folder with a config.json.*nothing was fetched from there before"):
        listing_encoder(str(tmp_path / "typo"), tmp_path / "out")
    mine = shutil.copytree(reader, tmp_path / "mine")
    about = listing_encoder(str(mine), tmp_path / "out")
    shutil.rmtree(mine)
    assert listing_encoder(str(mine), tmp_path / "out") == about
    assert "stays" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="nothing was fetched from there before"):
        listing_encoder(str(tmp_path / "typo"), tmp_path / "out")


def test_an_alias_is_followed_and_a_lost_registry_is_waited_for_by_nobody(
    registry, tmp_path, reader, monkeypatch, capsys
):
    address = f"models:/{track.LISTINGS}@champion"
    with pytest.raises(SettingsError, match="listing-encoder has no champion"):
        listing_encoder(address, tmp_path / "out")
    first, second = register(reader), register(write_reader(tmp_path / "second", seed=4))
    track.set_alias(first, "champion")
    about = listing_encoder(address, tmp_path / "out")
    assert about["content"] == flavor.content(reader) == flavor.content(tmp_path / "out/model")
    assert read_json(tmp_path / "out/source.json") == {"address": address, "version": first.uri}
    track.set_alias(second, "champion")
    moved = listing_encoder(address, tmp_path / "out")
    assert moved["content"] == flavor.content(tmp_path / "second") != about["content"]
    assert listing_encoder(f"models:/{track.LISTINGS}/1", tmp_path / "out") == about
    listing_encoder(address, tmp_path / "out")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/empty.db")
    shutil.copy(registry, tmp_path / "empty.db")
    track.by_alias(track.LISTINGS, "champion")
    monkeypatch.setattr("tasks.track.by_alias", lambda name, alias: None)
    assert listing_encoder(address, tmp_path / "out") == moved
    assert "warning: listing-encoder has no champion" in capsys.readouterr().err


def test_the_same_bytes_under_a_new_number_are_the_same_encoder(registry, tmp_path, reader):
    address = f"models:/{track.LISTINGS}@champion"
    track.set_alias(register(reader), "champion")
    listing_encoder(address, tmp_path / "out")
    before = (tmp_path / "out/encoder.json").read_bytes()
    track.set_alias(again := register(reader), "champion")
    listing_encoder(address, tmp_path / "out")
    assert (tmp_path / "out/encoder.json").read_bytes() == before
    assert read_json(tmp_path / "out/source.json")["version"] == again.uri


def test_files_that_could_run_code_are_refused(tmp_path, reader):
    mine = shutil.copytree(reader, tmp_path / "mine")
    (mine / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(PoisonedFolder, match="pytorch_model.bin"):
        listing_encoder(str(mine), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_version_whose_files_changed_is_refused(registry, tmp_path, reader):
    run = track.log_run("test", params={}, metrics={})
    track.register_folder(run, track.LISTINGS, reader, {}, {"content_sha256": "0" * 64})
    with pytest.raises(SettingsError, match="not those that were registered"):
        listing_encoder(f"models:/{track.LISTINGS}/1", tmp_path / "out")
