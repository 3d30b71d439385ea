"""Serving over HTTP and scoring: only from this machine, only the registered bytes, whatever MLmodel says."""

import contextlib
import pickle
import shutil
from pathlib import Path

import pytest
import yaml

from tasks import flavor, score, serve_http, track
from tasks.hosts import HostRefused
from tasks.poison import PoisonedFolder
from tasks.score import ChangedVersion
from tests._exploits import Bomb, code, edit, zipped
from tests.tasks._speaker import speaker

NAME = "models:/recommend-offer_make@champion"


def describe(folder: Path, **entries) -> None:
    """Change what MLmodel says of the flavour python_function; None takes an entry out."""
    file = folder / "MLmodel"
    told = yaml.safe_load(file.read_text())
    changed = told["flavors"]["python_function"] | entries
    told["flavors"]["python_function"] = {key: value for key, value in changed.items() if value is not None}
    file.write_text(yaml.safe_dump(told))


def _cloudpickle(folder: Path, marker: Path) -> None:
    (folder / "notes.json").write_bytes(pickle.dumps(Bomb(marker)))
    describe(folder, loader_module="mlflow.pyfunc.model", python_model="notes.json", model_code_path=None)


def _pickle_of_sklearn(folder: Path, marker: Path) -> None:
    (folder / "notes.json").write_bytes(pickle.dumps(Bomb(marker)))
    describe(folder, loader_module="mlflow.sklearn", model_path="notes.json")


def _archive_on_the_path(folder: Path, marker: Path) -> None:
    zipped(folder / "notes.json", "bundled", marker)  # serve.py imports bundled
    describe(folder, code="notes.json")


def _own_loader(folder: Path, marker: Path) -> None:
    zipped(folder / "more.json", "evil_loader", marker)
    describe(folder, code="more.json", loader_module="evil_loader")


def _another_flavour(folder: Path, marker: Path) -> None:
    file = folder / "MLmodel"
    told = yaml.safe_load(file.read_text())
    told["flavors"]["sklearn"] = {"pickled_model": "notes.json"}
    file.write_text(yaml.safe_dump(told))


def _another_bundle(folder: Path, marker: Path) -> None:
    shutil.copytree(folder / "artifacts/bundle", folder / "artifacts/other")
    describe(folder, artifacts={"bundle": {"path": "artifacts/other"}})


def _a_file_of_code(folder: Path, marker: Path) -> None:
    (folder / "code/sitecustomize.py").write_text(code(marker))


def _changed_code(folder: Path, marker: Path) -> None:
    (folder / "serve.py").write_text(code(marker) + (folder / "serve.py").read_text())


def _yaml_that_runs(folder: Path, marker: Path) -> None:
    (folder / "MLmodel").write_text(f"flavors: !!python/object/apply:os.system ['touch {marker}']\n")


EXPLOITS = {
    made.__name__.strip("_"): made
    for made in (_cloudpickle, _pickle_of_sklearn, _archive_on_the_path, _own_loader, _another_flavour, _another_bundle,
                 _a_file_of_code, _changed_code, _yaml_that_runs)
}  # fmt: skip


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "marker"


def stored(uri: str) -> Path:
    """Where the registry keeps the files of a version."""
    import mlflow

    version = track.resolve(uri)
    source = mlflow.MlflowClient(track.uri()).get_model_version(version.name, str(version.number)).source
    found = mlflow.MlflowClient(track.uri()).get_logged_model(source.removeprefix("models:/"))
    return Path(found.artifact_location.removeprefix("file://"))


@pytest.fixture
def version(promoted) -> Path:
    """The files of a registered version, restored afterwards: the registries of all tests share them."""
    folder = stored(NAME)
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    yield folder
    shutil.rmtree(folder)
    kept.rename(folder)


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_a_poisoned_version_is_refused_by_scoring_and_serving(version, exploit, marker, tmp_path):
    EXPLOITS[exploit](version, marker)
    with pytest.raises(ChangedVersion, match="nothing was loaded"):
        score.score(NAME, tmp_path / "rows.parquet", tmp_path / "out.parquet")
    with pytest.raises(ChangedVersion, match="nothing was loaded"):
        serve_http.serve("recommend-offer_make")
    assert not marker.exists()


