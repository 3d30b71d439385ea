"""Students end to end, with the real tools: DVC runs a mix, chains, a combiner of teachers, a student of two phases.

One checkout is built once, as far as its students need, and every test leaves it as it was.
"""

import pytest
from _checkout import ITEMS, RECOMMEND, WRITING, Checkout, copied

KINDS = ("distill", "mix", "chain", "several", "specific")
STEPS = {kind: [f"parts_{kind}", kind, f"gate_{kind}", f"promote_{kind}"] for kind in KINDS}
OPEN = {"floors": {"kept": 0.0}, "ceilings": {"ratio": 1.0, "latency_ms": 100000}}


def small(params: dict) -> None:
    tuned = {"kind": "classification", "data": "listings", "length": 32, "training": {"steps": 4, "batch": 8}}
    params["datasets"] = {
        "corpora": {"source": "tasks/datasets/corpora.py", "documents": 120},
        "listings": {"source": "tasks/datasets/listings.py", "rows": 120},
    }
    params["language"] = {
        "tokenizer": {"kind": "wordpiece", "vocabulary": 400, "data": "corpora"},
        "tokens": ["corpora"],
        "pretrain": {"bert": {"size": "nano", "data": "corpora", "length": 48, "training": {"steps": 4, "batch": 8}}},
        "finetune": {"category": tuned | {"from": "bert"}},
        "gates": {"pretrain": {"ceilings": {"loss": 20.0}}, "finetune": {"floors": {"accuracy": 0.0}}},
    }
    params["distill"] |= {
        "length": 32, "student": {"layers": 1}, "training": {"epochs": 1, "batch": 64}, "methods": {},
        "mixes": {"tiny": {"minilm": {}, "pd": {"weight": 0.5}}}, "chains": {}, "several": {},
        "cache": {"store": "float32"},
        "teachers": {"small": {"from": "mix", "name": "tiny"}, "large": {"from": "finetune", "name": "category"}},
        "gates": dict.fromkeys(STEPS, OPEN) | {"general": {"floors": {"kept": None}}}, "specific": {},
    }  # fmt: skip
    tuned, rows = {"from": "finetune", "name": "category"}, "ingest/listings"
    params["distill"]["chains"] = {
        "half": {"teacher": {"from": "mix", "name": "tiny"}, "data": rows, "of": {"pd": {}}},
        "general": {"teacher": {"from": "pretrain", "name": "bert"}, "data": "tokens/corpora", "of": {"tinybert": {}},
                    "student": {"start": [2]}, "training": {"steps": 2, "batch": 8, "evaluate_rows": 8}},
    }  # fmt: skip
    params["distill"]["several"]["both"] = {"teachers": ["small", "large"], "by": {"tmkd": {}}, "cache": None}
    shop = {"start": {"from": "chain", "name": "general"}, "teacher": tuned, "data": rows, "of": {"tinybert": {}}}
    params["distill"]["specific"]["shop"] = shop


def stages(kind: str, name: str) -> set[str]:
    return {f"{step}@{name}" for step in STEPS[kind]}


STUDENTS = {"tiny": "mix", "half": "chain", "general": "chain", "both": "several", "shop": "specific"}
ALL = {stage for name, kind in STUDENTS.items() for stage in stages(kind, name)} | {"lent@small", "lent@large"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm) -> Checkout:
    folder = tmp_path_factory.mktemp("distillation") / "rootstock"
    made = copied(folder, small, without=RECOMMEND + ITEMS + WRITING, python=warm)
    made.first = made.repro(*(f"promote_{kind}@{name}" for name, kind in STUDENTS.items()))
    return made


def stale(checkout: Checkout) -> set[str]:
    """What DVC would run of the students."""
    kinds = {"lent", *(step for steps in STEPS.values() for step in steps)}
    return {stage for stage in checkout.stale() if stage.split("@")[0] in kinds}


