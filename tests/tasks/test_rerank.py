"""Lists that repeat themselves less: candidates of a served recommender, a student of MMR, what is chosen on val."""

import json
import shutil

import polars as pl
import pytest
import torch
from _likers import entries, write_log

from models import build
from tasks import rerank as module
from tasks.candidates import candidates, categories_of, lists_of
from tasks.files import read_json
from tasks.judge_variety import Judge
from tasks.recommender import load, train_recommender
from tasks.recommenders import retrieval
from tasks.rerank import STRENGTHS, Reorder, main, rerank
from tasks.settings import SettingsError

MODELS = entries(often={"method": "retrieval/item_knn", "data": "log"})
ENTRY = {"of": "similar", "data": "log", "candidates": 20, "places": 5, "loss": 0.2, "category": "kind",
         "settings": {"members": 3, "hidden": 16},
         "training": {"epochs": 40, "batch": 8, "lr": 1e-2, "patience": 40}}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """log/ with items of two kinds, and packed recommenders; read only."""
    root = tmp_path_factory.mktemp("rerank")
    write_log(root / "log")
    for file in (root / "log/events").rglob("*.parquet"):
        pl.read_parquet(file).with_columns(kind=pl.format("k{}", pl.col("item_id") % 4)).write_parquet(file)
    for name in MODELS:
        train_recommender(MODELS, name, root / "log", root / name, None)
    rerank(ENTRY, "wide", MODELS, root / "log", root / "similar/packed", root / "out", root / "kept")
    return root


def test_what_it_writes(made):
    metrics = read_json(made / "out/metrics.json")
    assert set(metrics) == {"relevance", "mmr", "dpp", "cdm", "gain"}
    plain = metrics["relevance"]
    for kind in STRENGTHS:
        assert {"recall@5", "ndcg@5", "ilad", "ilmd", "as_mmr", "categories", "entropy", "alpha_ndcg"} <= set(
            metrics[kind]
        )
        assert metrics[kind]["ilad"] > plain["ilad"]
    middle, low, high = metrics["gain"]["ilad of cdm over relevance"]
    assert low <= middle <= high
    assert middle == pytest.approx(metrics["cdm"]["ilad"] - plain["ilad"])
    sweep = pl.read_csv(made / "out/sweep.csv")
    assert sweep.group_by("system").len().sort("system")["len"].to_list() == [
        len(STRENGTHS[k]) for k in sorted(STRENGTHS)
    ]
    assert read_json(made / "out/run.json")["best_epoch"] >= 1
    for file in ("curve.png", "trade.png"):
        assert (made / "out/extra" / file).read_bytes()[:4] == b"\x89PNG"
    assert not (made / "kept").exists()


def test_the_strongest_within_the_loss_is_chosen_on_val(made):
    sweep, metrics = pl.read_csv(made / "out/sweep.csv"), read_json(made / "out/metrics.json")
    for kind, knob in module.KNOB.items():
        rows = sweep.filter(pl.col("system") == kind)
        fit = rows.filter(pl.col("ndcg@5") >= 0.8 * rows["ndcg@5"][0])
        assert metrics[kind][knob] == fit.sort("ilad", descending=True, maintain_order=True)["strength"][0]
    assert read_json(made / "out/rerank.json")["gamma"] == metrics["cdm"]["gamma"]


def test_a_reordered_list_holds_the_recommenders_own_candidates(made):
    served = load(made / "similar/packed")
    requests = retrieval.Family("similar", "als", MODELS["similar"], made / "log").rows("test")
    lists = Reorder(made / "out", served).lists(requests)["items"].to_list()
    own = served.lists(requests, 20)["items"].to_list()
    assert all(
        len(mine) == 5 == len(set(mine)) and set(mine) <= set(theirs) for mine, theirs in zip(lists, own, strict=True)
    )
    with pytest.raises(ValueError, match="train it again"):
        Reorder(made / "out", served, "0" * 64)


