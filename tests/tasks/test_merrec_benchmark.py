"""The MerRec benchmark: every group runs on a small shop, a second call runs nothing, refusals are told."""

import _shop
import numpy as np
import polars as pl
import pytest
import torch

from tasks import merrec_benchmark
from tasks.files import read_json, write_json
from tasks.merrec_benchmark import benchmark, markdown, summarise
from tasks.merrec_groups import GROUPS
from tasks.merrec_judges import Floor, latency, of_ranking, of_scores, of_steps, of_values
from tasks.sequences import Cases, sequences
from tasks.settings import SettingsError

TRAINING = {"epochs": 1, "batch": 64, "lr": 0.01}
VIEW, LIKE = (_shop.RECOMMEND["backbone"]["tasks"][name] for name in ("view", "item_like"))
SETTINGS = {
    "seeds": [1],
    "features": _shop.FEATURES | {"min_count": 1},
    "negatives": {"popularity": 1},
    "tasks": {"view": VIEW, "item_like": LIKE},
    "ctr": {"task": "view", "rows": 500, "training": TRAINING, "models": {"deepfm": {"embedding": 4, "deep": [8]}}},
    "multitask": {"tasks": ["view", "item_like"], "training": TRAINING,
                  "models": {"shared_bottom": {"embedding": 4, "bottom": [8], "towers": [4]}}},
    "session": {"length": 8, "cases": 40, "training": TRAINING,
                "models": {"popularity": {}, "item_knn": {}, "gru4rec": {"width": 8}}},
    "acceleration": {"length": 8, "cases": 30, "requests": 8, "training": TRAINING,
                     "models": {"skip_nextitnet": {"width": 8, "dilations": [1, 2]}}},
    "multistep": {"key": ["user"], "least": 6, "cases": 20, "training": TRAINING,
                  "models": {"mercatran": {"width": 8, "inner": 8, "heads": 2, "length": 8}}},
    "intent": {"buys": ["offer_make"], "training": TRAINING, "models": {"intent": {"units": 8}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def ingest(tmp_path_factory):
    """The shop's log with titles, products and categories."""
    folder = tmp_path_factory.mktemp("merrec") / "ingest"
    _shop.write_events(folder, users=30, sessions=5)
    path = folder / "events/bucket=0/part.parquet"
    item = pl.col("item").cast(pl.Int64)
    pl.read_parquet(path).with_columns(
        product_id=item.cast(pl.String), c2_id=item % 3, name=pl.format("thing {} kind{}", item, item % 3),
        brand_name=pl.format("b{}", item % 4),
    ).write_parquet(path)  # fmt: skip
    return folder


@pytest.fixture(scope="module", autouse=True)
def _frozen_code():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merrec_benchmark, "code_digest", lambda: "one")
        yield


@pytest.fixture(scope="module")
def done(ingest, tmp_path_factory):
    out = tmp_path_factory.mktemp("merrec") / "out"
    return benchmark(SETTINGS, "sample", ingest, out)


def test_one_call_runs_every_group_and_writes_one_table(done):
    told = read_json(done.parent / "table.json")
    assert told["not_run"] == {}
    assert [row["group"] for row in told["rows"]] == [
        "ctr", "multitask", "session", "session", "session", "acceleration", "multistep", "intent",
    ]  # fmt: skip
    for row in told["rows"]:
        for metric, value in row["metrics"].items():
            assert value["low"] <= value["value"] <= value["high"], (row["model"], metric)
    metrics = {row["model"]: set(row["metrics"]) for row in told["rows"]}
    assert metrics["deepfm"] == {"AUC", "logloss"}
    assert "item_like AUC" in metrics["shared_bottom"]
    assert metrics["gru4rec"] == {"recall@5", "ndcg@5", "recall@20", "ndcg@20"}
    assert {"blocks run", "ms", "ms, all blocks", "recall@20, all blocks"} <= metrics["skip_nextitnet"]
    assert {f"step {k} {what}recall@20" for k in (1, 4) for what in ("", "category ", "brand ")} <= metrics["mercatran"]
    text = done.read_text()
    assert all(f"## {group}" in text for group in GROUPS) and "| gru4rec |" in text
    assert (done.parent / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert not any((done.parent / "checkpoints").iterdir())


def test_what_is_there_is_not_run_again_and_what_changed_is(done, ingest, monkeypatch):
    ran = []
    told = {group: lambda *args, group=group: ran.append((group, args[2])) or run[group](*args) for group in GROUPS}
    run = dict(GROUPS)
    monkeypatch.setattr(merrec_benchmark, "GROUPS", told)
    before = done.read_text()
    benchmark(SETTINGS, "sample", ingest, done.parent)
    assert ran == [] and done.read_text() == before
    changed = {**SETTINGS, "intent": {**SETTINGS["intent"], "models": {"intent": {"units": 4}}}}
    benchmark(changed, "sample", ingest, done.parent)
    assert ran == [("intent", "intent")]
    ran.clear()
    monkeypatch.setattr(merrec_benchmark, "code_digest", lambda: "two")
    only = {key: SETTINGS[key] for key in ("seeds", "features", "negatives", "tasks", "ctr")}
    benchmark(only, "sample", ingest, done.parent)
    assert ran == [("ctr", "deepfm")]  # other code


def test_a_group_that_the_data_does_not_allow_is_told(ingest, done, tmp_path):
    only = {key: SETTINGS[key] for key in ("seeds", "features", "negatives", "tasks", "multistep", "intent")}
    only["multistep"] = {**only["multistep"], "least": 900}
    only["intent"] = {**only["intent"], "buys": ["buy_comp"]}
    text = benchmark(only, "sample", ingest, tmp_path / "out").read_text()
    assert "- multistep mercatran: no sequence of 900 events or more" in text
    assert "- intent intent: 0 of" in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sessions": {}}, "unknown key sessions"),
        ({"tasks": {}}, "tasks is missing"),
        ({"session": {"models": {"gru5rec": {}}, "training": {}}}, "session has no model gru5rec; it has bert4rec"),
        ({"ctr": {"models": {}}}, "ctr has no training"),
        ({"ctr": {"models": {}, "training": {}, "task": "click"}}, "asks for the task click"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_runs(change, told, tmp_path):
    with pytest.raises(SettingsError, match=told):
        benchmark({**SETTINGS, **change}, "sample", tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_floors_by_hand():
    # Windows {1, 2}, {2, 3}, {2}: item 2 stands in three, 1 and 3 in one each. cos(1, 2) = 1 / sqrt(1 * 3).
    windows = np.array([[0, 1, 2], [0, 2, 3], [2, 0, 2]])
    assert Floor("popularity", windows, 4).score(torch.tensor([[1]])).tolist() == [[0.0, 1.0, 3.0, 1.0, 0.0]]
    near = Floor("item_knn", windows, 4).score(torch.tensor([[0, 1], [1, 3], [0, 2]]))
    assert near[0].tolist() == pytest.approx([0.0, 0.0, 3**-0.5, 0.0, 0.0], abs=1e-6)
    assert near[1].tolist() == pytest.approx([0.0, 0.0, 2 * 3**-0.5, 0.0, 0.0], abs=1e-6)
    assert near[2].tolist() == pytest.approx([0.0, 3**-0.5, 0.0, 3**-0.5, 0.0], abs=1e-6)


def test_popularity_beats_chance_and_both_count_all_items(ingest):
    from tasks.sequences import read_log

    rows = sequences(read_log(ingest, ["product_id"]), unit="product_id")
    popular = of_ranking(Floor("popularity", rows.train, rows.vocabulary.items).score, rows.test, rows)
    assert popular["recall@20"]["value"] > 0.3  # 20 of 40 items
    worst = of_ranking(
        lambda items: -Floor("popularity", rows.train, rows.vocabulary.items).score(items), rows.test, rows
    )
    assert worst["recall@5"]["value"] < popular["recall@5"]["value"] + 0.2


class _Rows:
    class vocabulary:
        items = 4


def test_an_unknown_item_is_never_found_and_never_recommended():
    # Three users: the target 2 is first, the target 3 second, the unknown item 1 is missed although it scores best.
    score = lambda items: torch.tensor([[9.0, 8.0, 3.0, 2.0, 1.0]]).repeat(len(items), 1)
    cases = Cases(np.ones((3, 2), np.int32), np.array([[2], [3], [1]]), np.array([1, 2, 3]))
    found = of_ranking(score, cases, _Rows)
    assert found["recall@5"]["value"] == pytest.approx(2 / 3)
    assert found["ndcg@5"]["value"] == pytest.approx((1 + 1 / np.log2(3)) / 3)


def test_users_weigh_alike_however_many_cases_they_have():
    value = of_values(torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([5, 5, 5, 6]))
    assert value["value"] == 0.5 and value["low"] <= 0.5 <= value["high"]


def test_scores_that_say_nothing():
    label = torch.tensor([1.0, 0.0, 1.0, 0.0] * 20)
    found = of_scores(torch.full((80,), 0.5), label, torch.arange(80))
    assert found["AUC"]["value"] == 0.5 and found["logloss"]["value"] == pytest.approx(np.log(2))


class _Steps(torch.nn.Module):
    def catalogue(self):
        return None

    def score_steps(self, items, catalogue):
        return torch.tensor([[[-9.0, -9.0, 5.0, 4.0, 3.0], [-9.0, -9.0, 1.0, 2.0, 3.0]]]).repeat(len(items), 1, 1)


def test_steps_categories_and_new_listings_by_hand():
    # Step 1 ranks listings 2, 3, 4, step 2 ranks 4, 3, 2. Category of 2 and 4 is 1, of 3 is 2; listing 4 is new.
    cases = Cases(np.ones((1, 2), np.int32), np.array([[3, 4]]), np.array([1]))
    groups = {"category": (torch.tensor([0, 0, 1, 2, 1]), 3)}
    known = torch.tensor([False, False, True, True, False])
    found = {name: value["value"] for name, value in of_steps(_Steps(), cases, groups, known, "cpu").items()}
    assert found["step 1 ndcg@5"] == pytest.approx(1 / np.log2(3)) and found["step 2 ndcg@5"] == 1.0
    assert found["step 1 category recall@5"] == found["step 2 category recall@5"] == 1.0
    assert found["step 2 recall@20, new listings"] == 1.0 and "step 1 recall@20, new listings" not in found


def test_requests_are_timed_in_turn_and_skipped_blocks_do_not_run():
    from models import build

    torch.manual_seed(0)
    model = build("recommend.session", "skip_nextitnet", 20, 8, dilations=[1, 1]).eval()
    model.policy.choose.weight.data.zero_()
    model.policy.choose.bias.data.copy_(torch.tensor([1.0, 0.0]).repeat(2))
    calls = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    found = latency(model, torch.randint(1, 21, (9, 12)))
    assert len(calls) == 2 * 9  # of four ways two run all blocks
    ways = ["ms", "ms, all blocks", "ms without item scores", "ms without item scores, all blocks"]
    assert list(found) == [*ways, "ms / all blocks", "ms without item scores / all blocks"]
    assert all(0 < value["low"] <= value["value"] <= value["high"] for value in found.values())


def test_seeds_are_averaged():
    def part(seed: int, value: float) -> dict:
        metrics = {"AUC": {"value": value, "low": value - 0.1, "high": None}}
        told = {"parameters": 10, "epochs": seed, "seconds": 2.0, "metrics": metrics, "order": ["AUC"]}
        return {"group": "ctr", "model": "afm", "seed": seed, **told}

    (row,) = summarise([part(1, 0.6), part(3, 0.8)])
    assert row["metrics"]["AUC"] == {"value": pytest.approx(0.7), "low": pytest.approx(0.6), "high": None}
    assert row["seeds"] == 2 and row["epochs"] == 2
    assert "| afm | 0.7000 | 10 | 2.0 | 2 | 2 |" in markdown("x", [row], {})
    row["metrics"] |= {f"step {k}": {"value": k / 10, "low": 0.0, "high": 1.0} for k in range(9)}
    text = markdown("x", [row], {"ctr nfm": "no rows"})  # many metrics: the models are the columns
    assert "| model | afm |" in text and "| step 3 | 0.3000 [0.0000, 1.0000] |" in text and "- ctr nfm: no rows" in text


def test_a_broken_part_is_named(done, ingest):  # last: others read the parts
    path = done.parent / "parts/ctr-deepfm-1.json"
    kept = read_json(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="ctr-deepfm-1.json is not JSON"):
        benchmark(SETTINGS, "sample", ingest, done.parent)
    write_json(path, kept)
