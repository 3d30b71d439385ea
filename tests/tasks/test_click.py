"""A click model goes the backbone's way: trained, judged as served, registered."""

import _shop
import polars as pl
import pytest
import torch

from models.recommend._address import multi_task
from tasks import fresh
from tasks import train as module
from tasks.files import read_json
from tasks.gate import gate
from tasks.promote import promote
from tasks.settings import SettingsError
from tasks.train import load_backbone, train_backbone

CLICK = {"method": "ctr/dcnv2", "settings": {"embedding": 4},
         "tasks": {"like": _shop.RECOMMEND["backbone"]["tasks"]["item_like"]},
         "training": {"epochs": 1, "batch": 128, "lr": 0.01}}  # fmt: skip


def test_from_rows_to_a_champion(shop, registry, tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "score", _shop.answer)
    made = train_backbone(CLICK, shop / "ingest", shop / "features", tmp_path / "click", tmp_path / "checkpoints")
    assert set(read_json(made / "metrics.json")) == {"like"}
    verdict = gate({}, "ctr_like", shop / "ingest", shop / "features", made, tmp_path / "gate")
    assert verdict["passed"], [c for c in verdict["checks"] if c["passed"] is False]
    done = promote("ctr_like", tmp_path / "gate", shop / "features", made, tmp_path / "receipt.json")
    assert done["status"] == "promoted" and done["model"] == "recommend-ctr_like"
    rows = pl.read_parquet(shop / "features/rows/test.parquet").head(5)
    found, _ = _shop.answer("models:/recommend-ctr_like@champion", rows)
    assert found.columns == ["like"]
    assert found["like"].is_between(0, 1).all()


def test_a_new_task_cannot_read_a_click_model(shop, tmp_path):
    made = train_backbone(CLICK, shop / "ingest", shop / "features", tmp_path / "click", tmp_path / "checkpoints")
    model, _ = load_backbone(made)
    with pytest.raises(ValueError, match="DCNv2 learns one task and has no head for another"):
        model.represent(torch.zeros(1, 3), torch.zeros(1, 2))


def test_addresses():
    model = multi_task("ctr/deepfm", [5, 7], 2, 1, embedding=4).eval()
    ids, numbers = torch.tensor([[1, 2], [3, 0]]), torch.rand(2, 2)
    loss, _ = model(ids, numbers, torch.tensor([[1.0], [float("nan")]]))
    alone, _ = model.model(ids, numbers, torch.tensor([1.0, float("nan")]))
    assert loss.item() == alone.item()
    assert model.score(ids, numbers).shape == (2, 1)
    assert type(multi_task("mmoe", [5, 7], 2, 3)).__name__ == "MMoE"
    with pytest.raises(ValueError, match="learns one task, 2 are declared"):
        multi_task("ctr/deepfm", [5, 7], 2, 2)
    with pytest.raises(ValueError, match="the place at which an item was shown"):
        multi_task("ctr/position_bias", [5, 7], 2, 1)
    with pytest.raises(LookupError, match="closest: deepfm"):
        multi_task("ctr/depfm", [5, 7], 2, 1)


def test_teachers_of_a_run_of_their_own(shop, tmp_path, monkeypatch):
    told = _shop.RECOMMEND["backbone"]
    alone = told | {"method": "single_task", "settings": {"embedding": 4, "bottom": [8], "towers": [8]}}
    data = shop / "ingest", shop / "features"
    train = lambda told, name: train_backbone(told, *data, tmp_path / name, tmp_path / "kept")
    teachers = train(alone, "teachers")
    seen, real = [], module.fit_backbone
    monkeypatch.setattr(module, "fit_backbone", lambda model, *given: seen.append(model) or real(model, *given))
    listening = told | {"method": "kd_mtl", "settings": {"embedding": 4}, "teachers": str(teachers)}
    made = train(listening, "made")
    model, about = load_backbone(made)
    assert about["method"] == "mmoe" and "teacher" not in about["settings"]
    given = load_backbone(teachers)[0].state_dict()
    left = seen[0].teacher.state_dict()  # after the run: they taught, and learned nothing
    assert bool(seen[0].given) and all(torch.equal(value, left[name]) for name, value in given.items())
    for change, words in (
        ({"method": "mmoe", "settings": {"embedding": 4}}, "mmoe takes no teachers"),
        ({"teachers": str(made)}, "its method is mmoe, not single_task"),
        ({"tasks": dict(reversed(told["tasks"].items()))}, "its tasks are"),
        ({"teachers": str(tmp_path)}, "has no backbone.json"),
    ):
        with pytest.raises(SettingsError, match=words):
            train(listening | change, "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("method", ["crossdistil", "kd_mtl"])
def test_of_what_only_teaches_the_student_is_kept(shop, registry, tmp_path, method):
    told = _shop.RECOMMEND["backbone"] | {"method": method, "settings": {"embedding": 4}}
    made = train_backbone(told, shop / "ingest", shop / "features", tmp_path / "made", tmp_path / "checkpoints")
    model, about = load_backbone(made)
    assert about["method"] == "mmoe"
    assert type(model).__name__ == "MMoE"
    verdict = gate({}, "backbone", shop / "ingest", shop / "features", made, tmp_path / "gate")
    assert verdict["passed"], [c for c in verdict["checks"] if c["passed"] is False]
