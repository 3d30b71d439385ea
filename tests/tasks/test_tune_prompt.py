"""Tuning a head: the backbone stays, the order of heads does not matter, what leaks is refused."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from _shop import RECOMMEND

from tasks.files import digest
from tasks.labels import OneClass, TaskError
from tasks.represent import represented
from tasks.train import LabelLeak, labels_of, load_backbone, refuse_leaks
from tasks.tune_prompt import level, thin, tune

OFFER = RECOMMEND["tasks"]["offer_make"]


def tuned(shop, out, name="offer_make", declaration=OFFER, memo=None):
    settings = RECOMMEND | {"tasks": {name: declaration}}
    return tune(settings, name, shop / "ingest", shop / "features", shop / "backbone", out, memo or out.parent / "memo")


def test_the_proof_says_that_nothing_else_changed(shop, tmp_path):
    before = digest(shop / "backbone")
    out = tuned(shop, tmp_path / "offer_make")
    assert digest(shop / "backbone") == before
    proof = json.loads((out / "proof.json").read_text())
    weights = load_backbone(shop / "backbone")[0].state_dict()
    assert set(proof["backbone_before"]) == set(weights)
    assert proof["backbone_before"] == proof["backbone_after"]
    assert proof["old_predictions_before"] == proof["old_predictions_after"]
    assert proof["trained_parameters"] == sum(proof["trained"].values())
    assert 0 < proof["trained_share"] < 1
    assert not any(name.startswith("bank") for name in proof["trained"])  # old task embeddings are never trained


def test_heads_do_not_depend_on_each_other(shop, tmp_path):
    """Two new tasks in either order, with and without each other's representations, give the same heads."""
    like = {**OFFER, "positive": "event_id = 'offer_make' or event_id = 'item_like'"}
    first = [tuned(shop, tmp_path / "a/one", "one"), tuned(shop, tmp_path / "a/two", "two", like)]
    second = [tuned(shop, tmp_path / "b/two", "two", like), tuned(shop, tmp_path / "b/one", "one")][::-1]
    for one, other in zip(first, second, strict=True):
        assert (one / "head.safetensors").read_bytes() == (other / "head.safetensors").read_bytes()
    proofs = [json.loads((folder / "proof.json").read_text()) for folder in (*first, *second)]
    assert [proof["representation_reused"] for proof in proofs] == [False, True, True, False]


def test_a_swapped_backbone_is_refused(shop, tmp_path):
    other = shutil.copytree(shop / "backbone", tmp_path / "backbone")
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="the backbone changed"):
        load_backbone(other)


@pytest.mark.parametrize(
    ("declaration", "error", "said"),
    [
        (
            {**OFFER, "positive": "event_id = 'item_view'", "within": "row"},
            OneClass,
            "one class in train: .* 0 negative",
        ),
        ({**OFFER, "positive": "price > 20", "within": "row"}, TaskError, "it leaks, because the model reads price"),
        ({**OFFER, "given": "colour = 'red'"}, TaskError, "there is no column colour"),
    ],
)
def test_refused_before_any_training(shop, tmp_path, declaration, error, said):
    with pytest.raises(error, match=said):
        tuned(shop, tmp_path / "out", "broken", declaration)
    assert not (tmp_path / "out").exists()


def test_names_of_base_tasks_are_taken(shop, tmp_path):
    with pytest.raises(TaskError, match="already tasks of the backbone: item_like"):
        tuned(shop, tmp_path / "out", "item_like")


def test_a_feature_that_tells_the_label_is_named():
    rng = np.random.default_rng(0)
    answer = rng.integers(0, 2, 400)
    rows = {
        s: (np.zeros((400, 1), np.int32), (answer + rng.random(400) / 2)[:, None].astype(np.float32))
        for s in ("train", "val")
    }
    labels = dict.fromkeys(rows, torch.tensor(answer, dtype=torch.float32))
    with pytest.raises(LabelLeak, match=r"paid_at \(AUC 1\.0000\) alone tells the label"):
        refuse_leaks("buy", rows, labels, {"categorical": ["c0_id"], "numerical": ["paid_at"]})


def test_thinned_negatives_give_the_base_rate_back():
    label = np.array([1] * 10 + [0] * 990)
    kept, offset = thin(label, 3, seed=1)
    assert label[kept].sum() == 10
    assert len(kept) == 40
    # The best constant logit on what is kept is log(10/30); with the offset it must be that of 10 in 1000.
    assert np.log(10 / 30) + offset == pytest.approx(np.log(10 / 990))
    assert thin(label, None, seed=1)[1] == 0.0


def test_representations_are_those_of_the_backbone(shop, tmp_path):
    model, about = load_backbone(shop / "backbone")
    rows = {"train": tuple(np.load(shop / f"features/{kind}/train.npy") for kind in ("categorical", "numerical"))}
    asked = {"train": np.array([3, 1, 7])}
    tables, reused, _ = represented(model, "x", rows, asked, tmp_path)
    expected = model.represent(*(torch.from_numpy(part[asked["train"]]) for part in rows["train"]))
    assert not reused
    assert set(tables["train"]) == set(expected)
    for name, value in expected.items():
        assert np.array_equal(tables["train"][name], value.numpy()), name
    assert represented(model, "x", rows, asked, tmp_path)[1]
    assert not represented(model, "other weights", rows, asked, tmp_path)[1]


def test_labels_of_a_task_that_is_not_asked_are_nan(shop):
    from tasks.labels import read_tasks

    manifest = json.loads((shop / "features/manifest.json").read_text())
    tasks = read_tasks(RECOMMEND["backbone"]["tasks"], shop / "ingest", manifest)
    found = labels_of(tasks, "train", shop / "ingest", shop / "features")
    sampled = pl.read_parquet(shop / "features/rows/train.parquet")["sampled"].is_not_null().to_numpy()
    assert sampled.any()
    assert torch.isnan(found[sampled, 1]).all()  # nobody knows whether an item that was never shown would be liked
    assert (found[sampled, 0] == 0).all()


def test_level_sets_the_mean_right_and_keeps_the_order():
    odds = torch.tensor([1.0, 3.0]) / 9
    shift = level(odds / (1 + odds), rate=0.5)
    # Odds k/9 and 3k/9 with mean probability 1/2: k = 9 / sqrt(3), so the shift is log(9 / sqrt(3)).
    assert shift == pytest.approx(np.log(9 / np.sqrt(3)), abs=1e-6)


def test_a_head_is_calibrated_on_its_training_rows(shop, tmp_path):
    out = tuned(shop, tmp_path / "out")
    from safetensors.torch import load_file

    about, (model, _) = json.loads((out / "head.json").read_text()), load_backbone(shop / "backbone")
    head = model.head(**about["settings"])
    head.load_state_dict(load_file(out / "head.safetensors"))
    rows = [torch.tensor(np.load(shop / f"features/{kind}/train.npy")) for kind in ("categorical", "numerical")]
    events = pl.read_parquet(shop / "features/rows/train.parquet")["event_id"]
    asked = torch.tensor((events == "item_view").fill_null(False).to_numpy())
    from tasks.labels import read_tasks

    manifest = json.loads((shop / "features/manifest.json").read_text())
    answer = labels_of(
        read_tasks({"offer_make": OFFER}, shop / "ingest", manifest), "train", shop / "ingest", shop / "features"
    )
    with torch.no_grad():
        logit = head(model.represent(*(part[asked] for part in rows))) + about["offset"]
    assert logit.sigmoid().mean().item() == pytest.approx(answer[asked].mean().item(), abs=1e-5)