@pytest.mark.parametrize("exploit", ["archive_on_the_path", "own_loader", "changed_code", "cloudpickle"])
def test_control_mlflow_runs_it(version, exploit, marker, monkeypatch):
    import sys

    import mlflow

    EXPLOITS[exploit](version, marker)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.path_importer_cache.clear()  # an archive of this name was there before
    for name in ("bundled", "evil_loader"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with contextlib.suppress(BaseException):  # whatever it raises, it has run by then
        mlflow.pyfunc.load_model(str(version))
    assert marker.exists()


def test_the_registered_bytes_are_served(version, tmp_path):
    files = serve_http.checked(NAME, tmp_path / "copy")
    assert (files / "artifacts/bundle/manifest.json").is_file()


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3"])
def test_a_server_without_a_password_stays_on_this_machine(address, monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_HOST", address)
    with pytest.raises(HostRefused, match=f"does not listen on {address}.* put a proxy with TLS"):
        serve_http.serve("recommend-offer_make")


# A language model's version: only its model/ is hashed, and MLflow trusts what stands around it


@pytest.fixture
def written(tmp_path) -> Path:
    """What tasks/flavor.py saves of a model."""
    from mlflow.models import Model

    made = speaker(tmp_path / "made")
    described = Model()
    flavor.save_model(str(tmp_path / "version"), described, made)
    return tmp_path / "version"


def _remote_component(folder: Path, marker: Path) -> None:
    (folder / "components/tokenizer/tokenization_evil.py").write_text(code(marker, "class Evil:\n    pass\n"))
    edit(folder / "components/tokenizer/tokenizer_config.json", tokenizer_class="Evil",
         auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]})  # fmt: skip


def _changed_component(folder: Path, marker: Path) -> None:
    edit(folder / "components/tokenizer/tokenizer_config.json", extra_special_tokens={"x": "<x>"})


def _transformers_flavour(key: str, value) -> object:
    def change(folder: Path, marker: Path) -> None:
        told = yaml.safe_load((folder / "MLmodel").read_text())
        told["flavors"]["transformers"][key] = value
        (folder / "MLmodel").write_text(yaml.safe_dump(told))

    return change


AROUND = {
    "remote_component": _remote_component,
    "changed_component": _changed_component,
    "another_repository": _transformers_flavour("source_model_name", "somebody/evil"),
    "another_binary": _transformers_flavour("model_binary", "../evil"),
    "code_on_the_path": _transformers_flavour("code", "components"),
    "own_loader": lambda folder, marker: describe(folder, loader_module="evil_loader"),
    "code_of_pyfunc": lambda folder, marker: describe(folder, code="components"),
    "data_of_pyfunc": lambda folder, marker: describe(folder, data="evil"),
    "pickle_flavour": lambda folder, marker: (folder / "python_model.pkl").write_bytes(pickle.dumps(Bomb(marker))),
    "yaml_that_runs": _yaml_that_runs,
    "nothing": lambda folder, marker: (folder / "MLmodel").write_text("[]"),
}


@pytest.mark.parametrize("exploit", AROUND)
def test_what_stands_around_a_language_model_is_what_was_written(written, exploit, marker):
    flavor.check_version(written)
    AROUND[exploit](written, marker)
    with pytest.raises(PoisonedFolder):
        flavor.check_version(written)
    assert not marker.exists()


def test_promotion_and_serving_look_around_it(written, marker, monkeypatch, tmp_path):
    from tasks import promote_language

    _remote_component(written, marker)
    content = flavor.content(written / "model")
    found = track.Version("language-evil", 1, "run", {"content_sha256": content})
    monkeypatch.setattr(track, "model_files", lambda version, folder: shutil.copytree(written, folder))
    monkeypatch.setattr(track, "resolve", lambda uri: found)
    with pytest.raises(PoisonedFolder, match=r"tokenization_evil.py is code"):
        promote_language.replay(found)
    with pytest.raises(PoisonedFolder, match=r"tokenization_evil.py is code"):
        serve_http.checked("models:/language-evil/1", tmp_path / "copy")
    (written / "model/config.json").write_text("{}")
    with pytest.raises(ChangedVersion, match="its model/ is not the registered one"):
        serve_http.checked("models:/language-evil/1", tmp_path / "again")
    assert not marker.exists()


def test_control_mlflow_trusts_the_component(written, marker, monkeypatch, tmp_path):
    import mlflow

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    _remote_component(written, marker)
    _transformers_flavour("tokenizer_type", "Evil")(written, marker)
    with contextlib.suppress(BaseException):
        mlflow.transformers.load_model(str(written), return_type="components")
    assert marker.exists()