def test_a_fresh_checkout_distils_everything(checkout):
    assert set(checkout.first) >= ALL
    assert checkout.first.index("promote_mix@tiny") < checkout.first.index("lent@small")
    for name, kind in STUDENTS.items():
        assert checkout.json(f"artifacts/{kind}/{name}/metrics.json")["export"]["equal"] is True
        assert checkout.json(f"artifacts/language/receipt/{name}.json")["status"] == "promoted"
        assert checkout.champion(f"distill-{name}") == 1
    kept = checkout.json("artifacts/teacher_cache/mix/tiny/tiny/train/manifest.json")
    assert kept["facts"]["teacher"] == checkout.json("artifacts/mix/tiny/run.json")["teacher_content"]
    assert not (checkout.folder / "artifacts/teacher_cache/several").exists()
    both = checkout.json("artifacts/several/both/run.json")
    assert [each["folder"] for each in both["teachers"]] == ["artifacts/mix/tiny", "artifacts/finetune/category"]
    assert teacher_of(checkout, "half") == "models:/distill-tiny/1"
    assert teacher_of(checkout, "tiny") == teacher_of(checkout, "both") == "models:/language-category/1"
    assert stale(checkout) == set()


def test_a_student_of_two_phases(checkout):
    """Running text under the pre-trained teacher, then the task under the tuned one; its version names all."""
    general, shop = (checkout.json(f"artifacts/{place}/run.json") for place in ("chain/general", "specific/shop"))
    assert general["stages"] == ["pretrain"] and general["teacher"] == "artifacts/pretrain/bert"
    assert shop["stages"] == ["inner", "logits"] and shop["teacher"] == "artifacts/finetune/category"
    tags = checkout.tags("distill-shop")
    assert tags["teacher"] == "models:/language-category/1" and tags["start"] == "models:/distill-general/1"
    assert shop["start"] == "artifacts/chain/general" and shop["start_content"] == tags["start_sha256"]
    assert tags["start_sha256"] == checkout.tags("distill-general")["content_sha256"]
    assert teacher_of(checkout, "general") == "models:/language-bert/1"
    parts = checkout.json("artifacts/student_parts/specific/shop.json")
    assert parts["start"] == {"artifacts/chain/general": tags["start_sha256"]}
    told = checkout("tasks.lineage", "models:/distill-shop/1")
    assert "start: models:/distill-general/1" in told and "teacher: models:/language-category/1" in told


def teacher_of(checkout: Checkout, name: str) -> str:
    return checkout.tags(f"distill-{name}")["teacher"]


def test_one_line_makes_one_student(checkout):
    checkout.params(lambda p: p["distill"]["methods"].update(pkd={}))
    assert stale(checkout) == stages("distill", "pkd")
    checkout.params(lambda p: p["distill"]["methods"].pop("pkd"))
    checkout.params(lambda p: p["distill"]["several"]["both"].update(of={"pd": {}}))
    assert stale(checkout) == {"parts_several@both", "several@both"}
    checkout.params(lambda p: p["distill"]["several"]["both"].pop("of"))
    checkout.params(lambda p: p["distill"]["specific"].update(more=p["distill"]["specific"]["shop"] | {"of": {}}))
    assert stale(checkout) == stages("specific", "more")
    checkout.params(lambda p: p["distill"]["specific"].pop("more"))
    assert stale(checkout) == set()


def test_an_edit_reaches_the_students_that_are_made_of_it(checkout):
    """A combiner of one, a method that nobody uses, one of both phases, a component of all."""
    names = ("distill/teachers/tmkd", "distill/rail_kd", "distill/tinybert", "components/embedding/segment")
    files = [checkout.folder / f"models/{name}.py" for name in names]
    students = {f"{kind}@{name}" for name, kind in STUDENTS.items()}
    parts = [f"parts_{kind}@{name}" for name, kind in STUDENTS.items()]
    for path, made in zip(files, ({"several@both"}, set(), {"chain@general", "specific@shop"}, students), strict=True):
        text = path.read_text()
        path.write_text(text + "\n# another word\n")
        checkout("dvc", "repro", "-s", *parts)
        assert stale(checkout) & students == made
        path.write_text(text)
    checkout("dvc", "repro", "-s", *parts)
    assert stale(checkout) == set()
