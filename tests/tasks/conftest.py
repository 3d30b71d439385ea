"""A trained small shop and MLflow databases, made once a session: a new database costs seconds, a copy nothing."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import _shop
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_folder(tmp_path, monkeypatch) -> Path:
    """A working directory of the test's own, with training slots of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")
    return tmp_path


@pytest.fixture
def quick(warm, monkeypatch) -> None:
    """A fresh process has its libraries already, and still nothing of ours."""
    monkeypatch.setattr("tasks.fresh.sys", SimpleNamespace(executable=warm))


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Path:
    """ingest/, features/, backbone/ and prompt/offer_make/ of `_shop`; read only."""
    root = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("tasks.slots.FOLDER", root / "slots")  # not the host's: a test does not wait for a real training
        _shop.build(root)
    return root


@pytest.fixture(scope="session")
def _empty(tmp_path_factory) -> Path:
    from tasks import track

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
        track.identity()
    return file


@pytest.fixture
def registry(_empty, tmp_path, monkeypatch) -> Path:
    """The file of an MLflow registry of its own, without any model; MLFLOW_TRACKING_URI names it."""
    return _use(_empty, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def _filled(_empty, shop, tmp_path_factory) -> Path:
    from tasks.gate import gate
    from tasks.promote import promote

    folder = tmp_path_factory.mktemp("promoted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("tasks.fresh.score", _shop.answer)
        file = _use(_empty, folder, patch)
        for name, head in (("backbone", None), ("offer_make", shop / "prompt/offer_make")):
            gate({}, name, shop / "ingest", shop / "features", shop / "backbone", folder / name, head)
            promote(name, folder / name, shop / "features", shop / "backbone", folder / f"{name}.json", head)
    return file


@pytest.fixture
def promoted(_filled, tmp_path, monkeypatch) -> Path:
    """A registry whose champions are version 1 of recommend-backbone and of recommend-offer_make, both from `shop`."""
    return _use(_filled, tmp_path, monkeypatch)


def _use(template: Path, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    file = shutil.copy(template, folder / "mlflow.db")
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    return Path(file)
