"""Students of several tasks and what is taught by way of texts, end to end: DVC runs each stage, and forgets none.

One checkout is built once, as far as these students need; models write by templates here, so nothing is asked for.
"""

import polars as pl
import pytest
import yaml
from _checkout import ITEMS, RECOMMEND, ROOT, WRITING, Checkout, copied

from tasks.curriculum import ELSEWHERE

COLOURS, THINGS = ["red", "green", "blue", "black"], ["lamp", "chair", "table", "shirt"]
LAYER, SHORT = {"layers": 1}, {"steps": 2, "batch": 8}
WRITTEN = {
    "reading": "Entities: none\nQuestion: What does {text} say?\nAnswer: {text}",
    "examples": "{example}, number {number}",
    "reasons": "Both speak of {first}.\nVerdict: {word}",
}


def writer(kind: str) -> dict:
    return {"templates": {"patterns": WRITTEN[kind]}}


def small(params: dict) -> None:
    tuned = {"length": 32, "training": {"steps": 4, "batch": 8}}
    params["datasets"] = {
        "corpora": {"source": "tasks/datasets/corpora.py", "documents": 120},
        "listings": {"source": "tasks/datasets/listings.py", "rows": 120},
        "glue": {"source": "pairs"},
    }
    before = {"size": "nano", "data": "corpora", "length": 48, "training": {"steps": 2, "batch": 8}}
    params["language"] = {
        "tokenizer": {"kind": "wordpiece", "vocabulary": 400, "data": "corpora", "sentinels": 4},
        "tokens": ["corpora"],
        "pretrain": {"bert": before, "t5": before},
        "finetune": {
            "category": tuned | {"from": "bert", "kind": "classification", "data": "listings"},
            "translate": tuned | {"from": "t5", "kind": "generation", "data": "listings", "settings": {"longest": 4}},
        },
        "gates": {},
    }
    task = {"kind": "classification", "data": "few"}
    shared = {"from": "bert", "method": {"mkd": {}}, "length": 32, "training": SHORT}
    params["distill"] |= {
        "methods": {}, "gates": {"tasks": {"floors": {"kept": 0.0}, "ceilings": {"latency_ms": 100000, "ratio": 1.0}}},
        "tasks": {"shop": shared | {"student": LAYER, "tasks": {"category": task | {"teachers": ["category"]}}}},
        "of_tasks": {"small": shared | {"tasks": {"category": task | {"teachers": ["shop/tasks/category"]}}}},
        "served": {"shop_category": {"from": "distill_tasks/shop", "task": "category", "data": "few"}},
        "readings": {"corpora": {"data": "corpora", "method": "reading", "texts": 40, "heldout": 0.2,
                                 "writer": writer("reading")}},
        "examples": {"few": {"data": "listings", "classifier": "category", "each": 4, "writer": writer("examples")}},
        "reasons": {"match": {"data": "glue", "says": {"0": "unlike", "1": "alike"}, "writer": writer("reasons")}},
        "relevance": {"match": {"from": "bert", "data": "match", "length": 24, "reasons": 12, "student": LAYER,
                                "training": SHORT}},
        "languages": {"zh": {"from": "translate", "data": "listings", "new": "zh", "old": ["en"], "length": 32,
                             "settings": {"longest": 4}, "training": SHORT}},
    }  # fmt: skip


LAST = ("promote_tasks@shop_category", "distill_of_tasks@small", "generate_reading@corpora", "promote_relevance@match",
        "promote_languages@zh")  # fmt: skip
ALL = {*LAST, "gate_tasks@shop_category", "distill_tasks@shop", "generate_examples@few", "generate_reasons@match",
       "gate_relevance@match", "distill_relevance@match", "gate_languages@zh", "distill_languages@zh"}  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm) -> Checkout:
    folder = tmp_path_factory.mktemp("taught") / "rootstock"
    made = copied(folder, small, without=RECOMMEND + ITEMS + WRITING, python=warm)
    pairs = [{"sentence1": f"a {colour} {thing}", "sentence2": f"{thing} in {other}", "label": int(colour == other)}
             for colour in COLOURS for thing in THINGS for other in COLOURS[:3]]  # fmt: skip
    (made.folder / "pairs").mkdir()
    for split, part in (("train", pairs[:40]), ("dev", pairs[40:])):
        pl.DataFrame(part).write_csv(made.folder / f"pairs/{split}.csv")
    made.first = made.repro(*LAST)
    return made


def stale(checkout: Checkout) -> set[str]:
    """What DVC would run of these stages."""
    kinds = {stage.split("@")[0] for stage in ALL}
    return {stage for stage in checkout.stale() if stage.split("@")[0] in kinds}


def test_by_default_none_of_it_runs():
    chosen = yaml.safe_load((ROOT / "params.yaml").read_text())["distill"]
    assert {part: chosen[part] for part in ELSEWHERE} == dict.fromkeys(ELSEWHERE, {})


def test_a_fresh_checkout_runs_all_that_is_named(checkout):
    assert set(checkout.first) >= ALL
    ran = checkout.first.index
    assert ran("generate_examples@few") < ran("distill_tasks@shop") < ran("distill_of_tasks@small")
    assert ran("generate_reasons@match") < ran("distill_relevance@match")
    assert checkout.json("artifacts/distill_tasks/shop/run.json")["tasks"]["category"]["rows"] > 96  # with written ones
    assert checkout.json("artifacts/of_tasks/small/metrics.json")["single"]["category"]
    assert checkout.json("artifacts/reading/corpora/report.json")["kept"] > 0
    assert checkout.json("artifacts/reasons/match/report.json")["kept"] > 0
    for made in ("relevance/match", "languages/zh"):
        assert checkout.json(f"artifacts/{made}/metrics.json")["export"]["equal"] is True
    assert stale(checkout) == set()


def test_students_of_reasons_and_of_languages_are_versions(checkout):
    assert checkout.tags("distill-match")["stage"] == "distill_relevance@match"
    tags = checkout.tags("distill-zh")
    assert tags["stage"] == "distill_languages@zh" and tags["teacher"].startswith("models:/language-translate/")


def test_a_task_of_a_shared_student_is_a_version_that_names_its_teacher(checkout):
    assert checkout.json("artifacts/language/receipt/shop_category.json")["status"] == "promoted"
    verdict = checkout.json("artifacts/language/gate/shop_category/verdict.json")
    assert {"kept", "latency_ms", "ratio", "size_mb"} <= set(verdict["model_metrics"])
    tags = checkout.tags("distill-shop_category")
    assert tags["teacher"] == "artifacts/finetune/category"  # which is no version in this checkout
    assert tags["stage"] == "distill_tasks@shop"


def test_one_line_makes_its_own_stages_stale(checkout):
    checkout.params(lambda p: p["distill"]["relevance"]["match"].update(reasons=14))
    assert stale(checkout) == {"distill_relevance@match"}  # and, once that is run, what reads it
    checkout.params(lambda p: p["distill"]["relevance"]["match"].update(reasons=12))
    checkout.params(lambda p: p["distill"]["tasks"].update(other=p["distill"]["tasks"]["shop"]))
    assert "distill_tasks@other" in (found := stale(checkout)) and "distill_tasks@shop" not in found
    checkout.params(lambda p: p["distill"]["tasks"].pop("other"))
    assert stale(checkout) == set()
