import shutil
import subprocess
import sys
from pathlib import Path

import _shop
import mlflow
import numpy as np
import polars as pl
import pytest

from tasks import bundle, fresh, score, track
from tasks import promote as module
from tasks import rollback as back
from tasks.files import read_json, write_json
from tasks.gate import gate
from tasks.promote import ReplayFailed, StaleVerdict, promote, replay
from tasks.rebuild import CannotRebuild, rebuild
from tasks.registry import registry as identify
from tasks.rollback import NothingToRollBack, rollback

ROOT = Path(__file__).parents[2]
NAME = "recommend-offer_make"


@pytest.fixture
def here(shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")
    monkeypatch.setattr(fresh, "score", _shop.answer)
    root = tmp_path / "shop"
    shutil.copytree(shop, root, ignore=shutil.ignore_patterns("memo", "checkpoints"))
    return root


def judged(root, gates=None):
    head = root / "prompt/offer_make"
    return gate(gates or {}, "offer_make", root / "ingest", root / "features", root / "backbone", root / "gate", head)


def carried_out(root):
    head = root / "prompt/offer_make"
    return promote("offer_make", root / "gate", root / "features", root / "backbone", root / "receipt.json", head)


def promoted_again(root, seed=1):
    _shop.tune_head(root, seed=seed)
    judged(root)
    return carried_out(root)


def versions(name=NAME):
    return sorted(int(version.version) for version in mlflow.MlflowClient().search_model_versions(f"name = '{name}'"))


def champion(name=NAME):
    found = track.by_alias(name, "champion")
    return found and found.number


def test_what_a_version_says_about_itself(promoted, shop, tmp_path):
    version = track.by_alias(NAME, "champion")
    tags = version.tags
    assert tags["content_sha256"] == bundle.content(shop / "backbone", shop / "prompt/offer_make")
    assert tags["backbone_version"] == "1"
    assert tags["parents"] == "recommend-backbone/1"
    assert tags["data_sha256"] == read_json(shop / "features/manifest.json")["data"]
    assert tags["verdict"] == "passed"
    client = mlflow.MlflowClient()
    run = client.get_run(version.run)
    assert run.inputs.dataset_inputs[0].dataset.digest == tags["data_sha256"][:36]
    reported = read_json(shop / "prompt/offer_make/metrics.json")
    assert run.data.metrics["offer_make.logloss"] == pytest.approx(reported["logloss"], abs=1e-6)
    assert len(client.get_metric_history(version.run, "val_auc")) == 2  # one point an epoch
    kept = {Path(file.path).name for file in client.list_artifacts(version.run, "verdict")}
    assert kept >= {"roc.png", "reliability.png", "verdict.html", "verdict.json"}
    assert track.by_alias(NAME, "challenger") == version
    card = client.get_model_version(NAME, "1").description
    assert card.startswith(f"# {NAME}, version 1\n") and "arXiv:2408.17214" in card
    assert {"model_card.md", "model_card.html"} <= {file.path for file in client.list_artifacts(version.run)}
    track.attach(version.run, "report/index.html", "<p>x")
    assert track.download(version, "report/index.html", tmp_path).read_text() == "<p>x"
    assert track.page_of(version.run, "report/index.html").endswith(f"/runs/{version.run}/artifacts/report/index.html")


def test_the_same_bytes_make_no_second_version(promoted, here):
    judged(here)
    first, second = carried_out(here), carried_out(here)
    assert first["status"] == second["status"] == "promoted"
    assert versions() == [1]
    assert champion() == 1


def test_a_better_candidate_becomes_the_champion_and_says_what_changed(promoted, here):
    done = promoted_again(here)
    assert (done["status"], done["version"], done["previous"], champion()) == ("promoted", 2, 1, 2)
    version = track.by_number(NAME, 2)
    assert version.tags["previous_champion"] == "1"
    text = track.download(version, "changes.md", here).read_text()
    assert "Changes since version 1" in text
    assert "| offer_make.logloss |" in text
    assert "| training.seed | 3 | 1 |" in text
    assert "| training.batch |" not in text  # as before


def test_a_process_that_dies_before_its_receipt_makes_no_second_version(promoted, here, monkeypatch):
    _shop.tune_head(here, seed=1)
    judged(here)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            carried_out(here)
    assert not (here / "receipt.json").exists()
    assert carried_out(here)["version"] == 2
    assert versions() == [1, 2]


@pytest.mark.parametrize("step", ["register", "set_tags", "set_alias"])
def test_a_process_may_die_at_any_step(promoted, here, monkeypatch, step):
    _shop.tune_head(here, seed=1)
    judged(here)
    with monkeypatch.context() as patch:
        patch.setattr(track, step, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            carried_out(here)
    assert champion() == 1  # still serves
    assert carried_out(here)["champion"] == 2
    assert versions() == [1, 2]
    experiment = mlflow.get_experiment_by_name(track.NAME).experiment_id
    content = track.by_number(NAME, 2).tags["content_sha256"]
    assert len(mlflow.MlflowClient().search_runs([experiment], f"tags.content_sha256 = '{content}'")) == 1


def test_a_closed_gate_leaves_the_champion_and_a_run(promoted, here):
    _shop.tune_head(here, seed=1)
    judged(here, {"default": {"floors": {"auc": 0.999}}})
    first, second = carried_out(here), carried_out(here)
    assert first["status"] == "rejected"
    assert "0.999" in first["reasons"][0]
    assert first["run"] == second["run"]
    assert (versions(), champion()) == ([1], 1)


def test_a_head_needs_a_registered_backbone(registry, here):
    judged(here)
    done = carried_out(here)
    assert done["status"] == "rejected"
    assert "backbone" in done["reasons"][0]
    assert versions() == []


def test_a_verdict_about_other_bytes_is_refused(promoted, here):
    judged(here)
    _shop.tune_head(here, seed=1)
    with pytest.raises(StaleVerdict, match="run the gate of offer_make again"):
        carried_out(here)


def test_a_verdict_against_another_champion_is_refused(promoted, here):
    _shop.tune_head(here, seed=2)
    judged(here)
    shutil.copytree(here, other := here.with_name("other"))
    promoted_again(other)  # somebody else was faster
    with pytest.raises(StaleVerdict, match=f"{NAME}/2 is the champion now"):
        carried_out(here)
    assert champion() == 2


def test_a_version_that_answers_differently_is_not_promoted(promoted, here, monkeypatch):
    _shop.tune_head(here, seed=1)
    judged(here)
    wrong = lambda uri, rows: (_shop.answer(uri, rows)[0] * 0.999, {"row_ms": 1.0})
    monkeypatch.setattr(fresh, "score", wrong)
    with pytest.raises(ReplayFailed, match="the champion is as it was"):
        carried_out(here)
    assert champion() == 1


@pytest.mark.parametrize("value", [float("nan"), None])
def test_a_version_that_answers_nan_is_not_promoted(promoted, here, monkeypatch, value):
    found = lambda rows: pl.DataFrame({"probability": [value] * len(rows)}, schema={"probability": pl.Float64})
    monkeypatch.setattr(fresh, "score", lambda uri, rows: (found(rows), {"row_ms": 1.0}))
    with pytest.raises(ReplayFailed):
        replay(track.by_number(NAME, 1))


def test_a_version_that_is_too_slow_from_the_registry_is_not_promoted(promoted, here, monkeypatch):
    monkeypatch.setattr(fresh, "score", lambda uri, rows: (_shop.answer(uri, rows)[0], {"row_ms": 51.0}))
    with pytest.raises(ReplayFailed, match="51.0 ms"):
        replay(track.by_number(NAME, 1), budget_ms=50)


def test_roll_back(promoted, here):
    promoted_again(here)
    assert rollback(NAME) == (2, 1)
    assert rollback(NAME) == (2, 1)  # not back and forth
    assert champion() == 1
    judged(here)
    done = carried_out(here)  # a repeated stage does not undo what a person did
    assert (done["status"], champion()) == ("rolled back", 1)
    assert rollback(NAME, 2) == (1, 2)
    assert champion() == 2
    third = promoted_again(here, seed=2)
    assert (third["version"], third["previous"]) == (3, 2)
    assert rollback(NAME) == (3, 2)


def test_nothing_to_roll_back(promoted, registry):
    with pytest.raises(NothingToRollBack, match="no champion"):
        rollback(NAME)


def test_the_first_champion_has_no_predecessor(promoted):
    with pytest.raises(NothingToRollBack, match="version 1 is the first"):
        rollback(NAME)
    with pytest.raises(track.RegistryError, match="no version 9 .* its versions are 1"):
        rollback(NAME, 9)
    with pytest.raises(ValueError, match="a version is a number"):
        back.main(NAME, "one")


@pytest.mark.parametrize(
    "name", ["recommend-", "recommend- x", "offer_make", "recommend-x@a", "recommend-../x", "recommend-x' or '1"]
)
def test_names_are_checked(name):
    with pytest.raises(track.RegistryError, match="no name of a model"):
        track.check_name(name)


def test_a_fresh_process_answers_as_this_one_and_imports_nothing_of_ours(promoted, shop, tmp_path):
    rows = pl.read_parquet(shop / "features/rows/test.parquet")
    found, times = fresh.score(f"models:/{NAME}@champion", rows)
    model_rows = _shop.answer(f"models:/{NAME}/1", rows)[0]
    np.testing.assert_allclose(found.to_numpy(), model_rows.to_numpy(), atol=1e-7)
    assert times["version"] == 1
    assert 0 < times["row_ms"] < 5000
    rows.head(3).write_parquet(tmp_path / "rows.parquet")
    program = (
        "import sys, mlflow, polars as pl\n"
        f"model = mlflow.pyfunc.load_model('models:/{NAME}@champion')\n"
        "print(model.predict(pl.read_parquet('rows.parquet').to_pandas())['probability'].tolist())\n"
        "files = {name: str(getattr(module, '__file__', '')) for name, module in sys.modules.items()}\n"
        f"print([m for m in files if m.split('.')[0] in ('tasks', 'flows') or {str(ROOT / 'models')!r} in files[m]])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    values, ours = done.stdout.strip().splitlines()[-2:]
    np.testing.assert_allclose(eval(values, {"__builtins__": {}}), found["probability"].to_numpy()[:3], atol=1e-7)
    assert ours == "[]"


def test_changed_bytes_in_the_registry_are_refused(promoted, tmp_path):
    version = track.by_number(NAME, 1)
    folder = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "copy")))
    expected = version.tags["content_sha256"]
    score.check(folder, expected, version.uri)
    changes = {
        "code/models/recommend/mpt_rec.py": "changed",
        "code/extra.py": "added",
        "artifacts/bundle/x.pkl": "added",
        "serve.py": "changed",
        "artifacts/bundle/head/head.safetensors": "changed",
    }
    for place, what in changes.items():
        shutil.copytree(folder, copy := tmp_path / place.replace("/", "_"))
        with open(copy / place, "a") as file:
            file.write(" ")
        with pytest.raises(score.ChangedVersion, match=what):
            score.check(copy, expected, version.uri)
    (folder / "artifacts/bundle/manifest.json").write_text("{}")
    with pytest.raises(score.ChangedVersion, match="not the registered one"):
        score.check(folder, expected, version.uri)