def test_candidates_by_hand(made):
    served = load(made / "similar/packed")
    log = retrieval.Family("similar", "als", MODELS["similar"], made / "log").log()
    user = log["user"][0]
    asked = pl.DataFrame({"user": [user, None]}, schema={"user": pl.Int64})
    there = candidates(served, asked, 44)
    lists = served.lists(asked, 44)
    left = 45 - log.filter(pl.col("user") == user)["item"].n_unique()
    assert there.mask.sum(1).tolist() == [left, 44]  # what the user had is no candidate
    assert there.relevance[0, 0] == 1 and there.relevance[0, left - 1] == 0
    straight = torch.arange(44).expand(2, -1).masked_fill(~there.mask, -1)
    assert lists_of(served, there, straight)["items"].to_list() == lists["items"].to_list()


def test_categories_are_those_of_the_first_event():
    log = pl.DataFrame({"item": [5, 5, 6, 7], "kind": ["b", "a", "b", None], "stime": [1, 2, 3, 4]}).lazy()
    found = categories_of(log, "item", "kind", pl.Series([5, 6, 7, 8]), "here")
    assert found[0] == found[1] and len(set(found.tolist())) == 3  # 7 and 8 are of no kind, each its own
    with pytest.raises(SettingsError, match="here.category: the log has no column 'colour'; it has item"):
        categories_of(log, "item", "colour", pl.Series([5]), "here")


def test_judging_by_hand(made):
    served = load(made / "similar/packed")
    items = served.items["item"]
    asked = pl.DataFrame(
        {"user": [None, None], "truth": [[items[2]], [items[0], items[1]]]}, schema_overrides={"user": pl.Int64}
    )
    there = candidates(served, asked, 4)
    vectors = torch.zeros(len(items), 2)
    vectors[there.item[0]] = torch.tensor([[1.0, 0], [2.0, 0], [0, 1.0], [0, -1.0]])  # both requests have the same four
    category = torch.zeros(len(items), dtype=torch.int64)
    category[there.item[0]] = torch.tensor([0, 0, 1, 2])
    log = pl.DataFrame({"user": [1], "item": [items[0]]})
    judge = Judge(served, log, vectors, category, build("recommend.rerank", "mmr", 1.0), 2)
    each, _ = judge(torch.tensor([[0, 1], [0, 3]]), there, asked)
    assert each["ilad"].tolist() == pytest.approx([0, 1]) and each["categories"].tolist() == [1, 2]
    assert each["as_mmr"].tolist() == [1, 0.5]  # relevance alone shows 0 and 1


def test_a_resumed_student_is_the_unbroken_one(made, tmp_path, monkeypatch):
    from tasks import training

    class Stop(Exception):
        pass

    real = training.fit

    def fit(*given):
        for step, terms in enumerate(real(*given)):
            if step == 4:
                raise Stop
            yield terms

    again = ENTRY | {"training": ENTRY["training"] | {"checkpoint_steps": 2}}
    run = lambda: rerank(
        again, "wide", MODELS, made / "log", made / "similar/packed", tmp_path / "out", tmp_path / "kept"
    )
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", fit)
        with pytest.raises(Stop):
            run()
    assert not (tmp_path / "out").exists() and list((tmp_path / "kept").rglob("step-*"))
    run()
    assert (tmp_path / "out/model.safetensors").read_bytes() == (made / "out/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"of": "nobody"}, "recommenders.models has similar, often"),
        ({"data": "other"}, "data is 'other', but similar is of 'log'"),
        ({"colour": 1}, "has no setting 'colour'"),
        ({"places": 20}, "1 <= places < candidates"),
        ({"settings": {"gamma": 1}}, "gamma follow from the recommender"),
        ({"category": "colour"}, "the log has no column 'colour'"),
        ({"of": "often"}, "no vectors that tell how alike"),
    ],
)
def test_what_cannot_work(made, tmp_path, change, words):
    packed = made / (change.get("of") if change.get("of") in MODELS else "similar") / "packed"
    with pytest.raises(SettingsError, match=words):
        rerank(ENTRY | change, "wide", MODELS, made / "log", packed, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_as_a_command(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made / "log", tmp_path / "log")
    entry = ENTRY | {"training": {"epochs": 1}}
    (tmp_path / "params.yaml").write_text(json.dumps({"recommenders": {"models": MODELS, "rerank": {"wide": entry}}}))
    monkeypatch.chdir(tmp_path)
    main("params.yaml:recommenders", "wide", "log", str(made / "similar/packed"), "out", "kept")
    assert capsys.readouterr().out.splitlines()[-1].startswith("wide: ILAD at ndcg@5 on ")
