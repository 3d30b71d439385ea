"""Recommenders of items through the real tools: one line, one model, one version; nothing else runs."""

import pytest
from _checkout import DISTILL, ITEMS, LANGUAGE, RECOMMEND, WRITING, Checkout, copied

STEPS = ("made_of", "recommender", "gate_recommender", "promote_recommender")


def small(params: dict) -> None:
    params["datasets"] = {"sample": params["datasets"]["sample"] | {"rows": 24000}}
    del params["recommenders"]["models"]["next"]  # one is enough: kinds differ in tests/tasks/test_recommender.py
    open_gate = {"ceilings": {"latency_ms": 10000}, "above": {"popularity": {"margin": -1.0}},
                 "improvement": {"margin": -1.0}}  # fmt: skip
    default = params["recommenders"]["gates"]["default"]
    for rule, change in open_gate.items():
        for key, value in change.items():
            default[rule][key] = default[rule][key] | value if isinstance(value, dict) else value


def stages(*names: str) -> list[str]:
    return sorted(f"{step}@{name}" for name in names for step in STEPS)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm) -> Checkout:
    folder = tmp_path_factory.mktemp("recommenders") / "rootstock"
    made = copied(folder, small, without=RECOMMEND + LANGUAGE + WRITING + DISTILL, python=warm)
    made.first = made.repro()
    return made


def test_a_fresh_checkout_trains_judges_and_registers(checkout):
    assert sorted(checkout.first) == sorted(["fetch@sample", "ingest@sample", *stages("similar")])
    assert checkout.champion("recommender-similar") == 1
    assert checkout.json("artifacts/recommenders/receipt/similar.json")["status"] == "promoted"
    assert checkout.repro() == []


def test_one_line_is_one_recommender(checkout):
    line = {"method": "retrieval/item_knn", "data": "sample", "pairs": {"item": "product_id"}}
    checkout.params(lambda p: p["recommenders"]["models"].update(alike=line))
    assert sorted(checkout.repro()) == stages("alike")
    assert checkout.champion("recommender-alike") == 1


def test_an_edit_of_a_method_reaches_those_that_are_made_of_it(checkout):
    file = checkout.folder / "models/recommend/retrieval/als.py"
    file.write_text(file.read_text() + "\n# an edit\n")
    ran = checkout.repro()
    made = {"made_of@alike", "made_of@similar"}
    assert set(ran) - made == {"recommender@similar", "gate_recommender@similar", "promote_recommender@similar"}


def test_a_retired_one_is_pruned(checkout):
    checkout.params(lambda p: p["recommenders"]["models"].pop("alike"))
    assert "artifacts/recommender/alike/packed" in checkout("tasks.prune")
    assert checkout.repro() == []


def test_nothing_else_reads_or_writes_what_they_do():
    import yaml
    from _checkout import ROOT

    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    part = lambda name, *kinds: [
        next(iter(path)) if isinstance(path, dict) else path
        for kind in kinds for path in graph[name].get("do", graph[name]).get(kind, [])
    ]  # fmt: skip
    made = {path for name in ITEMS for path in part(name, "outs", "metrics", "plots")}
    for name in set(graph) - set(ITEMS):
        assert not made & set(part(name, "deps", "outs", "metrics", "plots")), name
    for name in ITEMS:
        for entry in graph[name]["do"].get("params", []):
            assert all(key.startswith("recommenders.") for key in entry["params.yaml"]), name