def test_the_signature_refuses_wrong_types(promoted, shop):
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    rows = pl.read_parquet(shop / "features/rows/test.parquet").head(4).to_pandas()
    assert model.predict(rows)["probability"].between(0, 1).all()
    for column, wrong in (("user_id", 1.5), ("price", "cheap"), ("c0_name", 3)):
        with pytest.raises(mlflow.MlflowException, match=column):
            model.predict(rows.assign(**{column: [wrong] * len(rows)}))
    with pytest.raises(mlflow.MlflowException, match="price"):
        model.predict(rows.drop(columns="price"))
    # What the signature leaves open because pandas has no nullable integer is checked by the model itself.
    with pytest.raises(ValueError, match="brand_id must be Int64"):
        model.predict(rows.assign(brand_id=["a"] * len(rows)))


def test_a_deleted_database_is_another_registry(promoted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = identify(tmp_path / "registry.json")
    assert identify(tmp_path / "registry.json") == before
    promoted.unlink()
    subprocess.run([sys.executable, "-m", "tasks.registry", str(tmp_path / "registry.json")], cwd=ROOT, check=True)
    after = read_json(tmp_path / "registry.json")["registry"]
    assert after not in (before, "unknown")
    assert len(after) == 32


def test_a_registry_that_does_not_answer_never_stops_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert identify(tmp_path / "registry.json") == "unknown"
    write_json(tmp_path / "registry.json", {"registry": "kept"})
    assert identify(tmp_path / "registry.json") == "kept"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/broken.db")
    (tmp_path / "broken.db").write_text("this is no database, it is a text that is longer than a header of SQLite")
    assert identify(tmp_path / "registry.json") == "kept"
    assert capsys.readouterr().err.count("warning") == 3


def test_an_unreachable_server_stops_a_promotion_only(promoted, here, monkeypatch):
    judged(here)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(track.RegistryUnreachable, match="the champion is as it was"):
        carried_out(here)
    assert not (here / "receipt.json").exists()


def test_rejection_of_addresses_and_unknown_versions(promoted):
    for uri in ("recommend-x", "models:/recommend-offer_make", "models:/recommend-offer_make/one"):
        with pytest.raises(track.RegistryError, match="is no model"):
            track.resolve(uri)
    with pytest.raises(track.RegistryError, match="has no blessed"):
        track.resolve(f"models:/{NAME}@blessed")
    assert track.resolve(f"models:/{NAME}@champion").number == 1


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"git_revision": "none"}, "outside of git"),
        ({"git_dirty": "true"}, "commit before training"),
        ({}, "does not know revision"),
    ],
)
def test_a_version_that_cannot_be_rebuilt_says_why(tmp_path, monkeypatch, tags, said):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q", "."], check=True)
    known = {"git_revision": "1" * 40, "git_dirty": "false", "stage": "backbone", "content_sha256": "0" * 64} | tags
    monkeypatch.setattr(track, "resolve", lambda uri: track.Version("recommend-backbone", 1, "run", known))
    with pytest.raises(CannotRebuild, match=said):
        rebuild("models:/recommend-backbone/1")


def test_what_counts_as_uncommitted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git = lambda *words: subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *words], check=True)
    git("init", "-q", ".")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    (tmp_path / "dvc.lock").write_text("attached to every version, so it may differ")
    assert module.git_state()[1] is False
    (tmp_path / "new.py").write_text("2")
    revision, dirty = module.git_state()
    assert (len(revision), dirty) == (40, True)
